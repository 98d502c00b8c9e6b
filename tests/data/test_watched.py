"""Corpora that change while they are read."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.config import ByteCorpusConfig, ImagesConfig
from reformer_lab.data.corpus_file import open_corpus_file
from reformer_lab.data.dataset import Dataset, open_dataset
from reformer_lab.data.watched import WatchedBytes
from reformer_lab.errors import UserError

TEXT = b"some text, " * 500


def watch(path: Path) -> WatchedBytes:
    corpus = open_corpus_file(path)
    return WatchedBytes(corpus.path, corpus.num_bytes, corpus.sha256)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "novel.txt"
    path.write_bytes(TEXT)
    return path


@pytest.mark.parametrize("content", [b"x", b"other text " * 500, TEXT + b"and more"], ids=["shorter", "other", "longer"])
def test_a_change_in_the_file_is_named(text: Path, content: bytes) -> None:
    watched = watch(text)
    watched.check()
    with text.open("r+b") as file:
        file.truncate(len(content))
        file.write(content)
    named = rf"novel\.txt was changed while the run read it \(5,500 bytes when it began, {len(content):,} now\): put the old"
    for _ in range(2):
        with pytest.raises(UserError, match=named):
            watched.check()


def test_the_same_content_is_no_change(text: Path) -> None:
    watched = watch(text)
    os.utime(text, (1, 1))
    watched.check()
    text.write_bytes(TEXT)
    watched.check()
    assert watched.bytes.tobytes() == TEXT


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_another_file_of_that_name_is_no_change(text: Path, how: str) -> None:
    watched = watch(text)
    if how == "removed":
        text.unlink()
    else:
        text.with_name("new").write_bytes(b"new")
        text.with_name("new").replace(text)
    watched.check()
    assert watched.bytes.tobytes() == TEXT


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_reading_is_watched(text: Path, split: str) -> None:
    data = ByteCorpusDataset(ByteCorpusConfig(path=str(text), length=16), 0)
    batches = data.eval_batches("validation", 1)
    next(batches)
    os.truncate(text, 10)
    with pytest.raises(UserError, match="was changed"):
        data.train_batch(0, 2) if split == "train" else next(batches)


def test_a_change_that_the_clock_hides_is_seen_at_the_next_opening(text: Path) -> None:
    """Same size, time of change set back, and none of the sampled pages: the system's own time of change tells."""
    text.write_bytes(b"a" * 1_000_000)
    before, state = open_corpus_file(text), text.stat()
    with text.open("r+b") as file:
        file.seek(30_000)
        file.write(b"b")
    os.utime(text, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert open_corpus_file(text).sha256 != before.sha256


def in_the_cache(kind: str, folder: Path) -> Dataset:
    """A data set that is read from the cache: a packed text, or images of random pixels."""
    if kind == "text":
        (folder / "novel.gz").write_bytes(gzip.compress(os.urandom(100_000).hex().encode()))
        return open_dataset(ByteCorpusConfig(path=str(folder / "novel.gz"), length=16), 0)
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return open_dataset(ImagesConfig(path=str(folder), side=128), 0)


@pytest.mark.parametrize("kind", ["text", "images"])
@pytest.mark.parametrize("how", ["shorter", "other"])
def test_a_changed_cache_is_named_and_made_anew(kind: str, how: str, tmp_path: Path, cache: Path) -> None:
    """Even where the next opening, which looks at a few pages, would not see it."""
    dataset = in_the_cache(kind, tmp_path)
    before = dataset.train_batch(0, 2).tokens
    batches = dataset.eval_batches("validation", 1)
    scored = next(batches).tokens
    (file,) = cache.rglob("*.data")
    size = file.stat().st_size
    with file.open("r+b") as opened:
        if how == "shorter":
            opened.truncate(10)
        opened.seek(20_000)
        opened.write(b"changed")
    said = rf"{file} was changed while the run read it \({size:,} bytes when it began, {file.stat().st_size:,} now\): the same "
    for reading in (lambda: dataset.train_batch(0, 2), lambda: next(dataset.eval_batches("validation", 1))):
        with pytest.raises(UserError, match=said):
            reading()
    again = open_dataset(dataset.config, 0)  # type: ignore[attr-defined]
    assert again.fingerprint == dataset.fingerprint
    assert again.train_batch(0, 2).tokens.equal(before)
    assert next(again.eval_batches("validation", 1)).tokens.equal(scored)


def test_a_change_while_images_are_read(tmp_path: Path, cache: Path) -> None:
    dataset = in_the_cache("images", tmp_path)
    (file,) = cache.rglob("*.data")
    rasters = dataset.store._rasters  # type: ignore[attr-defined]

    class Slow:
        def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
            with file.open("ab") as opened:
                opened.write(b"more")
            return rasters[numbers]

    dataset.store._rasters = Slow()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="was changed while the run read it"):
        dataset.train_batch(0, 2)


def test_a_cache_whose_times_alone_are_new_is_no_change(tmp_path: Path, cache: Path) -> None:
    dataset = in_the_cache("images", tmp_path)
    (file,) = cache.rglob("*.data")
    os.utime(file, (1, 1))
    dataset.train_batch(0, 2)
