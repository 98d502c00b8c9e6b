"""Tokenizers of transformers: bytes, and byte pairs learned from the user's own files. Needs the extra `hf`.

In both 0 is padding and 1 the end of sequence, as in our data; every text comes back from its tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reformer_lab.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "</s>")
BYTES = 256 + len(SPECIAL)
"""Size of the byte tokenizer's vocabulary, and the least of a learned one."""


def byte_tokenizer(model_max_length: int | None = None) -> "PreTrainedTokenizerFast":
    """Return the tokenizer of `ByteCorpusConfig`: token = byte + 2."""
    from tokenizers import Tokenizer, models

    alphabet = {_letter(byte): byte + len(SPECIAL) for byte in range(256)}
    vocabulary = {token: i for i, token in enumerate(SPECIAL)} | alphabet
    return _finished(Tokenizer(models.BPE(vocab=vocabulary, merges=[])), model_max_length)


def train_bpe(
    files: str | Path | Sequence[str | Path], vocab_size: int = 320, model_max_length: int | None = None
) -> "PreTrainedTokenizerFast":
    """Return a tokenizer of byte pairs learned from UTF-8 files, with `vocab_size` tokens at most (fewer for a short text).

    A UserError names a file that is missing, empty or no UTF-8, and a vocabulary too small for all bytes.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < BYTES:
        raise UserError(f"vocab_size={vocab_size}: at least {BYTES}, one token for each byte and two special ones")
    texts = [_text(Path(file)) for file in ([files] if isinstance(files, (str, Path)) else files)]
    if not any(texts):
        raise UserError("there is no text to learn from: give at least one file with text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return _finished(tokenizer, model_max_length, words=True)


def _finished(tokenizer: "Tokenizer", model_max_length: int | None, words: bool = False) -> "PreTrainedTokenizerFast":
    from tokenizers import decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    length = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1], clean_up_tokenization_spaces=False,
        padding_side="left", **length,  # generation goes on at the right
    )  # fmt: skip


def _letter(byte: int) -> str:
    """Return the letter that stands for a byte in byte-level vocabularies: itself if it can be seen, else one above 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in visible:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in visible].index(byte))


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} is no file: give UTF-8 text to learn from")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 ({error}): convert it first") from None
