"""Tensor2Tensor's subwords and its records: golden pairs, and texts of every kind."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_lab.data.tokenizers.subwords import END, SubwordTokenizer
from reformer_lab.data.tokenizers.tfrecord import masked_crc32c, read_examples
from reformer_lab.errors import UserError

TRAX = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "trax"
VOCABULARY = TRAX / "vocab.translate_ende_wmt32k.32768.subwords"
LETTERS = "\\_u;0123456789 .,abcdefghijklmnopqrstvwxyzü"
SMALL = SubwordTokenizer(["<pad>", "<EOS>", "the_", "hash_", "hash", "ing_", ", _", *LETTERS])


def golden(split: str) -> Path:
    path = TRAX / f"translate_ende_wmt32k-{split}-00000-of-00001"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize("split", ["train", "dev"])
def test_golden_pairs(split: str) -> None:
    path = golden(split)
    tokenizer = SubwordTokenizer.from_file(VOCABULARY)
    assert len(tokenizer) == 33_288
    examples = list(read_examples(path))
    assert len(examples) >= 4
    for example in examples:
        assert set(example) == {"inputs", "targets"}
        for ids in example.values():
            assert ids[-1] == END
            assert tokenizer.encode(tokenizer.decode(ids), end=True) == ids


def test_what_a_golden_sentence_says() -> None:
    first = next(read_examples(golden("dev")))
    tokenizer = SubwordTokenizer.from_file(VOCABULARY)
    text = tokenizer.decode(first["inputs"])
    assert text.isascii()
    assert len(text.split()) >= 8
    assert tokenizer.decode([0, *first["inputs"], 0, 5]) == text


def test_longest_first() -> None:
    ids = SMALL.encode("hashing, the hash")
    assert [SMALL.subwords[i] for i in ids] == ["hash", "ing_", ", _", "the_", "hash_"]


@pytest.mark.parametrize(
    "text", ["", " ", "a", "a b", "a  b", " a ", "_", "\\", "\\u", "a_b\\95;", "line\nline\n", "Zeichen: ü, 漢字!", "\0", "7 8"]
)
def test_every_text_comes_back(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text, end=True)) == text


@pytest.mark.parametrize(
    ("content", "named"),
    [("'<pad>_'\nthe_\n", "line 2"), ("'a'\n'b'\n", "2 subwords"), ("'a'\n'b'\n'c'\n'a'\n", "twice"), (b"\xff'", "UTF-8")],
)
def test_wrong_vocabularies(content: str | bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=named):
        SubwordTokenizer.from_file(path)


def test_wrong_tokens() -> None:
    with pytest.raises(UserError, match="token 99"):
        SMALL.decode([3, 99])
    with pytest.raises(UserError, match="no subword"):
        SubwordTokenizer(["<pad>", "<EOS>", "a_"]).encode("b")
    with pytest.raises(UserError, match="nowhere"):
        SubwordTokenizer.from_file("nowhere")


def record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    checks = [struct.pack("<I", masked_crc32c(data)) for data in (length, message)]
    return length + checks[0] + message + checks[1]


def message(name: bytes, values: bytes) -> bytes:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    return field(1, field(1, field(1, name) + field(2, field(3, values))))


def test_numbers_packed_and_not(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(record(message(b"a", b"\x0a\x03\x05\x80\x01")) + record(message(b"b", b"\x08\x07\x08\x01")))
    assert list(read_examples(path)) == [{"a": [5, 128]}, {"b": [7, 1]}]
    minus_one = b"\x0a\x0a" + b"\xff" * 9 + b"\x01"
    path.write_bytes(record(message(b"c", minus_one)))
    assert list(read_examples(path)) == [{"c": [-1]}]


@pytest.mark.parametrize("damage", ["cut", "cut header", "flipped", "flipped length", "no message"])
def test_damaged_records(damage: str, tmp_path: Path) -> None:
    whole = record(message(b"a", b"\x0a\x03\x05\x80\x01"))
    flipped, flipped_length = bytearray(whole), bytearray(whole)
    flipped[20] ^= 1
    flipped_length[8] ^= 1
    path = tmp_path / "records"
    path.write_bytes({
        "cut": whole[:-3], "cut header": whole + b"\1\2", "flipped": bytes(flipped), "flipped length": bytes(flipped_length),
        "no message": record(b"\x0a\x7f"),
    }[damage])  # fmt: skip
    with pytest.raises(UserError, match="records"):
        list(read_examples(path))
