"""Local attention: each chunk of positions attends to itself and to its neighbours, with no wrap-around.

B batch, H heads, L length, D width, C chunks of M positions, W chunks in a window.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.ops.chunking import autocast_state, recompute
from reformer_lab.ops.random import draw_seed, keep_pairs
from reformer_lab.ops.softmax import accumulation_dtype, check_attention_inputs, masked_attention

# Positions of a piece: windows, masks and what torch's kernel keeps are there for one piece at a time.
PIECE_LENGTH = 2048


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_length: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool = True,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return attention (B, H, L, D_v) of q, k (B, H, L, D) and v (B, H, L, D_v) within windows of chunks, scale 1/sqrt(D).

    Any length; the last chunk may be short. key_padding_mask (B, L), True = padding: neither seen nor seeing; its output is
    0. dropout_p: on the weights, drawn from `generator` (None: one seeded with 0). A UserError names a bad chunk setting.
    """
    check_attention_inputs(v, dropout_p)
    if chunk_length < 1 or chunks_before < 0 or chunks_after < 0:
        raise UserError(
            f"chunk_length={chunk_length}, chunks_before={chunks_before}, chunks_after={chunks_after}: "
            "the first must be at least 1, the others at least 0"
        )
    length = q.shape[2]
    if key_padding_mask is not None:
        hidden = key_padding_mask[:, None, :, None]
        q, k, v = (x.masked_fill(hidden, 0) for x in (q, k, v))
    seed = 0
    if dropout_p > 0:
        seed = draw_seed(torch.Generator().manual_seed(0) if generator is None else generator)
    windows = _Windows(min(chunk_length, length), chunks_before, chunks_after, causal, key_padding_mask, dropout_p, seed)
    pieces = windows.pieces(length)
    if len(pieces) == 1:
        return windows.attend(pieces[0], q, k, v)
    return _InPieces.apply(q, k, v, windows, pieces)


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

    chunk_length: int
    chunks_before: int
    chunks_after: int
    causal: bool
    key_padding_mask: Tensor | None
    dropout_p: float
    dropout_seed: int

    def pieces(self, length: int) -> list[_Piece]:
        """Cut the positions into pieces of about PIECE_LENGTH."""
        step = max(1, PIECE_LENGTH // self.chunk_length) * self.chunk_length
        before, after = self.chunks_before * self.chunk_length, self.chunks_after * self.chunk_length
        ends = [(start, min(start + step, length)) for start in range(0, length, step)]
        return [_Piece(start, end, max(0, start - before), min(length, end + after), length) for start, end in ends]

    def attend(self, piece: _Piece, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output (B, H, queries, D_v) of the piece's q (B, H, queries, D), k and v (B, H, keys, ...)."""
        batch, heads, queries, _ = q.shape
        chunk_length, length = self.chunk_length, piece.length
        chunks = -(-queries // chunk_length)
        fill = chunks * chunk_length - queries
        before, after = self.chunks_before * chunk_length, self.chunks_after * chunk_length
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
        visible = visible & (key_at <= query_at) if self.causal else visible.expand(-1, chunk_length, -1)
        visible = visible[None, None]
        padded_query = None
        if self.key_padding_mask is not None:
            mask = self.key_padding_mask
            there = (~mask[:, piece.key_start : piece.key_end]).to(q.dtype)[:, None, :, None]
            visible = visible & (windows(there).transpose(-1, -2) > 0)
            padded_query = functional.pad(mask[:, piece.query_start : piece.query_end], (0, fill))
            padded_query = padded_query.view(batch, 1, chunks, chunk_length, 1)

        if self.dropout_p == 0.0:
            # Sequences as the batch and chunks as the heads: torch's kernel keeps no scores. A padded query, which may see
            # nothing, looks at everything instead, and is erased below.
            if padded_query is not None:
                visible = (visible | padded_query).expand(-1, heads, -1, -1, -1)
            output = functional.scaled_dot_product_attention(
                q_BHCMD.flatten(0, 1), k_BHCND.flatten(0, 1), v_BHCND.flatten(0, 1), attn_mask=visible.flatten(0, 1)
            ).unflatten(0, (batch, heads))
        else:
            row = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1, 1)
            keep = keep_pairs(self.dropout_seed, row, query_at, key_at, self.dropout_p)
            with_dropout = partial(_with_dropout, visible=visible, keep=keep, dropout_p=self.dropout_p)
            output = recompute(with_dropout, q_BHCMD, k_BHCND, v_BHCND)
        if padded_query is not None:
            output = output.masked_fill(padded_query, 0)
        return output.flatten(2, 3)[:, :, :queries]


class _InPieces(torch.autograd.Function):
    """The attention of one piece after another: the windows of one piece alone are ever in memory."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, windows: _Windows, pieces: list[_Piece]) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.windows, ctx.pieces = windows, pieces
        ctx.autocast = autocast_state(q.device.type)
        return torch.cat([windows.attend(piece, *_of(piece, q, k, v)) for piece in pieces], dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        d_inputs = [torch.zeros_like(x) for x in inputs]
        for piece in ctx.pieces:
            parts = [x.detach().requires_grad_() for x in _of(piece, *inputs)]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                output = ctx.windows.attend(piece, *parts)
            found = torch.autograd.grad(output, parts, d_output[:, :, piece.query_start : piece.query_end])
            for d_input, gradient in zip(_of(piece, *d_inputs), found, strict=True):
                d_input += gradient
        return *d_inputs, None, None


def _of(piece: _Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys = slice(piece.key_start, piece.key_end)
    return q[:, :, piece.query_start : piece.query_end], k[:, :, keys], v[:, :, keys]


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor, keep: Tensor, dropout_p: float) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        dtype = accumulation_dtype(q.dtype)
        logits = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-1, -2)
        return masked_attention(logits, v.to(dtype), visible, keep, dropout_p)[0].to(v.dtype)
