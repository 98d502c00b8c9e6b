"""What our models keep of texts that transformers' `generate` continues: a `DecodingCache`, as a Cache of theirs."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from reformer_lab.errors import UserError
from reformer_lab.layers.cache import DecodingCache


class ReformerLabCache(Cache):
    """The `past_key_values` of a ReformerLabForCausalLM. Each forward pass with it changes it.

    It has no layers of keys and values to look into, and cannot go back to a shorter text.
    """

    def __init__(self, decoding: DecodingCache, columns: int):
        """`columns`: tokens of each row so far, padding included; there are fewer of the text itself where it is padded."""
        super().__init__(layers=[])
        self.decoding, self.columns = decoding, columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many columns of input_ids have been read."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, in this order."""
        rows = beam_idx.to(self.decoding.lengths.device)
        if not rows.equal(torch.arange(len(self.decoding.lengths), device=rows.device)):
            self.decoding.reorder(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let each row be there `repeats` times."""
        rows = torch.arange(len(self.decoding.lengths), device=self.decoding.lengths.device)
        self.decoding.reorder(rows.repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        """Refuse: what a text was before its last tokens is not kept."""
        raise UserError("the cache of a Reformer cannot be cropped: begin again with the shorter text")

    def reset(self) -> None:
        """Refuse: a cache begins with a text."""
        raise UserError("the cache of a Reformer cannot be emptied: leave past_key_values out to begin a new text")

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReformerLabCache":
        """Return a cache of its own over the same model."""
        return ReformerLabCache(self.decoding.copy(), self.columns)
