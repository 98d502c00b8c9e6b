"""Which positions stand in each hash bucket, for text that grows: what cached decoding looks up instead of sorting again.

B batch, H heads, R hash rounds, L length, C buckets of one round, K members that are asked for.

The members of a bucket, oldest first, stand in pages of PAGE places; a table says which pages are a bucket's. So memory is
linear in the text, and adding a position or looking up some members costs the same in a long text as in a short one.
"""

import torch
from torch import Tensor
from torch.nn import functional

PAGE = 32


class BucketLists:
    """The members of every bucket of every (example, head, round), each with its rank: 0 for the oldest.

    >>> lists = BucketLists(torch.tensor([[[[1, 0, 1]]]]), torch.tensor([3]), num_buckets=2)
    >>> lists.append(torch.tensor([[[[1]]]]), torch.tensor([3]))
    >>> lists.positions(torch.tensor([[[[1, 1, 1, 0]]]]), torch.tensor([[[[0, 1, 2, 0]]]])).flatten().tolist()
    [0, 2, 3, 1]
    """

    def __init__(self, buckets_BHRL: Tensor, lengths_B: Tensor, num_buckets: int):
        """Take the first lengths_B[b] positions of each example, with buckets (B, H, R, L), int64."""
        place = torch.arange(buckets_BHRL.shape[-1], device=buckets_BHRL.device)
        absent = place >= lengths_B.view(-1, 1, 1, 1)
        buckets = buckets_BHRL.masked_fill(absent, num_buckets)  # one more bucket, whose pages are the last ones
        counts = buckets.new_zeros(*buckets.shape[:-1], num_buckets + 1).scatter_add_(-1, buckets, torch.ones_like(buckets))
        pages = (counts + PAGE - 1) // PAGE
        first_page = pages.cumsum(-1) - pages
        order = buckets.argsort(dim=-1, stable=True)
        in_order = buckets.gather(-1, order)
        rank = place - (counts.cumsum(-1) - counts).gather(-1, in_order)
        members = buckets.new_zeros(*buckets.shape[:-1], int(pages.sum(-1).max()) * PAGE, dtype=torch.int32)
        self._members = members.scatter_(-1, first_page.gather(-1, in_order) * PAGE + rank, order.int())
        self.counts = counts[..., :-1].contiguous()
        """(B, H, R, C) int64: members of each bucket."""
        # Upper bounds that grow with each position: the true numbers are asked for (which a GPU has to wait for) only when
        # these reach what there is room for.
        self._fullest = int(self.counts.max())
        self._next_page = first_page[..., -1:].clone()
        self._most_pages = int(self._next_page.max())
        self._width = self._fullest // PAGE + 1
        table = first_page[..., :-1, None] + torch.arange(self._width, device=place.device)
        self._table = table.int().flatten(-2)

    def append(self, bucket_BHR1: Tensor, position_B: Tensor) -> None:
        """Add one position of each example to a bucket in each round."""
        self._make_room()
        rank = self.counts.gather(-1, bucket_BHR1)
        entry = bucket_BHR1 * self._width + rank // PAGE
        opens = rank % PAGE == 0
        page = torch.where(opens, self._next_page, self._table.gather(-1, entry).long())
        self._table.scatter_(-1, entry, page.int())
        self._members.scatter_(-1, page * PAGE + rank % PAGE, position_B.int().view(-1, 1, 1, 1).expand_as(page))
        self.counts.scatter_add_(-1, bucket_BHR1, torch.ones_like(bucket_BHR1))
        self._next_page += opens

    def positions(self, buckets_BHRK: Tensor, ranks_BHRK: Tensor, rounds_BHRK: Tensor | None = None) -> Tensor:
        """Return the positions (B, H, R, K), int32, of members that are there. Rank 0 of bucket 0 may be asked for always.

        `rounds_BHRK`: whose buckets are meant. None: a row's own round's.
        """
        table, members = self._table, self._members
        entry, place = buckets_BHRK * self._width + ranks_BHRK // PAGE, ranks_BHRK % PAGE
        if rounds_BHRK is not None:
            entry = entry + rounds_BHRK * table.shape[-1]
            place = place + rounds_BHRK * members.shape[-1]
            table, members = (x.flatten(2)[:, :, None].expand(-1, -1, entry.shape[2], -1) for x in (table, members))
        page = table.gather(-1, entry).long()
        return members.gather(-1, page * PAGE + place)

    def reorder(self, rows: Tensor) -> None:
        """Keep the examples `rows` (int64), in this order; one may be there several times."""
        for name in ("counts", "_members", "_next_page", "_table"):
            setattr(self, name, getattr(self, name).index_select(0, rows))

    def _make_room(self) -> None:
        self._fullest += 1
        if self._fullest > self._width * PAGE:
            self._fullest = int(self.counts.max()) + 1
        if self._fullest > self._width * PAGE:
            table = self._table.unflatten(-1, (-1, self._width))
            self._table = functional.pad(table, (0, self._width)).flatten(-2)
            self._width *= 2
        self._most_pages += 1
        if self._most_pages * PAGE > self._members.shape[-1]:
            self._most_pages = int(self._next_page.max()) + 1
        if self._most_pages * PAGE > self._members.shape[-1]:
            self._members = functional.pad(self._members, (0, max(self._members.shape[-1], PAGE)))
