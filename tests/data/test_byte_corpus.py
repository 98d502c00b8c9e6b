import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.corpora import open_corpus, split_bounds
from reformer_lab.data.dataset import open_dataset
from reformer_lab.errors import UserError


def random_text(length, seed=0):
    letters = np.array(list("abcdefgh é世🙂\n"))
    return "".join(np.random.default_rng(seed).choice(letters, length))


def write(folder, text):
    path = folder / "corpus.txt"
    path.write_bytes(text.encode())
    return str(path)


def scored(dataset, split, **options):
    """The bytes that are targets, in order; checks tokens and masks on the way."""
    found = []
    for tokens, targets, padding in dataset.eval_batches(split, **options):
        counted = targets != -100
        assert torch.equal(tokens[counted], targets[counted])
        assert (tokens[~counted] == 0).all()
        assert torch.equal(~counted, torch.zeros_like(counted) if padding is None else padding)
        found.append(targets[counted])
    return bytes((torch.cat(found) - 2).tolist())


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(alphabet="ab é世🙂", min_size=40, max_size=120), length=st.integers(2, 12),
    batch_size=st.integers(1, 5), held_out=st.one_of(st.none(), st.tuples(st.integers(1, 9), st.integers(1, 9))),
    unit=st.sampled_from(("characters", "bytes")),
)
def test_splits_cover_the_corpus_and_every_held_out_byte_is_scored_once(
    tmp_path_factory, text, length, batch_size, held_out, unit
):
    valid, test = held_out or (None, None)
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFORMER_LAB_CACHE", str(folder / "cache"))
        dataset = ByteCorpusDataset(ByteCorpusConfig(path=write(folder, text), length=length, split_by=unit,
                                                     valid=valid, test=test), seed=0)
    content = text.encode()
    units = list(text) if unit == "characters" else [content[i : i + 1] for i in range(len(content))]
    expected = max(1, round(len(units) * 0.05))
    valid, test = valid or expected, test or expected
    pieces = [units[: len(units) - valid - test], units[len(units) - valid - test : len(units) - test],
              units[len(units) - test :]]
    train, validation, tested = (
        "".join(piece).encode() if unit == "characters" else b"".join(piece) for piece in pieces
    )
    assert dataset.bounds["train"] == (0, len(train))
    assert scored(dataset, "validation", batch_size=batch_size) == validation
    assert scored(dataset, "test", batch_size=batch_size) == tested
    assert train + validation + tested == content


def test_an_epoch_shows_every_window_once_and_every_byte(tmp_path):
    text = random_text(500)
    dataset = ByteCorpusDataset(ByteCorpusConfig(path=write(tmp_path, text), length=32, stride=7), seed=0)
    train = text.encode()[: dataset.bounds["train"][1]]
    starts = [*range(0, len(train) - 32, 7), len(train) - 32]
    assert dataset.windows_per_epoch == len(starts)
    tokens, targets, padding = dataset.train_batch(0, len(starts))
    assert padding is None
    assert torch.equal(tokens, targets)
    shown = [bytes((row - 2).tolist()) for row in tokens]
    assert sorted(shown) == sorted(train[start : start + 32] for start in starts)
    assert shown != [train[start : start + 32] for start in starts]
    second = [bytes((row - 2).tolist()) for row in dataset.train_batch(1, len(starts)).tokens]
    assert sorted(second) == sorted(shown)
    assert second != shown


def test_windows_overlap_four_times_by_default(tmp_path):
    dataset = ByteCorpusDataset(ByteCorpusConfig(path=write(tmp_path, "a" * 10_000), length=64), seed=0)
    assert dataset.stride == 16
    assert dataset.windows_per_epoch == (9_000 - 64) // 16 + 2


def test_batches_depend_on_seed_and_index_alone(tmp_path):
    config = ByteCorpusConfig(path=write(tmp_path, random_text(3_000)), length=32)
    first, again = ByteCorpusDataset(config, seed=3), ByteCorpusDataset(config, seed=3)
    expected = [first.train_batch(i, 4).tokens for i in range(200)]
    for i in (199, 0, 120):
        assert torch.equal(again.train_batch(i, 4).tokens, expected[i])
    assert torch.equal(again.train_batch(20, 8).tokens, torch.cat(expected[40:42]))
    assert not torch.equal(ByteCorpusDataset(config, seed=4).train_batch(0, 4).tokens, expected[0])


def test_limit_counts_sequences_and_spreads_them(tmp_path):
    content = "".join(letter * 25 for letter in "abcd")
    dataset = ByteCorpusDataset(ByteCorpusConfig(path=write(tmp_path, "x" * 100 + content + "y" * 10), length=25,
                                                 valid=100, test=10), seed=0)
    assert scored(dataset, "validation", batch_size=3, limit=2) == b"a" * 25 + b"c" * 25
    assert scored(dataset, "validation", batch_size=3, limit=100) == content.encode()


def test_fingerprint_follows_the_content(tmp_path):
    path = write(tmp_path, "a" * 100)
    config = ByteCorpusConfig(path=path, length=8)
    first = open_dataset(config, 0).fingerprint
    assert open_dataset(config, 1).fingerprint == first
    write(tmp_path, "a" * 99 + "b")
    assert open_dataset(config, 0).fingerprint != first


def test_too_short_names_sizes_and_remedy(tmp_path):
    path = write(tmp_path, "é" * 100)
    with pytest.raises(UserError, match=r"180 bytes to train on, less than one window of 2,048.*at most 180"):
        ByteCorpusDataset(ByteCorpusConfig(path=path), seed=0)
    assert ByteCorpusDataset(ByteCorpusConfig(path=path, length=180), seed=0).windows_per_epoch == 1
    with pytest.raises(UserError, match="100 characters, of which valid=60 and test=40"):
        ByteCorpusDataset(ByteCorpusConfig(path=path, valid=60, test=40), seed=0)


def test_empty_split_is_an_error_when_it_is_asked_for(tmp_path):
    dataset = ByteCorpusDataset(ByteCorpusConfig(path=write(tmp_path, "a" * 100), length=8, test=0), seed=0)
    with pytest.raises(UserError, match=r"test split of corpus\.txt is empty"):
        list(dataset.eval_batches("test", 1))


def test_a_hundred_million_bytes_hold_out_five_million(tmp_path):
    """enwik8's size decides, whatever the number of its characters."""
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("text", ("é" + "a" * 998) * 100_000)
    corpus = open_corpus(str(tmp_path / "large.zip"))
    assert corpus.num_bytes == 100_000_000
    bounds = split_bounds(corpus, ByteCorpusConfig())
    assert bounds["test"] == (100_000_000 - 5_005_005, 100_000_000)
    assert split_bounds(corpus, ByteCorpusConfig(split_by="bytes"))["validation"] == (90_000_000, 95_000_000)


MEASURE = """
import sys, time
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.corpora import open_corpus, split_bounds
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
begun = time.perf_counter()
corpus = open_corpus(sys.argv[1])
bounds = split_bounds(corpus, ByteCorpusConfig())
seconds = time.perf_counter() - begun
print(seconds, peak() - before, corpus.num_characters, corpus.sha256, *[end for _, end in bounds.values()])
"""


def test_books(shared_data, tmp_path):
    """The known splits; the second opening under a second and a few MB, the first never the whole file in memory."""
    path = shared_data / "books.zip"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of the memory is read from /proc/self/status")
    peaks = []
    for limit in (60, 1):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
        seconds, peak, characters, digest, *ends = done.stdout.split()
        assert float(seconds) < limit, f"of {time.perf_counter() - begun} s in all"
        peaks.append(int(peak))
        assert int(characters) == 99_926_711
        assert digest == "20eebc6e57234c35c95be99d8a611af61dfb1b749ebad71930981cd204acf23f"
    assert peaks[0] < 90_000_000
    assert peaks[1] < 8_000_000
    corpus = open_corpus(str(path))
    train, valid, total = map(int, ends)
    assert [corpus.characters_before(end) for end in (train, valid, total)] == [89_926_711, 94_926_711, 99_926_711]
    content = corpus.bytes()
    assert len(bytes(content[train:valid]).decode()) == len(bytes(content[valid:]).decode()) == 5_000_000


def test_crime_and_punishment(shared_data):
    path = shared_data / "crime" / "crime_and_punishment.txt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    dataset = ByteCorpusDataset(ByteCorpusConfig(path=str(path), length=2048), seed=0)
    content = path.read_bytes()
    first, end = dataset.bounds["validation"]
    assert dataset.corpus.num_bytes == 1_201_735
    assert scored(dataset, "validation", batch_size=8) == content[first:end]
    assert content.find(bytes((dataset.train_batch(11, 4).tokens[2] - 2).tolist())) <= first - 2048
