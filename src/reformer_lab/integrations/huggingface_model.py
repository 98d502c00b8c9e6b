"""Our models as models of transformers: Auto classes, Trainer, generate, pipelines, folders for the hub.

Importing this module registers the model type `reformer_lab`:

    import reformer_lab.integrations.huggingface_model
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from reformer_lab.errors import UserError
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
    """Holds a `ReformerConfig` as the dict `model`; everything else is transformers'."""

    model_type = "reformer_lab"

    def __init__(self, model: dict[str, Any] | None = None, **others: Any):
        self.model = ReformerConfig.from_dict(model or {}).to_dict()
        others.setdefault("pad_token_id", 0)
        others.setdefault("bos_token_id", 0)
        others.setdefault("eos_token_id", 1)
        others.setdefault("use_cache", False)
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
    """

    config_class = ReformerLabConfig
    base_model_prefix = "reformer"
    main_input_name = "input_ids"

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
        **others: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Return loss (None without labels) and logits (B, L, V) for input_ids (B, L).

        attention_mask (B, L), 0 = padding, on either side: each text is computed as if it began at position 0.
        labels (B, L): token ids, -100 = not counted; not shifted.
        """
        order = None
        padding = None if attention_mask is None else attention_mask == 0
        if padding is not None and padding.any():
            # Padding behind the text: positions count from its beginning.
            order = padding.long().argsort(dim=1, stable=True)
            input_ids, padding = input_ids.gather(1, order), padding.gather(1, order)
            labels = None if labels is None else labels.gather(1, order).masked_fill(padding, IGNORED)
        else:
            padding = None
        loss, logits = self._compute(input_ids, padding, labels)
        if order is not None and logits is not None:
            logits = logits.gather(1, order.argsort(dim=1)[..., None].expand_as(logits))
        if return_dict is False:
            return tuple(value for value in (loss, logits) if value is not None)
        return CausalLMOutput(loss=loss, logits=logits)

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
            padding = functional.pad(padding, (0, extra))
            if extra:
                # The place behind each text sees it: not padding yet.
                padding = padding.scatter(1, (~padding[:, :-1]).sum(1, keepdim=True), False)
        targets = None if labels is None else functional.pad(labels, (0, extra), value=IGNORED)
        out = model(tokens, targets=targets, key_padding_mask=padding)
        logits = None if out.logits is None else functional.pad(out.logits[:, 1:], (0, 0, 0, 1 - extra))
        return (None if labels is None else out.loss), logits

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        """Return the whole text: each step computes all of it."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

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
            config = self.config.reformer
            card.write_text(CARD.format(
                parameters=sum(parameter.numel() for parameter in self.parameters()), layers=config.num_layers,
                kinds=", ".join(dict.fromkeys(config.layer_kinds())), vocab_size=config.vocab_size,
                max_length=config.max_length, folder=Path(folder).name,
            ), encoding="utf-8")  # fmt: skip


def as_huggingface(model: ReformerLM) -> ReformerLabForCausalLM:
    """Return `model` as a model of transformers. They share their parameters."""
    with torch.device("meta"):
        result = ReformerLabForCausalLM(ReformerLabConfig(model=model.config.to_dict()))
    result.reformer = model
    return result.train(model.training)


AutoConfig.register("reformer_lab", ReformerLabConfig, exist_ok=True)
AutoModelForCausalLM.register(ReformerLabConfig, ReformerLabForCausalLM, exist_ok=True)
