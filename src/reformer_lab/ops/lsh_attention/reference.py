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
    k = unit_length(q, options.key_epsilon) * options.logit_scale

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

    With `wrap_rounds` it is the number of places in i's windows that hold j. N_ii is 1 for a token that sees nothing else in
    any round, and 0 for every other one.
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
    if options.wrap_rounds:
        counts_BHLL += allowed * _places_on_the_circle(buckets_BHRL, options)
        buckets_BHRL = buckets_BHRL[:, :, :0]
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


def _places_on_the_circle(buckets_BHRL: Tensor, options: LSHOptions) -> Tensor:
    """Return (B, H, L, L), int64: how often j is in i's windows where the chunks of all rounds, one round after the other,
    form a circle. A window wider than the circle holds a token more than once."""
    rounds, length = buckets_BHRL.shape[2:]
    position = torch.arange(length, device=buckets_BHRL.device)
    place_BHRL = (buckets_BHRL * length + position).argsort(-1).argsort(-1)
    chunks = -(-length // options.chunk_length)
    chunk_BHRL = torch.arange(rounds, device=position.device)[:, None] * chunks + place_BHRL // options.chunk_length
    places = torch.zeros(*buckets_BHRL.shape[:2], length, length, dtype=torch.int64, device=position.device)
    for offset in range(-options.chunks_before, options.chunks_after + 1):
        looked_at_BHRL = (chunk_BHRL + offset) % (rounds * chunks)
        for query_round in looked_at_BHRL.unbind(2):
            for key_round in chunk_BHRL.unbind(2):
                places += query_round[..., :, None] == key_round[..., None, :]
    return places
