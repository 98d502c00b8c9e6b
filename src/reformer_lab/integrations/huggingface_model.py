"""Our models as models of transformers: Auto classes, Trainer, generate, pipelines, folders for the hub.

Importing this module registers the model type `reformer_lab`:

    import reformer_lab.integrations.huggingface_model
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from reformer_lab.errors import UserError
from reformer_lab.integrations.huggingface_cache import ReformerLabCache
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.ops.chunking import IGNORED

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [reformer, reformer-lab]
---

# A Reformer

A [Reformer](https://openreview.net/forum?id=rkgNKkHtvB) language model of {parameters:,} parameters with {layers} layers
({kinds}) over a vocabulary of {vocab_size}, for texts of up to {max_length:,} tokens, made with reformer-lab.

```python
import reformer_lab.integrations.huggingface_model  # registers the model type
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{folder}")
```

Training data, results and limits: to be filled in by who publishes it.
"""


class ReformerLabConfig(PretrainedConfig):
    """Holds a `ReformerConfig` as the dict `model`; everything else is transformers'.

    use_cache, which `generate` follows unless told otherwise, is True where cached decoding gives the same logits.
    """

    model_type = "reformer_lab"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(self, model: dict[str, Any] | None = None, **others: Any):
        reformer = ReformerConfig.from_dict(model or {})
        self.model = reformer.to_dict()
        others.setdefault("pad_token_id", 0)
        others.setdefault("bos_token_id", 0)
        others.setdefault("eos_token_id", 1)
        others.setdefault("use_cache", reformer.continues_exactly())
        others.setdefault("tie_word_embeddings", False)  # ReformerLM ties its own
        super().__init__(**others)

    @property
    def reformer(self) -> ReformerConfig:
        """The configuration of the model itself."""
        return ReformerConfig.from_dict(self.model)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.reformer.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of a residual stream."""
        return self.reformer.d_model

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers."""
        return self.reformer.num_layers

    @property
    def max_position_embeddings(self) -> int:
        """Longest text that `generate` may reach. A model that shifts its inputs has a first place that is no text's."""
        return self.reformer.max_length - (self.reformer.shift == "inputs")


class ReformerLabForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal `ReformerLM`, in the attribute `reformer`, with transformers' conventions: logits[:, t] predict token t + 1.

    A model with shift="inputs" also predicts the first token, which counts in the loss.

    `generate` reads the text once and then one token at a time (use_cache=True), or the whole text for each token
    (use_cache=False). Both give the same where `ReformerConfig.continues_exactly`, and there the first is the default;
    elsewhere, with chunks of LSH attention below other layers or a number of buckets that follows the length, the second is.
    """

    config_class = ReformerLabConfig
    base_model_prefix = "reformer"
    main_input_name = "input_ids"
    _is_stateful = True  # the cache cannot go back: no assisted generation

    def __init__(self, config: ReformerLabConfig):
        super().__init__(config)
        if not config.reformer.causal:
            raise UserError("causal=False: a bidirectional model is no language model; give a causal one")
        on_meta = torch.get_default_device().type == "meta"  # from_pretrained: values follow
        self.reformer = ReformerLM(config.reformer, seed=None if on_meta else 0)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        past_key_values: ReformerLabCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return loss (None without labels), logits (B, L, V) for input_ids (B, L), and the cache where one is asked for.

        attention_mask (B, L), 0 = padding, on either side: each text is computed as if it began at position 0.
        labels (B, L): token ids, -100 = not counted; not shifted.
        use_cache: return `past_key_values`, with which the next call takes the tokens that follow, input_ids (B, N), and the
        mask of all so far or none; in evaluation and without labels, else there is no cache. None: False.
        logits_to_keep: of the last so many tokens alone; 0: of all.
        """
        loss, cache = None, past_key_values
        if cache is not None:
            if labels is not None:
                raise UserError("labels beside past_key_values: a loss needs the whole text; leave one of the two out")
            logits: Tensor | None = self._continue(input_ids, attention_mask, cache)
        elif use_cache and labels is None and not self.training:
            logits, cache = self._begin(input_ids, attention_mask, logits_to_keep)
        else:
            loss, logits = self._whole(input_ids, attention_mask, labels)
        if logits is not None and logits_to_keep:
            logits = logits[:, -logits_to_keep:]
        if return_dict is False:
            return tuple(value for value in (loss, logits, cache) if value is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _whole(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        padding, order = _padding_behind(attention_mask)
        if padding is None:
            return self._compute(input_ids, None, labels)
        labels = None if labels is None else labels.gather(1, order).masked_fill(padding, IGNORED)
        loss, logits = self._compute(input_ids.gather(1, order), padding, labels)
        return loss, None if logits is None else _moved_back(logits, order)

    def _begin(
        self, input_ids: Tensor, attention_mask: Tensor | None, logits_to_keep: int
    ) -> tuple[Tensor, ReformerLabCache]:
        padding, order = _padding_behind(attention_mask)
        lengths = None if padding is None else (~padding).sum(1)
        texts = input_ids if padding is None else input_ids.gather(1, order)
        last_column_is_text = attention_mask is None or bool(attention_mask[:, -1].all())
        if logits_to_keep == 1 and last_column_is_text:  # no need of the logits of a whole prompt
            last, decoding = self.reformer.start(texts, lengths)
            return last[:, None], ReformerLabCache(decoding, input_ids.shape[1])
        logits, decoding = self.reformer.read(texts, lengths)
        return (logits if padding is None else _moved_back(logits, order)), ReformerLabCache(decoding, input_ids.shape[1])

    def _continue(self, input_ids: Tensor, attention_mask: Tensor | None, cache: ReformerLabCache) -> Tensor:
        new = input_ids.shape[1]
        if attention_mask is not None and not bool(attention_mask[:, -new:].all()):
            raise UserError("attention_mask hides a token that continues a cached text: pad before the first text alone")
        logits = [self.reformer.step(tokens, cache.decoding) for tokens in input_ids.unbind(1)]
        cache.columns += new
        return torch.stack(logits, dim=1)

    def _compute(
        self, input_ids: Tensor, padding: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        model, length = self.reformer, input_ids.shape[1]
        if model.config.shift == "targets":
            out = model(input_ids, targets=labels, key_padding_mask=padding)
            return (None if labels is None else out.loss), out.logits
        # One position more, whose own token nobody sees: its logits follow the last token. There is no room for it at the full
        # length, where training does not miss it.
        extra = int(length < model.config.max_length or labels is None)
        tokens = functional.pad(input_ids, (0, extra))
        if padding is not None:
            padding = functional.pad(padding, (0, extra), value=True)
            if extra:
                # The place behind each text sees it: not padding yet.
                padding = padding.scatter(1, (~padding[:, :-1]).sum(1, keepdim=True), False)
        targets = None if labels is None else functional.pad(labels, (0, extra), value=IGNORED)
        out = model(tokens, targets=targets, key_padding_mask=padding)
        logits = None if out.logits is None else functional.pad(out.logits[:, 1:], (0, 0, 0, 1 - extra))
        return (None if labels is None else out.loss), logits

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: ReformerLabCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Return the tokens that the cache has not read: the whole text where there is none."""
        if past_key_values is not None:
            input_ids = input_ids[:, past_key_values.get_seq_length() :]
            if input_ids.shape[1] == 0:
                raise UserError("past_key_values has read all of input_ids: give at least one token that follows")
        return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": past_key_values,
                "use_cache": use_cache, "logits_to_keep": 1}  # fmt: skip

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table."""
        return self.reformer.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output layer; None where the embedding table serves as one."""
        return self.reformer.head

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the values alone: ReformerLM gives them, and `from_pretrained` accepts no missing ones."""

    @classmethod
    def from_pretrained(cls, source: Any, *arguments: Any, **named: Any) -> Any:
        """Read a folder or a model of the hub. A UserError names tensors that are missing, too many or of another shape."""
        with_info = named.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(source, *arguments, output_loading_info=True, **named)
        except RuntimeError as error:
            raise UserError(f"{source}: {str(error).splitlines()[-1].strip()}: the weights do not fit config.json") from None
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            for name in sorted(map(str, info[kind])):
                raise UserError(f"{source}: {kind.partition('_')[0]} tensor {name}: the weights are not those of config.json")
        return (model, info) if with_info else model

    def save_pretrained(self, folder: Any, *arguments: Any, **named: Any) -> None:
        """Write configuration, weights and, where there is none, a model card: the folder can be pushed to the hub."""
        super().save_pretrained(folder, *arguments, **named)
        card = Path(folder) / "README.md"
        if named.get("is_main_process", True) and not card.exists():
            card.write_text(self._card(Path(folder).name), encoding="utf-8")

    def _card(self, name: str) -> str:
        config = self.config.reformer
        return CARD.format(
            parameters=sum(parameter.numel() for parameter in self.parameters()), layers=config.num_layers,
            kinds=", ".join(dict.fromkeys(config.layer_kinds())), vocab_size=config.vocab_size,
            max_length=config.max_length, folder=name,
        )  # fmt: skip

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *arguments: Any, **named: Any) -> Any:
        """Upload a folder, as `push_to_hub` does. The blank card that transformers has put there gives way to ours."""
        path = Path(working_dir) / "README.md"
        blank = ModelCard(path.read_text(encoding="utf-8")) if path.exists() else None
        if blank is None or "automatically generated" in blank.text:
            card = ModelCard(self._card(repo_id))
            tags = ((blank.data.to_dict().get("tags") if blank else None) or [])
            card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *tags]))
            card.save(path)
        return super()._upload_modified_files(working_dir, repo_id, *arguments, **named)


def _padding_behind(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Return where padding is (B, L) once it stands behind the text, so that positions count from the text's beginning, and
    the order (B, L) of columns that brings it there; None where there is no padding."""
    if attention_mask is None or bool((attention_mask != 0).all()):
        return None, torch.empty(0)
    padding = attention_mask == 0
    order = padding.long().argsort(dim=1, stable=True)
    return padding.gather(1, order), order


def _moved_back(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order.argsort(dim=1)[..., None].expand_as(x))


def as_huggingface(model: ReformerLM) -> ReformerLabForCausalLM:
    """Return `model` as a model of transformers. They share their parameters."""
    with torch.device("meta"):
        result = ReformerLabForCausalLM(ReformerLabConfig(model=model.config.to_dict()))
    result.reformer = model
    return result.train(model.training)


AutoConfig.register("reformer_lab", ReformerLabConfig, exist_ok=True)
AutoModelForCausalLM.register(ReformerLabConfig, ReformerLabForCausalLM, exist_ok=True)
