"""Our models and byte corpora in fastai: DataLoaders, a Learner with the model's own loss, metrics, parameter groups, text.

    dls = byte_dataloaders(ByteCorpusConfig(path="novel.txt", length=2048), batch_size=8)
    learn = language_learner(get_preset("cpu_small"), dls)
    learn.fit_one_cycle(1, 1e-3)
    print(generate_text(learn, "It was"))

Needs fastai (docs/fastai.md says how to install it). B batch, L length, V vocabulary.
"""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fastai.callback.all  # gives Learner its fit_one_cycle, lr_find, to_fp16 and the rest  # noqa: F401
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Metric
from fastcore.foundation import L
from torch import Tensor, nn
from torch.nn import functional

from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.byte_text import decode, encode
from reformer_lab.data.config import BYTE_OFFSET, ByteCorpusConfig
from reformer_lab.data.dataset import eval_selection
from reformer_lab.errors import UserError
from reformer_lab.evaluation.evaluate import autocast
from reformer_lab.evaluation.generate import generate
from reformer_lab.evaluation.metrics import Tally
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.ops.chunking import IGNORED, summed_cross_entropy

PADDING = 0


class Windows(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Windows of contiguous bytes by number: (tokens, targets), each (L,) int64. Tokens are byte + 2.

    A window that reaches over `end` is filled up with tokens 0 and targets -100.
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray, end: int, length: int, vocab_size: int) -> None:
        self.text = text
        self.starts = starts
        self.end = end
        self.length = length
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        start = int(self.starts[number])
        text = self.text[start : min(start + self.length, self.end)]
        found = torch.from_numpy(text.astype(np.int64)) + BYTE_OFFSET
        rest = (0, self.length - len(found))
        return functional.pad(found, rest, value=PADDING), functional.pad(found, rest, value=IGNORED)

    def new_empty(self) -> "Windows":
        """Return no windows of no text: what `Learner.export` writes."""
        return Windows(np.zeros(0, np.uint8), self.starts[:0].copy(), 0, self.length, self.vocab_size)


def byte_dataloaders(
    config: ByteCorpusConfig,
    *,
    batch_size: int = 8,
    eval_limit: int | None = None,
    path: str | Path = ".",
    device: Any = None,
    num_workers: int = 0,
) -> DataLoaders:
    """Return the windows of a text as fastai's DataLoaders: training, validation and, unless it is empty, test.

    The splits and windows are those of `ByteCorpusDataset`; fastai shuffles the training windows anew in each epoch. Batches
    are (tokens, targets), both (B, L) int64; targets stand where their tokens stand, as the model shifts inside.

    Args:
        eval_limit: at most so many windows of each evaluation split, evenly spread. None: all.
        path: folder below which the Learner saves.
        device: torch device of the batches. None: fastai's default.

    Raises:
        UserError: for a corpus that cannot be read or is too short, an empty validation split, a wrong number.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    if eval_limit is not None and eval_limit < 1:
        raise UserError(f"eval_limit={eval_limit}: must be at least 1, or None for the whole split")
    data = ByteCorpusDataset(config, seed=0)
    if data.windows_per_epoch < batch_size:
        raise UserError(f"batch_size={batch_size}: {data.name} has {data.windows_per_epoch} training windows, not one whole "
                        "batch: take a smaller batch, length or stride, or a longer text")
    text = data.corpus.bytes()
    last = data.bounds["train"][1] - data.length
    splits = [(np.minimum(np.arange(data.windows_per_epoch) * data.stride, last), data.bounds["train"][1])]
    for split in ("validation", "test"):
        first, end = data.bounds[split]
        count = -(-(end - first) // data.length)
        if count:
            (numbers,) = eval_selection(count, count, eval_limit)
            splits.append((first + numbers * data.length, end))
        elif split == "validation":
            raise UserError(f"the validation split of {data.name} is empty: hold out at least one byte for it")
    windows = [Windows(text, starts, end, data.length, data.vocab_size) for starts, end in splits]
    return DataLoaders.from_dsets(*windows, path=path, bs=batch_size, device=device, num_workers=num_workers)


class LearnerModel(nn.Module):
    """A `ReformerLM`, in the attribute `reformer`, as a Learner calls it.

    `precision` "bf16" computes in autocast on every device, where fastai's own `to_bf16` reaches NVIDIA GPUs alone.
    """

    def __init__(self, reformer: ReformerLM, padding_token: int | None = PADDING, precision: str = "fp32") -> None:
        super().__init__()
        self.reformer = reformer
        self.padding_token = padding_token
        self.precision = precision

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the logits (B, L, V) or, with targets (B, L), the model's own loss (): nats per counted target."""
        tokens = tokens.as_subclass(Tensor)  # fastai's subclasses have no business in the autograd functions
        padding = None
        if self.padding_token is not None:
            found = tokens == self.padding_token
            padding = found if found.any() else None
        # A context with enabled=False would switch off the one that to_fp16 has opened.
        with autocast(tokens.device, self.precision) if self.precision == "bf16" else nullcontext():
            if targets is None:
                return self.reformer.logits(self.reformer.hidden_states(tokens, padding))
            loss = self.reformer(tokens, targets=targets.as_subclass(Tensor), key_padding_mask=padding).loss
        assert loss is not None
        return loss


class LanguageLoss:
    """Mean nats per counted target, of logits (B, L, V), or of what the model has computed itself, ().

    With reduction "none" the mean of each text, (B,): what fastai asks for in `get_preds(with_loss=True)`.
    """

    def __init__(self, model: ReformerLM, reduction: str = "mean") -> None:
        self.model = model
        self.reduction = reduction

    def __call__(self, predicted: Tensor, targets: Tensor) -> Tensor:
        if predicted.dim() == 0:
            return predicted.clone()  # fastai scales the loss in place, the prediction stays
        logits, targets = predicted.as_subclass(Tensor), self.model.align(targets.as_subclass(Tensor))
        if self.reduction == "none":
            rows = [summed_cross_entropy(*row) for row in zip(logits, targets, strict=True)]
            return torch.stack(rows) / (targets != IGNORED).sum(1).clamp(min=1)
        return summed_cross_entropy(logits, targets) / (targets != IGNORED).sum().clamp(min=1)

    def activation(self, logits: Tensor) -> Tensor:
        """Return the probabilities: what fastai's `get_preds` gives."""
        return logits.softmax(-1)

    def decodes(self, logits: Tensor) -> Tensor:
        """Return the most probable tokens (B, L)."""
        return logits.argmax(-1)


class TargetsIntoModel(Callback):
    """Gives the targets to a model with loss_chunk_length, whose logits never exist at once.

    Not where predictions are gathered: they are asked for as logits.
    """

    def before_batch(self) -> None:
        """Let the targets follow the tokens."""
        if not hasattr(self.learn, "gather_preds"):
            self.learn.xb = (*self.xb, *self.yb)


class _TallyMetric(Metric):
    """Weighs each target alike, whatever batch it stands in."""

    def reset(self) -> None:
        self.tally = Tally()

    def accumulate(self, learn: Learner) -> None:
        logits = None if learn.pred.dim() == 0 else learn.pred.as_subclass(Tensor)
        targets = learn.model.reformer.align(learn.yb[0].as_subclass(Tensor))
        loss, counted = learn.loss, (targets != IGNORED).sum(1)
        if loss.dim():  # a loss for each text: get_preds(with_loss=True)
            loss = (loss * counted).sum() / counted.sum().clamp(min=1)
        self.tally.add(loss, logits, targets)


class BitsPerByte(_TallyMetric):
    """Total nats over total targets over ln 2: bits per byte of a byte corpus, bits per token of other data."""

    name = "bits_per_byte"

    @property
    def value(self) -> float | None:
        """The bits; None before anything was counted."""
        return self.tally.nats / self.tally.targets / math.log(2) if self.tally.targets else None


class TokenAccuracy(_TallyMetric):
    """Share of counted targets that the most probable token equals."""

    name = "accuracy"

    @property
    def value(self) -> float | None:
        """The share; None where the model gave no logits (loss_chunk_length)."""
        return self.tally.metrics().accuracy if self.tally.targets else None


def parameter_groups(model: LearnerModel) -> list[list[nn.Parameter]]:
    """Return the parameters for discriminative learning rates: embedding with positions, each layer, last norm with head.

    num_layers + 2 groups. A tied head is in the embedding's.
    """
    reformer = model.reformer
    parts: list[list[nn.Module | None]] = [[reformer.embedding, reformer.positions]]
    parts += [[layer] for layer in reformer.stack.layers]
    parts += [[reformer.norm, reformer.head]]
    return [[parameter for module in modules if module is not None for parameter in module.parameters()] for modules in parts]


def language_learner(
    model: ReformerConfig | ReformerLM,
    dls: DataLoaders,
    *,
    seed: int = 0,
    precision: str = "fp32",
    padding_token: int | None = PADDING,
    metrics: Any = None,
    cbs: Any = None,
    **learner: Any,
) -> Learner:
    """Return a fastai Learner of a causal model over batches (tokens, targets).

    Args:
        model: a configuration, of which a new model is made with `seed`, or a model, which is trained in place.
        dls: `byte_dataloaders`, or any whose batches are (tokens, targets), (B, L) int64, not shifted, -100 not counted.
        precision: "fp32", or "bf16" for autocast on every device.
        padding_token: what neither sees nor is seen. None: no token, for data in which 0 is a symbol.
        metrics: None: bits per byte and, unless the model has loss_chunk_length, accuracy.
        cbs, learner: callbacks and further options of `Learner`, for example opt_func, wd, path.

    Raises:
        UserError: for a bidirectional model, an unknown precision, data that the model cannot take.
    """
    if isinstance(model, ReformerConfig):
        model = ReformerLM(model, seed=seed)
    config = model.config
    if not config.causal:
        raise UserError("causal=False: a bidirectional model is no language model; give a causal one")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision={precision!r}: must be fp32 or bf16; for fp16 on a GPU call to_fp16() of the Learner")
    for name, most in (("vocab_size", config.vocab_size), ("length", config.max_length)):
        needed = getattr(dls, name, None)
        if isinstance(needed, int) and needed > most:
            field = {"length": "max_length"}.get(name, name)
            raise UserError(f"{field}={most}: the data have {name} {needed}; raise {field} of the model")
    chunked = config.loss_chunk_length is not None
    if metrics is None:
        metrics = [BitsPerByte()] if chunked else [BitsPerByte(), TokenAccuracy()]
    learner.setdefault("splitter", parameter_groups)
    return Learner(
        dls, LearnerModel(model, padding_token, precision), loss_func=LanguageLoss(model), metrics=metrics,
        cbs=L(TargetsIntoModel() if chunked else None) + L(cbs), **learner,
    )  # fmt: skip


def generate_text(learn: Learner, prompt: str, *, length: int = 400, **options: Any) -> str:
    """Return how the Learner's model of bytes continues `prompt`: `length` bytes as text, without the prompt.

    options: those of `evaluation.generate.generate`, for example temperature, top_k, num_hashes, seed. For other tokens call
    that with `learn.model.reformer`. Raises UserError as it does.
    """
    options.setdefault("precision", learn.model.precision)
    (result,) = generate(learn.model.reformer, [encode(prompt)], length=length, **options)
    return decode(result.tokens)
