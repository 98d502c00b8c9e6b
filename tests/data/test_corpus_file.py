import bz2
import gzip
import lzma
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_lab.data import corpus_file
from reformer_lab.data.corpus_file import measure, open_corpus_file
from reformer_lab.errors import UserError

TEXT = "Привет, naïve 世界 🙂\n" * 40


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pack(path, packing, content):
    if packing == "zip":
        return write_zip(path, {"text": content})
    path.write_bytes({"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packing](content))
    return path


@pytest.mark.parametrize("packing", ["plain", "zip", "gz", "bz2", "xz"])
def test_every_packing_gives_the_same_corpus(tmp_path, packing):
    path = pack(tmp_path / "text", packing, TEXT.encode())
    for _ in range(2):
        corpus = open_corpus_file(path)
        assert bytes(corpus.bytes()) == TEXT.encode()
        assert (corpus.num_bytes, corpus.num_characters) == (len(TEXT.encode()), len(TEXT))
        assert measure(path) == (corpus.num_bytes, corpus.sha256)


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=60), block=st.integers(1, 9), packed=st.booleans())
def test_offsets_are_those_of_the_encoded_text(tmp_path_factory, text, block, packed):
    """Small blocks, so that characters lie across their borders."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFORMER_LAB_CACHE", str(folder / "cache"))
        patch.setattr(corpus_file, "BLOCK", block)
        corpus = open_corpus_file(pack(folder / "text", "gz" if packed else "plain", text.encode()))
        assert corpus.num_characters == len(text)
        for character in range(len(text) + 1):
            offset = corpus.offset(character)
            assert offset == len(text[:character].encode())
            assert corpus.characters_before(offset) == character
        with pytest.raises(IndexError):
            corpus.offset(len(text) + 1)


def test_second_opening_reads_nothing_but_the_index(tmp_path, monkeypatch):
    paths = [pack(tmp_path / packing, packing, TEXT.encode()) for packing in ("plain", "zip")]
    first = [open_corpus_file(path) for path in paths]
    monkeypatch.setattr(corpus_file, "_scan", lambda *_: pytest.fail("scanned again"))
    assert [open_corpus_file(path) for path in paths] == first


@pytest.mark.parametrize("packing", ["plain", "zip", "xz"])
def test_changed_source_is_read_again(tmp_path, packing):
    """Even where its size and time of change are those of the old file."""
    path = pack(tmp_path / "text", packing, b"first text")
    state = path.stat()
    open_corpus_file(path)
    pack(path, packing, b"other text")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert bytes(open_corpus_file(path).bytes()) == b"other text"


@pytest.mark.parametrize("harm", ["cut", "zeros", "gone"])
def test_damaged_cache_is_made_again(tmp_path, cache, harm):
    path = pack(tmp_path / "text.zip", "zip", TEXT.encode())
    data = open_corpus_file(path).path
    assert cache in data.parents
    if harm == "cut":
        data.write_bytes(data.read_bytes()[:100])
    elif harm == "zeros":
        data.write_bytes(bytes(len(TEXT.encode())))
    else:
        data.unlink()
    assert bytes(open_corpus_file(path).bytes()) == TEXT.encode()


def test_index_that_is_no_index_is_made_again(tmp_path, cache):
    path = pack(tmp_path / "text.zip", "zip", TEXT.encode())
    open_corpus_file(path)
    (index,) = cache.rglob("index.json")
    for content in ("", "[]", "{}", "null", '{"signature": 3}'):
        index.write_text(content)
        assert open_corpus_file(path).num_characters == len(TEXT)


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path, cache):
    path = pack(tmp_path / "text.zip", "zip", TEXT.encode())
    folder = open_corpus_file(path).path.parent
    old, new = folder / "corpus.data.1.part", folder / "corpus.data.2.part"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    pack(path, "zip", b"other")
    open_corpus_file(path)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(("prefix", "bad", "reason"), [
    (b"a" * 10, b"\xff", "invalid start byte"),
    ("é".encode() * 6, b"\xc3(", "invalid continuation byte"),
    (b"abc", b"\xe2\x82", "unexpected end of data"),
    (b"abc", b"\xed\xa0\x80", "invalid continuation byte"),
])
@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_not_utf8_names_the_byte(tmp_path, monkeypatch, prefix, bad, reason, block):
    monkeypatch.setattr(corpus_file, "BLOCK", block)
    path = tmp_path / "latin.txt"
    path.write_bytes(prefix + bad)
    with pytest.raises(UserError, match=f"latin.txt is not UTF-8 at byte {len(prefix)} .{reason}.*iconv"):
        open_corpus_file(path)


def test_not_utf8_in_an_archive_leaves_nothing_in_the_cache(tmp_path, cache):
    path = pack(tmp_path / "text.zip", "zip", b"abc\xff")
    with pytest.raises(UserError, match="byte 3"):
        open_corpus_file(path)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, message in {"missing": "does not exist", "empty": "is empty", ".": "is a directory",
                          "pipe": "no regular file"}.items():
        with pytest.raises(UserError, match=message):
            open_corpus_file(tmp_path / name)
    with pytest.raises(UserError, match="holds an empty file"):
        open_corpus_file(pack(tmp_path / "hollow.gz", "gz", b""))


def test_zip_with_another_number_of_members(tmp_path):
    with pytest.raises(UserError, match=r"holds 2 files \(a, b, ...\), expected one"):
        open_corpus_file(write_zip(tmp_path / "two.zip", {"a": "1", "b": "2"}))
    with pytest.raises(UserError, match="holds 0 files"):
        open_corpus_file(write_zip(tmp_path / "none.zip", {}))
    with pytest.raises(UserError, match="holds 0 files"):
        open_corpus_file(write_zip(tmp_path / "folder.zip", {"folder/": ""}))
    archive = write_zip(tmp_path / "mac.zip", {"text/": "", "text/a": "abc", "__MACOSX/text/._a": "\0"})
    assert bytes(open_corpus_file(archive).bytes()) == b"abc"


@pytest.mark.parametrize("packing", ["zip", "gz", "bz2", "xz"])
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_damaged_archive(tmp_path, cache, packing, harm):
    path = pack(tmp_path / "text", packing, os.urandom(3000).hex().encode())
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        open_corpus_file(path)
    assert not list(cache.rglob("*.data"))


def test_encrypted_zip(tmp_path):
    path = write_zip(tmp_path / "secret.zip", {"text": "abc"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        open_corpus_file(path)


def test_tar_is_named_as_such(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    with tarfile.open(tmp_path / "text.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "text", "text")
    with pytest.raises(UserError, match="tar archive: unpack"):
        open_corpus_file(tmp_path / "text.tar.gz")


def test_archive_bomb_stops_early(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(corpus_file, "EXPANSION_CHECKED_FROM", 1 << 20)
    path = pack(tmp_path / "bomb.gz", "gz", b"a" * (8 << 20))
    with pytest.raises(UserError, match="more than 200 times"):
        open_corpus_file(path)
    assert not list(cache.rglob("*.data"))


def test_member_names_are_never_paths(tmp_path, cache):
    path = write_zip(tmp_path / "trick.zip", {"../../escaped": "abc"})
    assert cache in open_corpus_file(path).path.parents
    assert not list(tmp_path.parent.rglob("escaped"))


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set REFORMER_LAB_CACHE"):
        open_corpus_file(pack(tmp_path / "text.gz", "gz", b"abc"))
    plain = pack(tmp_path / "text", "plain", b"abc")
    with pytest.warns(UserWarning, match="read anew each time"):
        assert open_corpus_file(plain).num_characters == 3


def test_a_name_without_a_folder_is_looked_for_among_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("REFORMER_LAB_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "novel.txt").write_text("from the data")
    assert open_corpus_file("novel.txt").num_bytes == 13
    Path("novel.txt").write_text("nearer")
    assert open_corpus_file("novel.txt").num_bytes == 6
    with pytest.raises(UserError, match=r"other\.txt does not exist"):
        open_corpus_file("other.txt")
