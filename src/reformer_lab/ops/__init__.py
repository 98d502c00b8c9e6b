"""Functions on tensors: no modules, no configuration, no input or output. They need torch alone."""

from reformer_lab.ops.chunking import chunked_apply, chunked_cross_entropy
from reformer_lab.ops.full_attention import full_attention, shared_qk_attention
from reformer_lab.ops.hashing import default_num_buckets, draw_rotations, hash_vectors
from reformer_lab.ops.local_attention import local_attention
from reformer_lab.ops.lsh_attention import lsh_attention
from reformer_lab.ops.reversible import reversible_loss, reversible_stack, stored_stack

__all__ = [
    "chunked_apply",
    "chunked_cross_entropy",
    "default_num_buckets",
    "draw_rotations",
    "full_attention",
    "hash_vectors",
    "local_attention",
    "lsh_attention",
    "reversible_loss",
    "reversible_stack",
    "shared_qk_attention",
    "stored_stack",
]
