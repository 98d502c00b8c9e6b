"""Angular locality-sensitive hashing (paper, section 2; Andoni et al., 2015).

B batch, H heads, L length, D width of a head, R hash rounds, F columns of a rotation: half the sum of the factors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reformer_lab.errors import UserError

MAX_UNFACTORED_BUCKETS = 128


def default_num_buckets(length: int, chunk_length: int) -> int | tuple[int, int]:
    """Return twice as many buckets as chunks, as two even factors above 128 (the authors' rule).

    >>> default_num_buckets(1024, 32), default_num_buckets(65536, 64)
    (64, (64, 32))
    """
    num_buckets = 2 * max(1, length // chunk_length)
    if num_buckets <= MAX_UNFACTORED_BUCKETS:
        return num_buckets
    first = 2 ** math.ceil(math.log2(math.sqrt(num_buckets)))
    return first, 2 * (num_buckets // (2 * first))


def bucket_factors(num_buckets: int | Sequence[int]) -> tuple[int, ...]:
    """Return the factors of `num_buckets`, each checked: a UserError names a number that is odd or not positive."""
    factors = tuple(num_buckets) if isinstance(num_buckets, Sequence) else (int(num_buckets),)
    if not factors or any(factor < 2 or factor % 2 for factor in factors):
        raise UserError(f"num_buckets={num_buckets!r}: must be a positive even number, or a tuple of such factors")
    return factors


def rotations_shape(
    batch: int, heads: int, d_head: int, num_hashes: int, num_buckets: int | Sequence[int]
) -> tuple[int, int, int, int, int]:
    """Return (batch, heads, d_head, num_hashes, half the sum of the factors)."""
    return batch, heads, d_head, num_hashes, sum(bucket_factors(num_buckets)) // 2


def draw_rotations(
    batch: int,
    heads: int,
    d_head: int,
    num_hashes: int,
    num_buckets: int | Sequence[int],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw normal rotations (batch, heads, d_head, num_hashes, half the sum of the factors) on the generator's device."""
    shape = rotations_shape(batch, heads, d_head, num_hashes, num_buckets)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)


def check_rotations(x: Tensor, rotations: Tensor, factors: tuple[int, ...]) -> None:
    """Raise a UserError unless the rotations fit vectors x (B, H, L, D) and the factors."""
    batch, heads, _, width = x.shape
    columns = sum(factors) // 2
    fits = rotations.dim() == 5 and (rotations.shape[2], rotations.shape[4]) == (width, columns)
    if not fits or rotations.shape[0] not in (1, batch) or rotations.shape[1] not in (1, heads):
        raise UserError(
            f"rotations of shape {tuple(rotations.shape)} do not fit vectors of shape {tuple(x.shape)} and "
            f"num_buckets={factors}: expected ({batch} or 1, {heads} or 1, {width}, rounds, {columns})"
        )


def hash_vectors(x: Tensor, rotations: Tensor, num_buckets: int | Sequence[int]) -> Tensor:
    """Return bucket ids (B, H, R, L), int64, of raw vectors x (B, H, L, D).

    A factor's digit is the argmax of [x R ; -x R] over its own columns, the first index winning ties; the first factor
    is the least significant digit. `rotations`: (B or 1, H or 1, D, R, F).
    """
    factors = bucket_factors(num_buckets)
    check_rotations(x, rotations, factors)
    dtype = torch.promote_types(x.dtype, torch.float32)
    x_BHLD, rotations = x.detach().to(dtype), rotations.detach().to(x.device, dtype)
    rounds = []
    with torch.autocast(x.device.type, enabled=False):  # half precision would move vectors to other buckets
        for round_rotations_BHDF in rotations.unbind(3):  # one round at a time: all of them need L x R x F numbers
            bucket_BHL = torch.zeros(x.shape[:3], dtype=torch.int64, device=x.device)
            radix, column = 1, 0
            for factor in factors:
                projected = x_BHLD @ round_rotations_BHDF[..., column : column + factor // 2]
                bucket_BHL += radix * _argmax_of_both_signs(projected)
                radix, column = radix * factor, column + factor // 2
            rounds.append(bucket_BHL)
    return torch.stack(rounds, dim=2)


def hash_few(x: Tensor, rotations: Tensor, num_buckets: int | Sequence[int]) -> Tensor:
    """Return what `hash_vectors` does, with all rounds at once: for few vectors, where each call of torch counts."""
    factors = bucket_factors(num_buckets)
    check_rotations(x, rotations, factors)
    dtype = torch.promote_types(x.dtype, torch.float32)
    rotations = rotations.detach().to(x.device, dtype)
    with torch.autocast(x.device.type, enabled=False):
        projected_BHLRF = (x.detach().to(dtype) @ rotations.flatten(3)).unflatten(-1, rotations.shape[3:])
        digits = [_argmax_of_both_signs(part) for part in projected_BHLRF.split([factor // 2 for factor in factors], dim=-1)]
    bucket, radix = digits[0], factors[0]
    for digit, factor in zip(digits[1:], factors[1:], strict=True):
        bucket, radix = bucket + radix * digit, radix * factor
    return bucket.transpose(2, 3)


def _argmax_of_both_signs(x: Tensor) -> Tensor:
    """Return argmax([x ; -x]) over the last dimension without writing the concatenation."""
    high, high_at = x.max(-1)
    low, low_at = x.min(-1)
    # An equal magnitude goes to the positive half, whose indices come first.
    return torch.where(high >= -low, high_at, low_at + x.shape[-1])
