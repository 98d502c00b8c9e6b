"""ReformerLM: one class for the whole ladder from the regular Transformer to the Reformer.

B batch, L length, V vocabulary.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from reformer_lab.errors import UserError
from reformer_lab.layers.attention import FullSelfAttention, LocalSelfAttention, LSHSelfAttention, SelfAttention
from reformer_lab.layers.blocks import PreNorm, ReversibleStack, TransformerLayer
from reformer_lab.layers.cache import DecodingCache
from reformer_lab.layers.feed_forward import ChunkedFeedForward
from reformer_lab.layers.initialization import initialize
from reformer_lab.layers.positions import AxialPositions, LearnedPositions, SinusoidalPositions
from reformer_lab.models.config import AttentionKind, ReformerConfig
from reformer_lab.ops.chunking import IGNORED, recompute, summed_cross_entropy
from reformer_lab.ops.random import CallSeeds, draw_seed, dropout
from reformer_lab.seeds import derive_seed

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
Positions = AxialPositions | LearnedPositions | SinusoidalPositions
START_TOKEN = 0
"""The input at the first position of a causal model, and in the place of padding."""


class ReformerOutput(NamedTuple):
    """loss: mean nats per target, or None; logits (B, L, V), or None where the loss was computed in pieces."""

    loss: Tensor | None
    logits: Tensor | None


# So that an exported program can be saved. torch offers no public name for it.
_pytree._register_namedtuple(ReformerOutput, serialized_type_name="reformer_lab.ReformerOutput")


class ReformerLM(nn.Module):
    """Language model or bidirectional encoder with an output layer, as `config` says.

    The parameters' initial values follow from `seed` and their names; neither construction nor a forward pass touches the
    global random state. `seed` None: parameters have shapes but no values (torch's meta device).

    >>> from reformer_lab.models.presets import get_preset
    >>> model = ReformerLM(get_preset("cpu_tiny"))
    >>> model(torch.ones(2, 50, dtype=torch.long)).logits.shape
    torch.Size([2, 50, 258])
    """

    def __init__(self, config: ReformerConfig, seed: int | None = 0):
        super().__init__()
        self.config = config
        with torch.device("meta"):  # values come from `initialize`, never from the global generator
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.positions: Positions | None = _positions(config)
            self.stack = ReversibleStack(
                [_layer(config, kind) for kind in config.layer_kinds()],
                reversible=config.reversible,
                streams=config.residual_streams,
            )
            width = config.residual_streams * config.d_model
            self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            self.head = None if config.tie_embeddings else nn.Linear(width, config.vocab_size)
        self._call_seeds = CallSeeds(0 if seed is None else seed)
        if seed is not None:
            self.to_empty(device="cpu")
            initialize(self, seed)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ReformerOutput:
        """Return the loss and the logits; logits[:, t] predict tokens[:, t] of a causal model, which shifts inside.

        With config.shift "targets" they predict tokens[:, t + 1].

        Args:
            tokens: (B, L) int64 in 0..V-1, L from 1 to config.max_length.
            targets: (B, L) int64, -100 = not counted. None: the tokens themselves for a causal model, else no loss.
            key_padding_mask: (B, L) bool, True = padding: the token there is neither seen nor seeing.
            generator: fixes every draw, dropout and rotations. None: in training new draws at each call, the same
                sequence of them for each new model; in evaluation rotations fixed per layer.

        Raises:
            UserError: names a length or a shape that does not fit.
        """
        self._check(tokens, targets, key_padding_mask)
        seed, fixed_draws = self._forward_seed(generator)
        x = self._embed(tokens, key_padding_mask, seed)
        if targets is not None and self.config.loss_chunk_length is not None:
            return ReformerOutput(self._loss_in_pieces(x, self.align(targets), key_padding_mask, seed, fixed_draws), None)
        x = self.stack(x, key_padding_mask, seed, fixed_draws)
        logits = self.logits(self._dropout(self.norm(x), seed, "output"))
        if targets is None and self.config.causal:
            targets = tokens if key_padding_mask is None else tokens.masked_fill(key_padding_mask, IGNORED)
        loss = None
        if targets is not None:
            targets = self.align(targets)
            loss = summed_cross_entropy(logits, targets) / (targets != IGNORED).sum().clamp(min=1)
        return ReformerOutput(loss, logits)

    def hidden_states(
        self, tokens: Tensor, key_padding_mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the normed streams (B, L, streams * d_model), of which the output layer makes logits."""
        self._check(tokens, None, key_padding_mask)
        seed, fixed_draws = self._forward_seed(generator)
        x = self.stack(self._embed(tokens, key_padding_mask, seed), key_padding_mask, seed, fixed_draws)
        return self._dropout(self.norm(x), seed, "output")

    def _embed(self, tokens: Tensor, key_padding_mask: Tensor | None, seed: int) -> Tensor:
        inputs = tokens if key_padding_mask is None else tokens.masked_fill(key_padding_mask, START_TOKEN)
        if self.config.causal and self.config.shift == "inputs":
            inputs = functional.pad(inputs[:, :-1], (1, 0), value=START_TOKEN)
        x = self.embedding(inputs)
        if self.positions is not None:
            x = x + self.positions(tokens.shape[1]).to(x.device, x.dtype)
        return self._dropout(x, seed, "embedding")

    def align(self, targets: Tensor) -> Tensor:
        """Return the targets (B, L) at the positions whose logits predict them."""
        if self.config.causal and self.config.shift == "targets":
            return functional.pad(targets[:, 1:], (0, 1), value=IGNORED)
        return targets

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, L, V) of normed streams (B, L, streams * d_model)."""
        if self.head is not None:
            return self.head(hidden)
        weight = self.embedding.weight * self.config.d_model**-0.5
        return functional.linear(hidden, torch.cat([weight] * self.config.residual_streams, dim=1))

    @torch.no_grad()
    def start(self, tokens: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, DecodingCache]:
        """Read texts to continue them with `step`: return the logits (B, V) of each text's next token, and the cache.

        Args:
            tokens: (B, L) int64; L is less than config.max_length, and may be 0 where the inputs are shifted.
            lengths: (B,) int64, 0..L: how many of the row's tokens count; what follows them is padding. None: all.

        The logits are those of `forward` over each text alone, in evaluation. But a number of buckets that follows the length
        (num_buckets=None) is that of config.max_length, whatever the text: it must not change while the text grows.

        Raises:
            UserError: names a shape, length or token that does not fit, a model in training mode or one that is not causal.
        """
        x, cache = self._start(tokens, lengths)
        last = x[torch.arange(len(x), device=x.device), cache.lengths - 1 + self._lead]
        return self.logits(self.norm(last)), cache

    @torch.no_grad()
    def read(self, tokens: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, DecodingCache]:
        """Do what `start` does, and return the logits (B, L, V) of what follows each token."""
        x, cache = self._start(tokens, lengths)
        return self.logits(self.norm(x[:, self._lead :])), cache

    def _start(self, tokens: Tensor, lengths: Tensor | None) -> tuple[Tensor, DecodingCache]:
        """Return the streams (B, lead + L, streams * d_model) of texts, and the cache."""
        batch, length = tokens.shape if tokens.dim() == 2 else (0, 0)
        if not self.config.causal:
            raise UserError("causal=False: a bidirectional model cannot continue a text; train one with causal=True")
        if self.training:
            raise UserError("the model is in training mode, where dropout is on: call model.eval() before continuing a text")
        least = 1 - self._lead
        if batch < 1 or not least <= length < self.config.max_length:
            raise UserError(
                f"tokens of shape {tuple(tokens.shape)}: expected (batch, length) with a length of at least {least} and below "
                f"max_length={self.config.max_length}, so that there is room for a token more"
            )
        if lengths is None:
            lengths = torch.full((batch,), length, device=tokens.device)
        if lengths.shape != (batch,) or int(lengths.min()) < least or int(lengths.max()) > length:
            raise UserError(f"lengths={lengths.tolist()}: expected {batch} numbers from {least} to {length}, one for each row")
        lengths = lengths.to(tokens.device)
        padding = torch.arange(length, device=tokens.device) >= lengths[:, None]
        tokens = tokens.masked_fill(padding, START_TOKEN)
        self._check_tokens(tokens)
        inputs = functional.pad(tokens, (self._lead, 0), value=START_TOKEN)
        x = self.embedding(inputs)
        if self.positions is not None:
            x = x + self.positions(inputs.shape[1]).to(x.device, x.dtype)
        x, caches = self.stack.start(x, lengths + self._lead, self.config.max_length)
        return x, DecodingCache(caches, lengths, length)

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: DecodingCache) -> Tensor:
        """Append one token (B,) to each text of `cache`, which is changed, and return the next one's logits (B, V).

        With LSH layers of coverage "bucket", and with full and local ones, they are those of `forward` over the text so far;
        with coverage "chunk" see `layers.cache`. Raises a UserError where max_length is reached.
        """
        if cache.longest + 1 >= self.config.max_length:
            raise UserError(
                f"with this token a text has max_length={self.config.max_length} tokens, and none can follow: stop one step "
                "earlier, or begin again with the end of the text"
            )
        if tokens.shape != cache.lengths.shape:
            raise UserError(f"tokens of shape {tuple(tokens.shape)}: expected {tuple(cache.lengths.shape)}, one for each text")
        self._check_tokens(tokens)
        cache.lengths = cache.lengths + 1
        cache.longest += 1
        position = cache.lengths - 1 + self._lead
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.at(position).to(x.device, x.dtype)
        x = self.stack.step(x[:, None], cache.layers, position, cache.longest + self._lead)
        return self.logits(self.norm(x[:, 0]))

    @property
    def _lead(self) -> int:
        """Inputs before the first token of a text."""
        return int(self.config.shift == "inputs")

    def _loss_in_pieces(
        self, x: Tensor, targets: Tensor, key_padding_mask: Tensor | None, seed: int, fixed_draws: bool
    ) -> Tensor:
        chunk_length = self.config.loss_chunk_length
        assert chunk_length is not None
        pieces = targets.split(chunk_length, dim=1)

        def loss_of(index: int, x: Tensor) -> Tensor:
            logits = self.logits(self._dropout(self.norm(x), seed, f"output {index}"))
            return summed_cross_entropy(logits, pieces[index])

        if self.config.reversible:
            owners = [self.norm, self.embedding if self.head is None else self.head]
            parameters = [parameter for owner in owners for parameter in owner.parameters()]
            total = self.stack.loss(x, loss_of, parameters, chunk_length, key_padding_mask, seed, fixed_draws)
        else:
            x = self.stack(x, key_padding_mask, seed, fixed_draws)
            losses = [recompute(partial(loss_of, i), piece) for i, piece in enumerate(x.split(chunk_length, dim=1))]
            total = torch.stack(losses).sum()
        return total / (targets != IGNORED).sum().clamp(min=1)

    def with_config(self, **changes: Any) -> "ReformerLM":
        """Return a model with changed fields that shares this one's parameters, for example other hash rounds.

        A UserError names the parameter that the changed model would need otherwise.
        """
        other = ReformerLM(self.config.replace(**changes), seed=None)
        ours = dict(self.named_parameters())
        theirs = dict(other.named_parameters())
        for name in sorted(ours.keys() ^ theirs.keys()):
            raise UserError(f"changing {', '.join(changes)} would need other parameters: {name} has no counterpart")
        for name, parameter in theirs.items():
            if parameter.shape != ours[name].shape:
                raise UserError(
                    f"changing {', '.join(changes)} would need {name} of shape {tuple(parameter.shape)}, "
                    f"not {tuple(ours[name].shape)}"
                )
            owner, _, attribute = name.rpartition(".")
            setattr(other.get_submodule(owner), attribute, ours[name])
        return other.train(self.training)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`, which is made if it is missing."""
        write_model(Path(folder), self.config.to_dict(), self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ReformerLM":
        """Read what `save_pretrained` wrote. A UserError names a missing or damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing: {folder} is not a folder that save_pretrained wrote")
        try:
            fields = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            weights = load_file(folder / WEIGHTS_FILE)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, SafetensorError) as error:
            raise UserError(f"{folder} holds a damaged model ({error}): save it again") from None
        if not isinstance(fields, dict):
            raise UserError(f"{folder / CONFIG_FILE} must hold a JSON object: save the model again")
        config = ReformerConfig.from_dict(fields)
        if config.num_layers > len(weights):
            raise UserError(f"{folder / WEIGHTS_FILE} holds {len(weights)} tensors, {folder / CONFIG_FILE} asks for "
                            f"{config.num_layers:,} layers: save the model again")
        try:
            model = cls(config, seed=None)
            model.load_state_dict(weights, assign=True)
        except UserError:
            raise
        except (RuntimeError, TypeError, OverflowError, ValueError) as error:  # sizes beyond torch's, other tensors
            raise UserError(f"{folder / WEIGHTS_FILE} does not fit {folder / CONFIG_FILE}: {error}") from None
        return model

    def _forward_seed(self, generator: torch.Generator | None) -> tuple[int, bool]:
        """Return the seed of all draws of this call, and whether it is the same at every call."""
        if generator is not None:
            return draw_seed(generator), False
        if not self.training:
            return 0, True
        return self._call_seeds.next(), False

    def _dropout(self, x: Tensor, seed: int, place: str) -> Tensor:
        if not self.training or self.config.dropout == 0:
            return x
        generator = torch.Generator(x.device).manual_seed(derive_seed(seed, "dropout", place))
        return dropout(x, self.config.dropout, generator)

    def _check(self, tokens: Tensor, targets: Tensor | None, key_padding_mask: Tensor | None) -> None:
        if tokens.dim() != 2 or tokens.shape[0] < 1 or not 1 <= tokens.shape[1] <= self.config.max_length:
            raise UserError(
                f"tokens of shape {tuple(tokens.shape)}: expected (batch, length) with a length of 1 to "
                f"max_length={self.config.max_length}"
            )
        for name, other in (("targets", targets), ("key_padding_mask", key_padding_mask)):
            if other is not None and other.shape != tokens.shape:
                raise UserError(f"{name} of shape {tuple(other.shape)}: expected that of tokens, {tuple(tokens.shape)}")
        if key_padding_mask is not None and key_padding_mask.dtype != torch.bool:
            raise UserError(f"key_padding_mask of {key_padding_mask.dtype}: expected torch.bool, True = padding; for an "
                            "attention mask of transformers, which has 0 there, pass mask == 0")
        self._check_tokens(tokens if key_padding_mask is None else tokens.masked_fill(key_padding_mask, START_TOKEN))
        if targets is not None:
            self._check_tokens(targets.masked_fill(targets == IGNORED, START_TOKEN), "target")

    def _check_tokens(self, tokens: Tensor, name: str = "token") -> None:
        if tokens.dtype != torch.int64:
            raise UserError(f"{name}s of {tokens.dtype}: expected torch.int64, as of {name}s.long()")
        # On another device asking would wait for it; in a graph there is nothing to ask.
        if tokens.numel() and tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            least, most = int(tokens.min()), int(tokens.max())
            if least < 0 or most >= self.config.vocab_size:
                wrong = least if least < 0 else most
                known = f"0..{self.config.vocab_size - 1}" + (f" ({IGNORED}: not counted)" if name == "target" else "")
                raise UserError(f"{name} {wrong} is not in {known}: raise vocab_size or mend the data")


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors into `folder`, which is made if it is missing."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _positions(config: ReformerConfig) -> Positions | None:
    if config.positions == "axial":
        assert config.axial_shape is not None  # checked by the configuration
        assert config.axial_dims is not None
        return AxialPositions(config.axial_shape, config.axial_dims)
    if config.positions == "learned":
        return LearnedPositions(config.max_length, config.d_model)
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.d_model)
    return None


def _attention(config: ReformerConfig, kind: AttentionKind) -> SelfAttention:
    shape = (config.d_model, config.num_heads, config.d_head)
    if kind == "full":
        return FullSelfAttention(
            *shape, shared_qk=config.shared_qk, causal=config.causal, dropout=config.attention_dropout,
            key_scale=config.key_scale, self_attention=config.self_attention,
        )  # fmt: skip
    if kind == "local":
        return LocalSelfAttention(
            *shape, chunk_length=config.local_chunk_length, chunks_before=config.local_chunks_before,
            chunks_after=config.local_chunks_after, causal=config.causal, wrap_around=config.wrap_around,
            dropout=config.attention_dropout if config.local_attention_dropout is None else config.local_attention_dropout,
        )  # fmt: skip
    return LSHSelfAttention(
        *shape, num_hashes=config.num_hashes, num_buckets=config.num_buckets, chunk_length=config.chunk_length,
        chunks_before=config.chunks_before, chunks_after=config.chunks_after, causal=config.causal,
        coverage=config.coverage, cross_bucket=config.cross_bucket, correct_duplicates=config.correct_duplicates,
        key_scale=config.key_scale, wrap_around=config.wrap_around, key_epsilon=config.key_epsilon,
        dropout=config.attention_dropout, share_rotations=config.share_rotations, backend=config.lsh_backend,
    )  # fmt: skip


def _layer(config: ReformerConfig, kind: AttentionKind) -> TransformerLayer:
    feed_forward = ChunkedFeedForward(
        config.d_model, config.d_ff, activation=config.activation, dropout=config.dropout,
        chunk_length=config.ff_chunk_length,
    )  # fmt: skip
    return TransformerLayer(
        *(
            PreNorm(
                function, config.d_model, dropout=config.dropout, layer_norm_eps=config.layer_norm_eps,
                heads_at_once=config.heads_at_once, chunk_length=config.projection_chunk_length,
            )
            for function in (_attention(config, kind), feed_forward)
        )
    )
