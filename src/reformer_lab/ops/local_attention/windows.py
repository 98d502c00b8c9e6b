"""The torch backend of local attention: windows of keys are copied out, and torch's own kernel attends within them.

B batch, H heads, L length, D width, C chunks of M positions, W chunks in a window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from reformer_lab.ops.chunking import recompute
from reformer_lab.ops.local_attention.options import LocalOptions
from reformer_lab.ops.memory import empty_rows
from reformer_lab.ops.random import keep_pairs
from reformer_lab.ops.softmax import accumulation_dtype, masked_attention

# Positions of a piece: windows, masks and what torch's kernel keeps are there for one piece at a time.
PIECE_LENGTH = 2048


class _Piece(NamedTuple):
    """Positions of some whole chunks, and of the keys that they see. `length`: that of the sequence."""

    query_start: int
    query_end: int
    key_start: int
    key_end: int
    length: int


@dataclass(frozen=True)
class _Windows:
    """Who sees whom, and the attention of one piece of the sequence."""

    options: LocalOptions
    padding: Tensor | None

    def pieces(self, length: int) -> list[_Piece]:
        """Cut the positions into pieces of about PIECE_LENGTH."""
        chunk_length = self.options.chunk_length
        step = max(1, PIECE_LENGTH // chunk_length) * chunk_length
        before, after = self.options.chunks_before * chunk_length, self.options.chunks_after * chunk_length
        ends = [(start, min(start + step, length)) for start in range(0, length, step)]
        return [_Piece(start, end, max(0, start - before), min(length, end + after), length) for start, end in ends]

    def attend(self, piece: _Piece, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output (B, H, queries, D_v) of the piece's q (B, H, queries, D), k and v (B, H, keys, ...)."""
        batch, heads, queries, _ = q.shape
        options = self.options
        chunk_length, length = options.chunk_length, piece.length
        chunks = -(-queries // chunk_length)
        fill = chunks * chunk_length - queries
        before, after = options.chunks_before * chunk_length, options.chunks_after * chunk_length
        # Zeros where windows reach beyond the sequence.
        missing_before = before - (piece.query_start - piece.key_start)
        missing_after = after + fill - (piece.key_end - piece.query_end)

        def windows(x: Tensor) -> Tensor:
            """Return (B, H, C, W * M, ...) of x (B, H, keys, ...)."""
            x = functional.pad(x, (0, 0, missing_before, missing_after))
            return x.unfold(2, before + chunk_length + after, chunk_length).transpose(-1, -2)

        q_BHCMD = functional.pad(q, (0, 0, 0, fill)).unflatten(2, (chunks, chunk_length))
        k_BHCND, v_BHCND = windows(k), windows(v)
        query_at = piece.query_start + torch.arange(chunks * chunk_length, device=q.device).view(chunks, chunk_length, 1)
        first_key_at = query_at[:, :1] - before
        key_at = first_key_at + torch.arange(before + chunk_length + after, device=q.device)
        visible = (key_at >= 0) & (key_at < length)
        visible = visible & (key_at <= query_at) if options.causal else visible.expand(-1, chunk_length, -1)
        visible = visible[None, None]
        padded_query = None
        if self.padding is not None:
            mask = self.padding
            there = (~mask[:, piece.key_start : piece.key_end]).to(q.dtype)[:, None, :, None]
            visible = visible & (windows(there).transpose(-1, -2) > 0)
            padded_query = functional.pad(mask[:, piece.query_start : piece.query_end], (0, fill))
            padded_query = padded_query.view(batch, 1, chunks, chunk_length, 1)

        if options.dropout_p == 0.0:
            # Sequences as the batch and chunks as the heads: torch's kernel keeps no scores. A padded query, which may see
            # nothing, looks at everything instead, and is erased below.
            if padded_query is not None:
                visible = (visible | padded_query).expand(-1, heads, -1, -1, -1)
            output = functional.scaled_dot_product_attention(
                q_BHCMD.flatten(0, 1), k_BHCND.flatten(0, 1), v_BHCND.flatten(0, 1), attn_mask=visible.flatten(0, 1)
            ).unflatten(0, (batch, heads))
        else:
            row = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1, 1)
            keep = keep_pairs(options.dropout_seed, row, query_at, key_at, options.dropout_p)
            dtype = accumulation_dtype(q.dtype)
            logits = (q_BHCMD.to(dtype) * q.shape[-1] ** -0.5) @ k_BHCND.to(dtype).transpose(-1, -2)
            output = masked_attention(logits, v_BHCND.to(dtype), visible, keep, options.dropout_p)[0].to(v.dtype)
        if padded_query is not None:
            output = output.masked_fill(padded_query, 0)
        return output.flatten(2, 3)[:, :, :queries]


class _InPieces(torch.autograd.Function):
    """The attention of one piece after another: the windows of one piece alone are ever in memory."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, windows: _Windows, pieces: list[_Piece]) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.windows, ctx.pieces = windows, pieces
        return _in_pieces(windows, pieces, q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(attend: Callable[..., Tensor], inputs: list[Tensor], d_output: Tensor) -> tuple[Tensor, ...]:
            inputs = [x.detach().requires_grad_() for x in inputs]
            with torch.enable_grad(), torch.autocast(d_output.device.type, enabled=False):
                return torch.autograd.grad(attend(*inputs), inputs, d_output)

        return *_sum_of_pieces(gradients, ctx.windows, ctx.pieces, ctx.saved_tensors, d_output), None, None


def attend(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, options: LocalOptions) -> Tensor:
    """Return the output (B, H, L, D_v), which autograd can go through. padding (B, L) or None."""
    windows = _Windows(options, padding)
    pieces = windows.pieces(q.shape[2])
    inputs = _without_padding(padding, q, k, v)
    with torch.autocast(q.device.type, enabled=False):
        if len(pieces) > 1:
            return _InPieces.apply(*inputs, windows, pieces)
        whole = partial(windows.attend, pieces[0])
        # With dropout the scores are torch tensors, which autograd would keep.
        return whole(*inputs) if options.dropout_p == 0.0 else recompute(whole, *inputs)


def forward(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, options: LocalOptions) -> tuple[Tensor, Tensor]:
    """Return the output and, as the backward pass needs no logsumexp, zeros (see `operator`)."""
    windows = _Windows(options, padding)
    output = empty_rows(v, v.shape[-1])
    output.copy_(_in_pieces(windows, windows.pieces(q.shape[2]), *_without_padding(padding, q, k, v)))
    return output, v.new_zeros(v.shape[:3], dtype=accumulation_dtype(v.dtype))


def backward(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, output: Tensor, logsumexp: Tensor, options: LocalOptions,
    d_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v."""

    def gradients(attend: Callable[..., Tensor], inputs: list[Tensor], d_output: Tensor) -> tuple[Tensor, ...]:
        # Inside an operator autograd is off, whatever enable_grad says; torch.func's is not.
        found: tuple[Tensor, ...] = torch.func.vjp(attend, *inputs)[1](d_output)
        return found

    windows, inputs = _Windows(options, padding), _without_padding(padding, q, k, v)
    with torch.enable_grad():
        found = _sum_of_pieces(gradients, windows, windows.pieces(q.shape[2]), inputs, d_output)
    copies = (empty_rows(x, x.shape[-1]).copy_(x) for x in _without_padding(padding, *found))
    return tuple(copies)  # type: ignore[return-value]


def _without_padding(padding: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors (B, H, L, ...) with zeros where padding is: not even a NaN comes through."""
    return tensors if padding is None else tuple(x.masked_fill(padding[:, None, :, None], 0) for x in tensors)


def _in_pieces(windows: _Windows, pieces: list[_Piece], *inputs: Tensor) -> Tensor:
    return torch.cat([windows.attend(piece, *_of(piece, *inputs)) for piece in pieces], dim=2)


def _sum_of_pieces(
    gradients: Callable[[Callable[..., Tensor], list[Tensor], Tensor], tuple[Tensor, ...]], windows: _Windows,
    pieces: list[_Piece], inputs: tuple[Tensor, ...], d_output: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of q, k and v: the sums of gradients(attention of a piece, its inputs, gradient of its output)."""
    d_inputs = [torch.zeros_like(x) for x in inputs]
    for piece in pieces:
        found = gradients(
            partial(windows.attend, piece), _of(piece, *inputs), d_output[:, :, piece.query_start : piece.query_end]
        )
        for d_input, gradient in zip(_of(piece, *d_inputs), found, strict=True):
            d_input += gradient
    return d_inputs


def _of(piece: _Piece, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    keys = slice(piece.key_start, piece.key_end)
    return [q[:, :, piece.query_start : piece.query_end], k[:, :, keys], v[:, :, keys]]
