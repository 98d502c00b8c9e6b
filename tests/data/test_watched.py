"""Corpora that change while they are read."""

import os
from pathlib import Path

import pytest

from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.corpus_file import open_corpus_file
from reformer_lab.data.watched import WatchedBytes
from reformer_lab.errors import UserError

TEXT = b"some text, " * 500


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "novel.txt"
    path.write_bytes(TEXT)
    return path


@pytest.mark.parametrize("content", [b"x", b"other text " * 500, TEXT + b"and more"], ids=["shorter", "other", "longer"])
def test_a_change_in_the_file_is_named(text: Path, content: bytes) -> None:
    watched = WatchedBytes(open_corpus_file(text))
    watched.check()
    with text.open("r+b") as file:
        file.truncate(len(content))
        file.write(content)
    named = rf"novel\.txt was changed while the run read it \(5,500 bytes when it began, {len(content):,} now\): put the old"
    for _ in range(2):
        with pytest.raises(UserError, match=named):
            watched.check()


def test_the_same_content_is_no_change(text: Path) -> None:
    watched = WatchedBytes(open_corpus_file(text))
    os.utime(text, (1, 1))
    watched.check()
    text.write_bytes(TEXT)
    watched.check()
    assert watched.bytes.tobytes() == TEXT


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_another_file_of_that_name_is_no_change(text: Path, how: str) -> None:
    watched = WatchedBytes(open_corpus_file(text))
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
