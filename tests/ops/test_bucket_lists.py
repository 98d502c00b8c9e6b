"""Bucket lists, against lists of Python."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_lab.ops.bucket_lists import PAGE, BucketLists


def contents(lists: BucketLists) -> list[list[int]]:
    """The members of every bucket, oldest first, for every (example, head, round) after the other."""
    found = []
    for index, count in enumerate(lists.counts.flatten().tolist()):
        sequence, bucket = divmod(index, lists.counts.shape[-1])
        buckets = torch.full((*lists.counts.shape[:3], max(count, 1)), bucket)
        ranks = torch.arange(max(count, 1)).expand_as(buckets)
        there = ranks < lists.counts[..., bucket : bucket + 1]
        at = lists.positions(buckets.masked_fill(~there, 0), ranks.masked_fill(~there, 0)).flatten(0, 2)
        found.append(at[sequence][:count].tolist())
    return found


def expected(buckets: Tensor, lengths: list[int], num_buckets: int) -> list[list[int]]:
    members = []
    for row, length in zip(buckets, lengths, strict=True):
        for sequence in row.flatten(0, 1)[:, :length].tolist():
            members += [[at for at, bucket in enumerate(sequence) if bucket == b] for b in range(num_buckets)]
    return members


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6), first=st.integers(1, 80), lengths=st.lists(st.integers(1, 80), min_size=1, max_size=3),
    steps=st.integers(0, 90), num_buckets=st.sampled_from([2, 8]), skewed=st.booleans(),
)  # fmt: skip
def test_holds_what_lists_would(seed: int, first: int, lengths: list[int], steps: int, num_buckets: int, skewed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = [min(length, first) for length in lengths]
    buckets = torch.randint(num_buckets, (len(lengths), 2, 2, first + steps), generator=generator)
    if skewed:  # nearly all in one bucket: pages and table have to grow
        buckets[torch.rand(buckets.shape, generator=generator) < 0.95] = 1
    lists = BucketLists(buckets[..., :first], torch.tensor(lengths), num_buckets)
    assert contents(lists) == expected(buckets, lengths, num_buckets)
    text = [row[..., :length].clone() for row, length in zip(buckets, lengths, strict=True)]
    for step in range(steps):
        new = buckets[..., first + step : first + step + 1]
        lists.append(new, torch.tensor([row.shape[-1] for row in text]))
        text = [torch.cat([row, one], dim=-1) for row, one in zip(text, new, strict=True)]
    ends = [row.shape[-1] for row in text]
    whole = torch.stack([torch.nn.functional.pad(row, (0, first + steps - row.shape[-1])) for row in text])
    assert contents(lists) == expected(whole, ends, num_buckets)


def test_rows_part_ways() -> None:
    """Two copies of an example go on with other tokens, as beams do."""
    buckets = torch.randint(4, (2, 1, 2, 50), generator=torch.Generator().manual_seed(0))
    lists = BucketLists(buckets, torch.tensor([50, 50]), 4)
    lists.reorder(torch.tensor([1, 1, 0]))
    new = torch.tensor([[[[0], [1]]], [[[2], [3]]], [[[0], [0]]]])
    lists.append(new, torch.tensor([50, 50, 50]))
    assert contents(lists) == expected(torch.cat([buckets[[1, 1, 0]], new], dim=-1), [51, 51, 51], 4)


def test_memory_is_linear_and_a_look_up_is_not() -> None:
    """The table's width follows the fullest bucket; members take at most a page a bucket more than there are positions."""
    for length in (1000, 16000):
        buckets = torch.randint(64, (1, 1, 1, length), generator=torch.Generator().manual_seed(0))
        lists = BucketLists(buckets, torch.tensor([length]), 64)
        numbers = sum(value.numel() for value in vars(lists).values() if isinstance(value, Tensor))
        assert numbers <= length + 64 * PAGE + 4 * 64 + 64 * (int(lists.counts.max()) // PAGE + 1)


def test_memory_stays_linear_while_the_text_grows() -> None:
    buckets = torch.randint(16, (1, 1, 1, 4000), generator=torch.Generator().manual_seed(0))
    lists = BucketLists(buckets[..., :10], torch.tensor([10]), 16)
    for at in range(10, 4000):
        lists.append(buckets[..., at : at + 1], torch.tensor([at]))
    assert contents(lists) == expected(buckets, [4000], 16)
    numbers = sum(value.numel() for value in vars(lists).values() if isinstance(value, Tensor))
    assert numbers <= 2 * (4000 + 16 * PAGE) + 100 * 16  # room is doubled when it is used up
