"""`reformer-lab generate`: continue a text, as it comes."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from reformer_lab.cli.options import parse_options
from reformer_lab.data.byte_text import ByteDecoder, encode
from reformer_lab.data.config import BYTE_VOCABULARY, ByteCorpusConfig
from reformer_lab.errors import UserError
from reformer_lab.terminal import visible
from reformer_lab.training.config import Precision, RunConfig

if TYPE_CHECKING:
    from reformer_lab.models.language_model import ReformerLM

DEFAULT_LENGTH = 400
DESCRIPTION = """\
Continue a text with a run's model (an unfinished run: at its newest checkpoint) or with a model folder. The text, prompt
included, goes to standard output as it comes, everything else to standard error. Equal calls give equal texts.

examples:
  reformer-lab generate runs/novel --prompt "It was a dark and stormy night"
  reformer-lab generate runs/novel --prompt "It was" --temperature 0.8 --top-p 0.9 --length 1000 --num-hashes 8 --seed 1
  reformer-lab generate runs/novel --prompt "It was" --greedy
  reformer-lab generate runs/duplication --prompt-tokens "0 3 7 5 0" --greedy
"""


@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """Options of `reformer-lab generate`."""

    model: Annotated[Path, tyro.conf.Positional]
    """Run folder that `train` has made, or a folder that `save_pretrained` wrote."""
    prompt: str | None = None
    """The text to continue, for a model of bytes."""
    prompt_tokens: str | None = None
    """The same as token ids with spaces between them, for any model; token ids are printed then."""
    length: int | None = None
    """New tokens. Left out: 400, or as many as fit."""
    greedy: bool = False
    """Always the most probable token."""
    temperature: float | None = None
    """Divides the logits before a token is drawn. Left out: 1."""
    top_k: int | None = None
    """Draw among the k most probable tokens."""
    top_p: float | None = None
    """Draw among the most probable tokens that together reach this probability."""
    num_beams: int = 1
    """More than 1: beam search of that width; nothing is printed before it has ended."""
    length_penalty: float = 0.0
    """Of beam search (Wu et al., 2016): the higher, the longer."""
    num_hashes: int | None = None
    """Hash rounds of LSH attention. Left out: as in training."""
    seed: int = 0
    """Another seed draws another text."""
    end_token: int | None = None
    """Token after which the text ends. Left out: none."""
    precision: Precision = "fp32"
    """fp32, or bf16 autocast."""


def main(argv: list[str]) -> int:
    """Parse, continue the text, print it."""
    arguments = parse_options(GenerateArguments, argv, prog="reformer-lab generate", description=DESCRIPTION)
    given = {"--prompt": arguments.prompt, "--prompt-tokens": arguments.prompt_tokens}
    if sum(value is not None for value in given.values()) != 1:
        raise UserError("give either --prompt TEXT or --prompt-tokens \"0 3 7\"")
    for name, value in given.items():
        if value is not None and not value.strip(" " if name == "--prompt-tokens" else ""):
            raise UserError(f"{name} is empty: give at least one " + ("token" if name == "--prompt-tokens" else "character"))
    tokens = None if arguments.prompt_tokens is None else _token_ids(arguments.prompt_tokens)

    import torch

    from reformer_lab.evaluation.generate import generate, stream

    model, state, meaning = _load(arguments.model)
    if tokens is None:
        if meaning is not None:
            raise UserError(f"--prompt: {meaning}; give --prompt-tokens \"0 3 7\" instead")
        tokens = encode(arguments.prompt or "")
    model = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    length = arguments.length
    if length is None:
        length = max(1, min(DEFAULT_LENGTH, model.config.max_length - len(tokens)))
    print(visible(f"{arguments.model}: {state}; {len(tokens)} tokens, {length} new ones"), file=sys.stderr)

    show = _Text(tokens) if arguments.prompt_tokens is None else _Ids(tokens)
    common: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("greedy", "temperature", "top_k", "top_p", "num_hashes", "seed", "end_token", "precision")
    } | {"length": length}
    if arguments.num_beams != 1:
        beams: dict[str, Any] = {"num_beams": arguments.num_beams, "length_penalty": arguments.length_penalty}
        new = iter(generate(model, [tokens], **common, **beams)[0].tokens)
    else:
        new = (token for (token,) in stream(model, [tokens], **common) if token is not None)
    try:
        show.begin()
        for token in new:
            show.add(token)
    finally:
        show.end()
    return 0


class _Ids:
    """Prints token ids with spaces between them."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt

    def begin(self) -> None:
        print(*self.prompt, end="", flush=True)

    def add(self, token: int) -> None:
        print(f" {token}", end="", flush=True)

    def end(self) -> None:
        print(flush=True)


class _Text(_Ids):
    """Prints the text of bytes. What a terminal would take as a command to it (control characters) is replaced there."""

    def begin(self) -> None:
        self.decoder = ByteDecoder()
        for token in self.prompt:
            self.add(token)

    def add(self, token: int) -> None:
        self._write(self.decoder.feed(token))

    def end(self) -> None:
        self._write(self.decoder.end() + "\n")

    def _write(self, text: str) -> None:
        if sys.stdout.isatty():
            text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()


def _token_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise UserError(f"--prompt-tokens {text!r} must hold whole numbers with spaces between them ({error})") from None


def _load(folder: Path) -> "tuple[ReformerLM, str, str | None]":
    """Return the model, a phrase that says which it is, and why a text is no prompt for it (None: its tokens are bytes)."""
    from reformer_lab.models.language_model import WEIGHTS_FILE, ReformerLM
    from reformer_lab.training.checkpoint import trained_weights
    from reformer_lab.training.run_folder import read_config_file

    if (folder / WEIGHTS_FILE).is_file():
        model = ReformerLM.from_pretrained(folder)
        meaning = f"{folder} does not say what its {model.config.vocab_size} tokens mean, and bytes would be {BYTE_VOCABULARY}"
        return model, "a model folder", None if model.config.vocab_size == BYTE_VOCABULARY else meaning
    config = RunConfig.from_dict(read_config_file(folder)["config"])
    weights, state = trained_weights(folder, config.steps, lambda line: print(visible(line), file=sys.stderr))
    meaning = f"the tokens of {folder} are not text ({config.data.kind})"
    return ReformerLM.from_pretrained(weights), state, None if isinstance(config.data, ByteCorpusConfig) else meaning
