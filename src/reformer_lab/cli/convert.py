"""`reformer-lab convert`: a checkpoint of another library into a model folder of ours, and back."""

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from reformer_lab.cli.options import parse_options
from reformer_lab.errors import UserError
from reformer_lab.terminal import visible

if TYPE_CHECKING:
    from reformer_lab.models.language_model import ReformerLM

DESCRIPTION = """\
Convert a checkpoint: trax's pickle, a Hugging Face folder (config.json and weights) or a run or model folder of this package.

examples:
  reformer-lab convert model.pkl.gz converted --from trax --to reformer-lab
  reformer-lab convert model.pkl.gz converted --from trax --to huggingface --set chunk_length=256 num_hashes=4
  reformer-lab convert reformer-enwik8/ converted --from huggingface --to reformer-lab
  reformer-lab convert runs/novel for-transformers --from reformer-lab --to huggingface
"""


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Options of `reformer-lab convert`."""

    source: Annotated[Path, tyro.conf.Positional]
    """Checkpoint to read."""
    dest: Annotated[Path, tyro.conf.Positional]
    """Folder to write; it must be new or empty."""
    source_format: Annotated[Literal["trax", "huggingface", "reformer-lab"], tyro.conf.arg(name="from")]
    """Where it comes from."""
    dest_format: Annotated[Literal["reformer-lab", "huggingface"], tyro.conf.arg(name="to")]
    """Who is to read it."""
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE ...")] = ()
    """Fields of the model's configuration to change, such as num_hashes=8; trax's checkpoints leave most of them open."""


def main(argv: list[str]) -> int:
    """Parse, convert, say what the model is."""
    arguments = parse_options(ConvertArguments, argv, prog="reformer-lab convert", description=DESCRIPTION)
    changes = dict(_change(word) for word in arguments.changes)
    if arguments.dest.exists() and (not arguments.dest.is_dir() or any(arguments.dest.iterdir())):
        raise UserError(f"{arguments.dest} is there already and not empty: name a new folder")

    model = _read(arguments.source, arguments.source_format, changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _write(model, arguments.dest_format, arguments.dest)
    for warning in caught:
        print(visible(f"warning: {warning.message}"))
    config = model.config
    kinds = ", ".join(dict.fromkeys(config.layer_kinds()))
    count = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{visible(arguments.dest)}: {count:,} parameters, {config.num_layers} layers ({kinds}), "
        f"vocabulary {config.vocab_size}, up to {config.max_length:,} tokens"
    )
    return 0


def _write(model: "ReformerLM", dest_format: str, dest: Path) -> None:
    """Write the model to a new or empty folder, which stays empty where that fails."""
    from reformer_lab.files import TEMPORARY, writing

    with writing(dest, "name another folder"):
        dest.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=dest) as aside:
            if dest_format == "huggingface":
                from reformer_lab.integrations.huggingface import to_huggingface

                to_huggingface(model, Path(aside))
            else:
                model.save_pretrained(Path(aside))
            for part in sorted(Path(aside).iterdir()):
                part.rename(dest / part.name)


def _change(word: str) -> tuple[str, Any]:
    """Return field and value of NAME=VALUE; a value that is no JSON is a string."""
    from reformer_lab.models.config import ReformerConfig

    name, equals, text = word.partition("=")
    name = name.replace("-", "_")
    if not equals or name not in (*ReformerConfig.__dataclass_fields__, "numerics"):
        raise UserError(f"--set {word}: expected NAME=VALUE with a field of the model's configuration, such as num_hashes=8")
    try:
        return name, json.loads(text)
    except (ValueError, RecursionError):
        return name, text


def _read(source: Path, source_format: str, changes: dict[str, Any]) -> "ReformerLM":
    if source_format == "trax":
        from reformer_lab.integrations.trax import from_trax

        return from_trax(source, **changes)
    if "numerics" in changes:
        raise UserError("--set numerics=...: for checkpoints of trax alone; name the single fields")
    if source_format == "huggingface":
        from reformer_lab.integrations.huggingface import from_huggingface

        return from_huggingface(source, **changes)
    from reformer_lab.models.language_model import ReformerLM

    model = ReformerLM.from_pretrained(source / "model" if (source / "model").is_dir() else source)
    return model.with_config(**changes) if changes else model
