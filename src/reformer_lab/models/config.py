"""The configuration of one model: every rung of the ablation ladder is a value of this class.

Free of torch, so that the command line can list and check configurations at once.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from reformer_lab.errors import UserError

AttentionKind = Literal["full", "local", "lsh"]
PositionKind = Literal["axial", "learned", "sinusoidal", "none"]


SWITCHES = (
    "causal", "shared_qk", "cross_bucket", "correct_duplicates", "share_rotations", "wrap_around", "reversible",
    "tie_embeddings",
)  # fmt: skip
"""Fields that are True or False; nothing else that Python would take for either."""
MOST_LAYERS = 10_000
"""More than anybody trains; a file that asks for more is not worth the memory of its list of layers."""
ADDED_FIELDS = (
    "projection_chunk_length", "heads_at_once", "wrap_around", "key_epsilon", "local_attention_dropout", "shift",
)  # fmt: skip
"""Left out where they have their default: a run that was recorded before they existed keeps its identity."""
NUMERICS: dict[str, dict[str, Any]] = {
    "paper": {},
    "trax_v1": {"cross_bucket": True},
    "trax_v2": {"cross_bucket": True, "correct_duplicates": False, "wrap_around": True, "key_epsilon": 1e-6},
    "huggingface": {
        "cross_bucket": True, "correct_duplicates": False, "wrap_around": True, "key_epsilon": 1e-6, "share_rotations": True,
        "layer_norm_eps": 1e-12, "shift": "targets",
    },
}  # fmt: skip
"""The arithmetic of the historic implementations (PAPER section 2): `config.replace(**NUMERICS["huggingface"])`."""


@dataclass(frozen=True, kw_only=True)
class ReformerConfig:
    """Shape and arithmetic of a `ReformerLM`. Lengths are in tokens; every field is checked here, once."""

    vocab_size: int = 258
    """Number of token ids. Bytes + 2 by default: 0 is padding and the first input, 1 is end of sequence."""
    d_model: int = 256
    """Width of each residual stream."""
    d_ff: int = 1024
    """Width of the feed-forward layer."""
    num_layers: int = 3
    """Number of (attention, feed-forward) pairs."""
    num_heads: int = 4
    """Attention heads of each layer."""
    d_head: int = 64
    """Width of queries, keys and values of one head. The heads need not add up to d_model."""
    max_length: int = 2048
    """Longest sequence that the model takes; shorter ones need no padding."""

    attention: tuple[AttentionKind, ...] = ("lsh",)
    """Kinds of attention, repeated over the layers: ("local", "lsh") alternates."""
    causal: bool = True
    """Language model (True) or bidirectional encoder (False)."""
    shared_qk: bool = True
    """Full-attention layers use one projection for queries and keys, with unit-length keys (paper, section 2).
    LSH layers always share; local layers never do, as in the authors' code."""
    self_attention: Literal["last_resort", "allowed"] = "last_resort"
    """Shared-QK full attention: "last_resort" is LSH attention's rule (unit keys, a token sees itself only if it can see
    nothing else); "allowed" is the authors' full attention at evaluation (raw keys, 1/sqrt(d), itself allowed)."""

    num_hashes: int = 4
    """Hash rounds of LSH attention."""
    num_buckets: int | tuple[int, ...] | None = None
    """Buckets of one round: an even number, a tuple of even factors, or None for 2 * length / chunk_length."""
    chunk_length: int = 64
    """Chunk of sorted tokens in LSH attention."""
    chunks_before: int = 1
    """Earlier chunks that a chunk sees in LSH attention."""
    chunks_after: int = 0
    """Later chunks that a chunk sees in LSH attention."""
    coverage: Literal["chunk", "bucket"] = "chunk"
    """"chunk": the paper's windows; "bucket": the whole bucket, exactly, which makes a causal model strictly causal where
    num_buckets is given: the default number follows the length."""
    cross_bucket: bool = False
    """See every token of the window, not the same bucket's alone (the authors' code from November 2019)."""
    correct_duplicates: bool = True
    """Count a pair found by several rounds once (the paper's log N_ij)."""
    key_scale: Literal["unit", "unit_over_sqrt_d"] = "unit"
    """Logit of shared queries and keys: q . k/|k| (the authors), or that over sqrt(d) (reformer-pytorch)."""
    wrap_around: bool = False
    """LSH and local attention: windows reach around from the first chunk to the last, over all hash rounds, as in trax from
    2020 and in transformers. For converted checkpoints; the fast backends do not have it."""
    key_epsilon: float = 0.0
    """LSH attention: added to the mean square of a key before it is brought to unit length; likewise."""
    share_rotations: bool = False
    """One set of hash rotations for all examples of a batch instead of one for each."""
    lsh_backend: str = "auto"
    """Backend of `ops.lsh_attention`: "auto", "reference", "torch", "native", "triton"."""

    local_chunk_length: int = 64
    """Chunk of local attention."""
    local_chunks_before: int = 1
    """Earlier chunks that a chunk sees in local attention."""
    local_chunks_after: int = 0
    """Later chunks that a chunk sees in local attention."""

    reversible: bool = True
    """Recompute activations in the backward pass instead of storing them. False: the same arithmetic, stored."""
    residual_streams: Literal[1, 2] = 2
    """2: the reversible network's two streams (paper, section 3). 1: the regular Transformer, never reversible."""

    positions: PositionKind = "learned"
    """Position embeddings."""
    axial_shape: tuple[int, ...] | None = None
    """Sides of the axial position grid; their product is at least max_length."""
    axial_dims: tuple[int, ...] | None = None
    """Widths of the axial tables, one a side; they add up to d_model."""

    dropout: float = 0.0
    """Dropout after the embedding, after each attention and feed-forward layer, inside the feed-forward layer and before
    the output layer."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    local_attention_dropout: float | None = None
    """That of local attention; None: attention_dropout."""
    activation: Literal["relu", "gelu", "fast_gelu"] = "relu"
    """Non-linearity of the feed-forward layer. "fast_gelu": trax's FastGelu, the approximation by tanh."""
    layer_norm_eps: float = 1e-6
    """Epsilon of every layer norm."""
    shift: Literal["inputs", "targets"] = "inputs"
    """A causal model sees the tokens before a position and predicts the one there: "inputs". "targets": it sees the one there
    too and predicts the next, as transformers' do; then nothing predicts the first token."""
    tie_embeddings: bool = False
    """Use the embedding table, over sqrt(d_model), as the output matrix too (of both streams alike)."""

    ff_chunk_length: int | None = None
    """Positions that the feed-forward layer computes at once, forward and backward. None: all."""
    projection_chunk_length: int | None = None
    """Positions that the projections of a reversible model's attention compute at once. None: all. In pieces, the backward
    pass computes those before the attention once more."""
    heads_at_once: int | None = None
    """Heads whose attention a reversible model computes at once. None: all."""
    loss_chunk_length: int | None = None
    """Positions whose logits exist at once when a call with targets computes the loss; it returns no logits then. None: all."""

    def __post_init__(self) -> None:
        for name in ("attention", "axial_shape", "axial_dims", "num_buckets"):
            if isinstance(getattr(self, name), list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.attention, str):
            object.__setattr__(self, "attention", (self.attention,))
        positive = (
            "vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "d_head", "max_length", "num_hashes", "chunk_length",
            "local_chunk_length",
        )  # fmt: skip
        for name in positive:
            self._require(is_whole(getattr(self, name), 1), name, "must be a whole number of at least 1")
        self._require(self.num_layers <= MOST_LAYERS, "num_layers", f"must be at most {MOST_LAYERS:,}")
        for name in ("chunks_before", "chunks_after", "local_chunks_before", "local_chunks_after"):
            self._require(is_whole(getattr(self, name), 0), name, "must be a whole number, not negative")
        for name in ("ff_chunk_length", "projection_chunk_length", "heads_at_once", "loss_chunk_length"):
            value = getattr(self, name)
            self._require(value is None or is_whole(value, 1), name, "must be a whole number of at least 1, or None")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            self._require(isinstance(value, (int, float)) and 0 <= value < 1, name, "must be a number in [0, 1)")
        local = self.local_attention_dropout
        allowed_local = local is None or (isinstance(local, (int, float)) and 0 <= local < 1)
        self._require(allowed_local, "local_attention_dropout", "must be a number in [0, 1), or None")
        key_epsilon, epsilon = self.key_epsilon, self.layer_norm_eps
        allowed_epsilon = isinstance(key_epsilon, (int, float)) and 0 <= key_epsilon < math.inf
        self._require(allowed_epsilon, "key_epsilon", "must be a number, at least 0")
        positive_epsilon = isinstance(epsilon, (int, float)) and 0 < epsilon < math.inf
        self._require(positive_epsilon, "layer_norm_eps", "must be a positive number")
        for name in SWITCHES:
            self._require(isinstance(getattr(self, name), bool), name, "must be True or False")
        self._require(isinstance(self.lsh_backend, str), "lsh_backend", "must be the name of a backend, or auto")
        choices: dict[str, tuple[object, ...]] = {
            "positions": ("axial", "learned", "sinusoidal", "none"),
            "self_attention": ("last_resort", "allowed"),
            "coverage": ("chunk", "bucket"),
            "key_scale": ("unit", "unit_over_sqrt_d"),
            "activation": ("relu", "gelu", "fast_gelu"),
            "residual_streams": (1, 2),
            "shift": ("inputs", "targets"),
        }
        for name, allowed in choices.items():
            self._require(getattr(self, name) in allowed, name, f"must be one of {', '.join(map(str, allowed))}")
        self._require(len(self.attention) >= 1, "attention", "needs at least one kind")
        for kind in self.attention:
            self._require(kind in ("full", "local", "lsh"), "attention", "may hold full, local and lsh only")
        self._check_buckets()
        self._check_positions()
        if self.coverage == "bucket" and self.cross_bucket:
            raise UserError("cross_bucket=True has no meaning with coverage='bucket': drop one of the two")
        hashing = "lsh" in self.layer_kinds()
        if self.wrap_around and hashing and (self.correct_duplicates or not self.cross_bucket):
            raise UserError("wrap_around=True needs cross_bucket=True and correct_duplicates=False: no other code ever had it")
        if self.reversible and self.residual_streams == 1:
            raise UserError("reversible=True needs residual_streams=2: a single stream cannot be inverted")

    def _require(self, condition: bool, name: str, remedy: str) -> None:
        if not condition:
            raise UserError(f"{name}={getattr(self, name)!r}: {remedy}")

    def _check_buckets(self) -> None:
        if self.num_buckets is None:
            return
        factors = self.num_buckets if isinstance(self.num_buckets, tuple) else (self.num_buckets,)
        even = len(factors) >= 1 and all(is_whole(factor, 2) and factor % 2 == 0 for factor in factors)
        self._require(even, "num_buckets", "must be a positive even number, or a tuple of such factors")

    def _check_positions(self) -> None:
        if self.positions != "axial":
            return
        if self.axial_shape is None or self.axial_dims is None:
            raise UserError("positions='axial' needs axial_shape and axial_dims, for example (32, 64) and (64, 192)")
        if len(self.axial_shape) != len(self.axial_dims):
            raise UserError(f"axial_shape={self.axial_shape} and axial_dims={self.axial_dims} must be equally long")
        for name in ("axial_shape", "axial_dims"):
            sides = getattr(self, name)
            self._require(all(is_whole(side, 1) for side in sides), name, "must hold whole numbers of at least 1")
        places = math.prod(self.axial_shape)
        self._require(
            places >= self.max_length,
            "axial_shape",
            f"has {places} places, too few for max_length={self.max_length}: enlarge a side",
        )
        self._require(
            sum(self.axial_dims) == self.d_model,
            "axial_dims",
            f"adds up to {sum(self.axial_dims)}, must add up to d_model={self.d_model}",
        )

    def layer_kinds(self) -> tuple[AttentionKind, ...]:
        """Return the kind of attention of each layer."""
        return tuple(self.attention[i % len(self.attention)] for i in range(self.num_layers))

    def continues_exactly(self) -> bool:
        """Say whether `ReformerLM.step` gives what `forward` gives to the last token of the text so far, to rounding.

        Not where a later token changes what an earlier one sees and another layer has used that already: below the last layer,
        LSH attention by chunks, and local attention that counts keys around the corner. Nor where the number of buckets follows
        the length.
        """
        kinds = self.layer_kinds()
        moving = {"lsh"} if self.coverage == "chunk" else set()
        if self.wrap_around and (self.local_chunks_before > 1 or self.local_chunks_after > 0):
            moving.add("local")
        return moving.isdisjoint(kinds[:-1]) and not ("lsh" in kinds and self.num_buckets is None)

    def replace(self, **changes: Any) -> "ReformerConfig":
        """Return a copy with some fields changed, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if not (name in ADDED_FIELDS and value == type(self).__dataclass_fields__[name].default)
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ReformerConfig":
        """Read what `to_dict` wrote; an unknown field is an error that names it."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise UserError(f"unknown model field {unknown[0]!r}; known: {', '.join(cls.__dataclass_fields__)}")
        try:
            return cls(**fields)
        except (TypeError, AttributeError, OverflowError) as error:  # JSON may hold anything under a name
            raise UserError(f"a field of the model's configuration is of the wrong kind ({error}): write it again") from None


def is_whole(value: object, least: int) -> bool:
    """Whether a field is a whole number, at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
