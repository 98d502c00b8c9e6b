"""Tokenizers of transformers: bytes + 2, byte pairs. Needs transformers (`make test-hf`)."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: `make test-hf` runs this")

from transformers import AutoTokenizer, pipeline

from reformer_lab.errors import UserError
from reformer_lab.integrations.huggingface_model import as_huggingface
from reformer_lab.integrations.huggingface_tokenizers import BYTES, byte_tokenizer, train_bpe
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.models.presets import get_preset

TEXTS = [
    "plain", "", " two  spaces ", "Zeichen: ü, 漢字, 🙂", "line\nline\r\n\ttab", "\x00\x7f\u2028", "<pad", "don't , stop .",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_bytes_plus_two(text: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(512)
    assert tokenizer(text)["input_ids"] == [byte + 2 for byte in text.encode()]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (258, 0, 1)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.model_max_length == 512


def test_every_byte_has_its_token() -> None:
    """Not every sequence of bytes is text; each byte stands in some character."""
    tokenizer = byte_tokenizer()
    for text in map(chr, [*range(0x800), *range(0x800, 0xD800, 997), *range(0x10000, 0x110000, 65521)]):
        assert tokenizer(text)["input_ids"] == [byte + 2 for byte in text.encode()]


def test_byte_pairs(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("the hash of the hashing of the hash, und Übermut tut selten gut. " * 40, encoding="utf-8")
    for size in (BYTES, 270, 320):
        tokenizer = train_bpe([path], size)
        assert BYTES <= len(tokenizer) <= size
        for text in TEXTS:
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("the hash of the hashing")["input_ids"]) < 10
    assert tokenizer.pad_token_id == 0
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("the hash")["input_ids"] == tokenizer("the hash")["input_ids"]


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    for file, named in (("empty", "no text"), ("binary", "UTF-8"), ("nowhere", "nowhere")):
        with pytest.raises(UserError, match=named):
            train_bpe(tmp_path / file)
    with pytest.raises(UserError, match="vocab_size=257"):
        train_bpe(tmp_path / "empty", 257)


def test_a_pipeline(tmp_path: Path) -> None:
    """A folder with model and tokenizer is all that transformers' pipeline needs."""
    as_huggingface(ReformerLM(get_preset("cpu_tiny")).eval()).save_pretrained(tmp_path)
    byte_tokenizer(128).save_pretrained(tmp_path)
    torch.manual_seed(0)
    write = pipeline("text-generation", model=str(tmp_path), device="cpu")
    found = write("The hash", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert found.startswith("The hash")
    batch = write(["The hash", "of"], max_new_tokens=5, do_sample=False, batch_size=2)
    assert [texts[0]["generated_text"][:2] for texts in batch] == ["Th", "of"]
