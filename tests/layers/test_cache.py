"""Caches of attention layers, against the layers over the whole text."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.layers.attention import FullSelfAttention, LocalSelfAttention, LSHSelfAttention, SelfAttention
from reformer_lab.layers.cache import AttentionCache, LSHCache, Rows, cache_of
from reformer_lab.layers.initialization import initialize
from reformer_lab.ops.random import Draws

MOST = 64
EXACT: dict[str, Any] = {
    "full": lambda: FullSelfAttention(10, 3, 4),
    "full-over-sqrt-d": lambda: FullSelfAttention(10, 3, 4, key_scale="unit_over_sqrt_d"),
    "full-itself-allowed": lambda: FullSelfAttention(10, 3, 4, self_attention="allowed"),
    "full-separate": lambda: FullSelfAttention(10, 3, 4, shared_qk=False),
    "local": lambda: LocalSelfAttention(10, 3, 4, chunk_length=5),
    "local-one-chunk": lambda: LocalSelfAttention(10, 3, 4, chunk_length=7, chunks_before=0),
    "local-three-chunks": lambda: LocalSelfAttention(10, 3, 4, chunk_length=3, chunks_before=2),
    "local-everything": lambda: LocalSelfAttention(10, 3, 4, chunk_length=1000),
    "lsh-bucket": lambda: LSHSelfAttention(10, 3, 4, num_hashes=3, num_buckets=4, coverage="bucket"),
    "lsh-bucket-counted": lambda: LSHSelfAttention(10, 3, 4, num_hashes=3, num_buckets=(2, 4), coverage="bucket",
                                                   correct_duplicates=False, key_scale="unit_over_sqrt_d"),
    "lsh-bucket-default": lambda: LSHSelfAttention(10, 3, 4, num_hashes=1, chunk_length=8, coverage="bucket"),
}  # fmt: skip


def made(layer: SelfAttention) -> SelfAttention:
    layer.to_empty(device="cpu")
    initialize(layer, 1)
    return layer.double().eval()


def layer_of(kind: str) -> SelfAttention:
    with torch.device("meta"):
        layer: SelfAttention = EXACT[kind]()
    return made(layer)


def x_of(batch: int = 2, length: int = 41) -> Tensor:
    return torch.randn(batch, length, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def new_cache(layer: SelfAttention, most: int = MOST) -> AttentionCache:
    rotations = None
    if isinstance(layer, LSHSelfAttention):
        rotations = layer.rotations(1, 3, layer.buckets_for(most), Draws(0, fixed=True))
    return cache_of(layer, rotations, most)


@torch.no_grad()
def continued(cache: AttentionCache, x: Tensor, lengths: list[int], steps: int) -> list[Tensor]:
    """Each row's outputs (length + steps, d_model): of its first `length` positions at once, of the others one by one."""
    first = max(lengths)
    held = x[:, :first].clone()
    for row, length in enumerate(lengths):
        held[row, length:] = 1e6  # what is no text must not matter
    position = torch.tensor(lengths)
    out = cache.start(held, position)
    outputs = [out[row, :length] for row, length in enumerate(lengths)]
    for step in range(steps):
        new = torch.stack([x[row, length + step] for row, length in enumerate(lengths)])[:, None]
        out = cache.step(new, position + step, first + step + 1)
        outputs = [torch.cat([before, out[row]]) for row, before in enumerate(outputs)]
    return outputs


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=12)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3), steps=st.integers(1, 21))
def test_steps_give_what_the_whole_gives(kind: str, lengths: list[int], steps: int) -> None:
    layer, x = layer_of(kind), x_of(len(lengths))
    if isinstance(layer, LSHSelfAttention):
        layer.num_buckets = layer.buckets_for(MOST)
    for row, (length, found) in enumerate(zip(lengths, continued(new_cache(layer), x, lengths, steps), strict=True)):
        whole = layer(x[row : row + 1, : length + steps], draws=Draws(0, fixed=True))[0]
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


@settings(max_examples=25)
@given(
    num_hashes=st.integers(1, 3), num_buckets=st.sampled_from([2, 6, (2, 4)]), chunk_length=st.sampled_from([1, 3, 8, 100]),
    chunks_before=st.integers(0, 2), chunks_after=st.integers(0, 1), cross_bucket=st.booleans(),
    correct_duplicates=st.booleans(), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=2),
)  # fmt: skip
def test_with_chunks_a_step_is_the_last_position_of_the_text_so_far(lengths: list[int], **options: Any) -> None:
    with torch.device("meta"):
        layer = LSHSelfAttention(10, 3, 4, **options)
    made(layer)
    x = x_of(len(lengths))
    for row, (length, found) in enumerate(zip(lengths, continued(new_cache(layer), x, lengths, 20), strict=True)):
        for end in range(length + 1, length + 21):
            whole = layer(x[row : row + 1, :end], draws=Draws(0, fixed=True))[0]
            torch.testing.assert_close(found[end - 1], whole[-1], rtol=0, atol=1e-12)


def whole_texts_so_far(layer: SelfAttention, lengths: list[int], steps: int) -> None:
    """Hold each output of a cache against the last of the layer's over the text so far."""
    x = x_of(len(lengths))
    for row, (length, found) in enumerate(zip(lengths, continued(new_cache(layer), x, lengths, steps), strict=True)):
        prompt = layer(x[row : row + 1, :length], draws=Draws(0, fixed=True))[0]
        torch.testing.assert_close(found[:length], prompt, rtol=0, atol=1e-12)
        for end in range(length + 1, length + steps + 1):
            whole = layer(x[row : row + 1, :end], draws=Draws(0, fixed=True))[0]
            torch.testing.assert_close(found[end - 1], whole[-1], rtol=0, atol=1e-12)


@settings(max_examples=25)
@given(
    num_hashes=st.integers(1, 3), num_buckets=st.sampled_from([2, 6, (2, 4)]), chunk_length=st.sampled_from([1, 3, 8, 100]),
    chunks_before=st.integers(0, 4), chunks_after=st.integers(0, 2), key_epsilon=st.sampled_from([0.0, 0.3]),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)  # fmt: skip
def test_lsh_attention_sees_around_the_corner(lengths: list[int], **options: Any) -> None:
    with torch.device("meta"):
        layer = LSHSelfAttention(10, 3, 4, cross_bucket=True, correct_duplicates=False, wrap_around=True, **options)
    whole_texts_so_far(made(layer), lengths, 20)


@settings(max_examples=25)
@given(
    chunk_length=st.sampled_from([1, 2, 3, 8, 100]), chunks_before=st.integers(0, 4), chunks_after=st.integers(0, 2),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)  # fmt: skip
def test_local_attention_sees_around_the_corner(lengths: list[int], **options: Any) -> None:
    with torch.device("meta"):
        layer = LocalSelfAttention(10, 3, 4, wrap_around=True, **options)
    whole_texts_so_far(made(layer), lengths, 20)


@pytest.mark.parametrize("kind", EXACT)
def test_rows_part_ways(kind: str) -> None:
    """Copies of a text that go on with other tokens, as beams do, and rows that have ended."""
    layer, x = layer_of(kind), x_of(3)
    if isinstance(layer, LSHSelfAttention):
        layer.num_buckets = layer.buckets_for(MOST)
    cache = new_cache(layer)
    with torch.no_grad():
        cache.start(x[:, :9], torch.tensor([9, 4, 7]))
        cache.reorder(torch.tensor([2, 0, 2]))
        position = torch.tensor([7, 9, 7])
        out = [cache.step(x[:, 30 + step : 31 + step], position + step, 10 + step) for step in range(5)]
    for row, (source, length) in enumerate([(2, 7), (0, 9), (2, 7)]):
        text = torch.cat([x[source, :length], x[row, 30:35]])[None]
        whole = layer(text, draws=Draws(0, fixed=True))[0]
        torch.testing.assert_close(torch.cat(out, dim=1)[row], whole[-5:], rtol=0, atol=1e-12)


def keys_of_a_step(layer: SelfAttention, length: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many keys a head looks at in a step after `length` positions."""
    x = torch.randn(1, length + 1, 10, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    cache = new_cache(layer, 1 << 20)
    seen: list[int] = []
    fetch, first = Rows.fetch, Rows.first
    with monkeypatch.context() as patch, torch.no_grad():
        # The attention over the whole text is not what is asked for, and would take longer than everything else.
        patch.setattr(type(layer), "mix", lambda self, *projected, **_: projected[-1])
        patch.setattr(LSHSelfAttention, "attend", lambda self, qk, v, *_: v)
        cache.start(x[:, :length], torch.tensor([length]))
        patch.setattr(Rows, "fetch", lambda rows, index: seen.append(index.shape[-1]) or fetch(rows, index))
        patch.setattr(Rows, "first", lambda rows, length: seen.append(length) or first(rows, length))
        cache.step(x[:, length:], torch.tensor([length]), length + 1)
    assert len(seen) == (1 if isinstance(layer, LSHSelfAttention) else 2)  # keys and values, side by side or not
    return seen[0]


LAYERS_OF_CONSTANT_WORK: dict[str, Any] = {
    "lsh-around-the-corner": lambda: LSHSelfAttention(10, 3, 4, num_hashes=4, num_buckets=32, chunk_length=64,
                                                      cross_bucket=True, correct_duplicates=False, wrap_around=True),
    "local": lambda: LocalSelfAttention(10, 3, 4, chunk_length=64),
    "lsh": lambda: LSHSelfAttention(10, 3, 4, num_hashes=4, num_buckets=4, chunk_length=64),
    "lsh-cross-bucket": lambda: LSHSelfAttention(10, 3, 4, num_hashes=4, num_buckets=32, chunk_length=64, cross_bucket=True),
}


@pytest.mark.parametrize("kind", LAYERS_OF_CONSTANT_WORK)
def test_the_work_of_a_step_does_not_grow_with_the_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        layer = LAYERS_OF_CONSTANT_WORK[kind]()
    made(layer)
    rounds = 1 if kind == "local" else 4
    for length in (1024, 8192, 32768):
        assert 64 * rounds <= keys_of_a_step(layer, length, monkeypatch) <= 128 * rounds


@pytest.mark.parametrize("kind", ["full", "lsh-bucket"])
def test_where_it_does_grow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (keys_of_a_step(layer_of(kind), length, monkeypatch) for length in (1024, 8192))
    assert 4 * few < many <= 8193


def test_a_foreign_layer_is_named() -> None:
    with pytest.raises(UserError, match="Linear has no cache"):
        cache_of(torch.nn.Linear(2, 2), None, 8)


def test_a_window_that_no_one_cut_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, which is not waited for, a window has its full width, with nothing in the places to spare."""
    with torch.device("meta"):
        layer = LSHSelfAttention(10, 3, 4, num_hashes=2, num_buckets=4, chunk_length=4)
    made(layer)
    x = x_of(1)
    found = continued(new_cache(layer), x, [5], 20)[0]
    back = LSHCache._back
    monkeypatch.setattr(LSHCache, "_back", staticmethod(lambda bucket, rank, seen, most: back(bucket, rank, seen, 7)))
    torch.testing.assert_close(continued(new_cache(layer), x, [5], 20)[0], found, rtol=0, atol=1e-12)
