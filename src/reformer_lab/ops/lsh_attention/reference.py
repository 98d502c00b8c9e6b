"""LSH attention, dense and literal: the definition that every backend is held against. Time and memory O(length^2).

B batch, H heads, L length, D width, R rounds. Source: the paper, section 2 and appendix A.
"""

import torch
from torch import Tensor

from reformer_lab.ops.lsh_attention.options import PADDING_BUCKET, LSHOptions
from reformer_lab.ops.softmax import accumulation_dtype, masked_attention, pair_keep_mask, unit_length


def attend(
    qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, L, D_v) and the logsumexp (B, H, L): one softmax over the united sets P_i."""
    batch, heads, length, _ = qk_BHLD.shape
    dtype = accumulation_dtype(qk_BHLD.dtype)
    q = qk_BHLD.to(dtype)
    k = unit_length(q) * options.logit_scale

    rounds_BHLL = count_rounds(buckets_BHRL, padding_BL, options)
    logits = q @ k.transpose(-1, -2)
    if not options.correct_duplicates:
        logits = logits + rounds_BHLL.clamp(min=1).to(dtype).log()

    position = torch.arange(length, device=q.device)
    keep = pair_keep_mask(options.dropout_seed, batch, heads, position[:, None], position[None, :], options.dropout_p)
    output, logsumexp = masked_attention(logits, v_BHLD.to(dtype), rounds_BHLL > 0, keep, options.dropout_p)
    return output.to(v_BHLD.dtype), logsumexp


def count_rounds(buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions) -> Tensor:
    """Return N_ij (B, H, L, L), int64: in how many rounds j is in the set P_i of query i; 0 where i does not see j.

    N_ii is 1 for a token that sees nothing else in any round, and 0 for every other one.
    """
    batch, heads, _, length = buckets_BHRL.shape
    device = buckets_BHRL.device
    padding_BL = torch.zeros(batch, length, dtype=torch.bool, device=device) if padding_BL is None else padding_BL
    buckets_BHRL = buckets_BHRL.masked_fill(padding_BL[:, None, None, :], PADDING_BUCKET)
    position = torch.arange(length, device=device)

    allowed = ~(padding_BL[:, None, :, None] | padding_BL[:, None, None, :])
    allowed = allowed & (position[:, None] != position[None, :])
    if options.causal:
        allowed = allowed & (position[None, :] <= position[:, None])

    counts_BHLL = torch.zeros(batch, heads, length, length, dtype=torch.int64, device=device)
    for bucket_BHL in buckets_BHRL.unbind(2):
        in_set = allowed
        if not options.cross_bucket:
            in_set = in_set & (bucket_BHL[..., :, None] == bucket_BHL[..., None, :])
        if options.coverage == "chunk":
            order = (bucket_BHL * length + position).argsort(-1)
            place_in_order = order.argsort(-1)
            chunk = place_in_order // options.chunk_length
            chunks_back = chunk[..., :, None] - chunk[..., None, :]
            in_set = in_set & (chunks_back <= options.chunks_before) & (chunks_back >= -options.chunks_after)
        counts_BHLL += in_set

    sees_nothing = (counts_BHLL == 0).all(-1) & ~padding_BL[:, None, :]
    return counts_BHLL + torch.diag_embed(sees_nothing.long())
