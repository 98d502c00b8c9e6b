"""LSH attention (paper, section 2): the public function and the choice of a backend. The mathematics: README.md."""

from typing import NamedTuple

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.hashing import bucket_factors, check_rotations, default_num_buckets, draw_rotations
from reformer_lab.ops.lsh_attention import operator, reference
from reformer_lab.ops.lsh_attention.operator import BACKENDS as BACKENDS
from reformer_lab.ops.lsh_attention.operator import choose_backend as choose_backend
from reformer_lab.ops.lsh_attention.operator import unusable as unusable
from reformer_lab.ops.lsh_attention.options import LSHOptions
from reformer_lab.ops.random import draw_seed
from reformer_lab.ops.softmax import check_attention_inputs

PRESETS: dict[str, dict[str, object]] = {
    "paper": {"cross_bucket": False, "correct_duplicates": True},
    "trax_v1": {"cross_bucket": True, "correct_duplicates": True},
    "trax_v2": {"cross_bucket": True, "correct_duplicates": False, "wrap_rounds": True, "key_epsilon": 1e-6},
    "huggingface": {"cross_bucket": True, "correct_duplicates": False, "wrap_rounds": True, "key_epsilon": 1e-6},
}
"""Options of the historic implementations; `trax_v1` apart from its look-back from one round into another, which is done
here only where duplicates are not corrected. `lsh_attention(qk, v, **PRESETS["trax_v2"])`."""


class LSHAttentionResult(NamedTuple):
    """What `lsh_attention` returns. output (B, H, L, D_v); logsumexp (B, H, L), fp32 or better; buckets (B, H, R, L)."""

    output: Tensor
    logsumexp: Tensor
    buckets: Tensor


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    *,
    num_hashes: int = 4,
    num_buckets: int | tuple[int, ...] | None = None,
    chunk_length: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool = True,
    key_padding_mask: Tensor | None = None,
    coverage: str = "chunk",
    cross_bucket: bool = False,
    correct_duplicates: bool = True,
    key_scale: str = "unit",
    wrap_rounds: bool = False,
    key_epsilon: float = 0.0,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    rotations: Tensor | None = None,
    buckets: Tensor | None = None,
    backend: str = "auto",
) -> LSHAttentionResult:
    """Attend to the tokens that share a hash bucket with the query (paper, section 2 and appendix A).

    Args:
        qk: shared queries and keys (batch, heads, length, d_head), of any length >= 1, fp64, fp32, bf16 or fp16.
        v: values (batch, heads, length, d_value).
        num_hashes: hash rounds; the sets of the rounds are united.
        num_buckets: an even number, a tuple of even factors (the first is the least significant digit of a bucket id),
            or None for `default_num_buckets`.
        chunk_length: sorted tokens in a chunk.
        chunks_before, chunks_after: chunks that a chunk sees besides itself. Never those of another round, but for
            `wrap_rounds`.
        causal: see no later token.
        key_padding_mask: (batch, length) bool, True = padding. Such a token sees nothing and is seen by nothing.
        coverage: "chunk", the paper's windows of sorted chunks; "bucket", the whole bucket, exactly. Then, with given
            `num_buckets` and rotations, chunk settings change no result and no output depends on later tokens.
        cross_bucket: see the whole window instead of the same bucket alone.
        correct_duplicates: count a pair that several rounds find once (log N_ij of appendix A), instead of as often.
        key_scale: the logit is q . k/|k| ("unit"), or that over sqrt(d_head) ("unit_over_sqrt_d").
        wrap_rounds: let the chunks of all rounds form one circle, so that the first chunk of a round sees the last one of
            the round before, as trax from 2020 and transformers do. Needs cross_bucket and no correction of duplicates; here to
            compare converted checkpoints, in the backends "reference" and "torch" alone.
        key_epsilon: added to the mean square of a key before it is brought to unit length; likewise.
        dropout_p: probability to drop a weight; a pair is dropped or kept in all rounds alike.
        generator: source of rotations and dropout. None: one seeded with 0, so that equal calls give equal results. The
            global generator is never used. A host generator avoids a synchronisation with the GPU.
        rotations: (batch or 1, heads or 1, d_head, num_hashes, half the sum of the factors), instead of drawn ones.
        buckets: (batch, heads, num_hashes, length) int64, ids from 0 to 2^31 - 1, instead of hashing: replays an earlier
            result.
        backend: a name in `BACKENDS`, or "auto": "native" on a CPU and "triton" on a GPU where they can be
            used, otherwise "torch".

    A token attends to itself only if it can see nothing else in any round; a row that sees nothing at all gives output 0
    and logsumexp -inf. Softmax and logsumexp are computed in fp32 or better.

    Raises:
        UserError: (a ValueError) names the value that cannot be used and the remedy.
    """
    check_attention_inputs({"qk": qk}, v, key_padding_mask, dropout_p)
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"backend={backend!r}: must be auto or one of {', '.join(BACKENDS)}")
    batch, heads, length, d_head = qk.shape
    given = buckets if buckets is not None else rotations
    rounds_at = 2 if buckets is not None else 3
    if given is not None and given.dim() > rounds_at and given.shape[rounds_at] != num_hashes:
        raise UserError(f"num_hashes={num_hashes}, but the given buckets or rotations hold {given.shape[rounds_at]} rounds")
    options = LSHOptions(
        num_hashes=num_hashes, chunk_length=chunk_length, chunks_before=chunks_before, chunks_after=chunks_after,
        causal=causal, coverage=coverage, cross_bucket=cross_bucket, correct_duplicates=correct_duplicates,
        logit_scale=_logit_scale(key_scale, d_head), dropout_p=dropout_p, wrap_rounds=wrap_rounds, key_epsilon=key_epsilon,
    )  # fmt: skip
    if num_buckets is None:
        num_buckets = default_num_buckets(length, chunk_length)
    bucket_factors(num_buckets)  # a wrong number is an error even where buckets are given
    if generator is None and (dropout_p > 0 or (buckets is None and rotations is None)):
        generator = torch.Generator().manual_seed(0)
    if buckets is None:
        if rotations is None:
            assert generator is not None
            rotations = draw_rotations(batch, heads, d_head, num_hashes, num_buckets, generator)
        buckets = lsh_buckets(qk, rotations, num_buckets, backend=backend)
    elif buckets.shape != (batch, heads, num_hashes, length) or buckets.dtype != torch.int64:
        raise UserError(
            f"buckets of shape {tuple(buckets.shape)}, {buckets.dtype}: "
            f"expected {(batch, heads, num_hashes, length)}, torch.int64"
        )
    buckets = buckets.to(qk.device)
    if dropout_p > 0:
        assert generator is not None
        options = options.with_dropout_seed(draw_seed(generator))

    padding = None
    if key_padding_mask is not None:
        padding = key_padding_mask
        hidden = padding[:, None, :, None]
        qk, v = qk.masked_fill(hidden, 0), v.masked_fill(hidden, 0)  # not even a NaN comes through
    if backend == "reference":
        with torch.autocast(qk.device.type, enabled=False):
            output, logsumexp = reference.attend(qk, v, buckets, padding, options)
    else:
        output, logsumexp = operator.attend(backend, qk, v, buckets, padding, options)
    return LSHAttentionResult(output, logsumexp, buckets)


def lsh_buckets(
    x: Tensor, rotations: Tensor, num_buckets: int | tuple[int, ...], *, backend: str = "auto"
) -> Tensor:
    """Return bucket ids (B, H, R, L), int64, of raw vectors x (B, H, L, D): `ops.hashing.hash_vectors` by the backend.

    Backends round sums differently, so a vector on the border of two buckets may go to either.
    """
    factors = bucket_factors(num_buckets)
    check_rotations(x, rotations, factors)
    return operator.hash_vectors(backend, x, rotations, factors)


def _logit_scale(key_scale: str, d_head: int) -> float:
    if key_scale == "unit":
        return 1.0
    if key_scale == "unit_over_sqrt_d":
        return d_head**-0.5
    raise UserError(f"key_scale={key_scale!r}: must be 'unit' or 'unit_over_sqrt_d'")
