"""What the benchmarks' commands share: reading and checking options, and where a row was measured."""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reformer_lab.errors import UserError


def parse_count(text: str) -> int:
    """Return a positive number of tokens: "4096", "4k" (1024 each), "1m" (1024² each). Raises UserError otherwise."""
    factors = {"k": 1024, "m": 1024**2}
    lowered = text.strip().lower()
    digits, factor = (lowered[:-1], factors[lowered[-1]]) if lowered[-1:] in factors else (lowered, 1)
    if not digits.isdecimal() or int(digits) < 1:
        raise UserError(f"{text!r} is no positive number; write it like 4096, 4k or 1m")
    return int(digits) * factor


def parse_counts(text: str) -> list[int]:
    """Return the numbers of a list such as "1k,4k,16k"."""
    return [parse_count(part) for part in text.split(",")]


def words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",")))


def positive(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")


def check_seconds(arguments: argparse.Namespace) -> None:
    if not arguments.max_seconds > 0:
        raise UserError(f"--max-seconds {arguments.max_seconds}: must be more than 0")


def check_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision}: choose fp32 or bf16")


def check_files(arguments: argparse.Namespace) -> None:
    if arguments.figure is not None and arguments.csv is None:
        raise UserError("--figure draws what --csv writes: give both")
    if arguments.figure is not None and arguments.figure.suffix.lower() != ".svg":
        raise UserError(f"--figure {arguments.figure}: the figure is an SVG file; choose a name that ends in .svg")
    for option in ("csv", "figure"):
        check_writable(getattr(arguments, option), f"--{option}")


def check_writable(path: Path | None, option: str = "--csv") -> None:
    """Raise UserError now rather than after the measurements."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another file with {option}") from error


def check_backends(backends: Sequence[str], device: Any, dtype: Any, d_head: int) -> None:
    from reformer_lab.benchmarks.check import CheckFailed, check_backends

    try:
        check_backends(backends, device, dtype, d_head)
    except CheckFailed as wrong:
        print(f"reformer-lab: nothing was measured: {wrong}", file=sys.stderr)
        raise SystemExit(1) from None


def describe_machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the columns of every row that tell where and with what it was measured."""
    import torch

    from reformer_lab.benchmarks.measure import describe_device, resolve_device
    from reformer_lab.training.tracking import environment

    facts = environment()
    machine = {**describe_device(resolve_device(arguments.device)), "torch": torch.__version__,
               "reformer_lab": facts["reformer_lab"], "commit": facts["commit"],
               "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    return {**machine, "threads": arguments.threads or machine["threads"]}
