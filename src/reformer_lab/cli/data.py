"""`reformer-lab data`: what a corpus holds and how it would be split; fetching a known one."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from reformer_lab.data.config import ByteCorpusConfig, ImagesConfig
from reformer_lab.errors import UserError
from reformer_lab.terminal import visible

HELP = """\
Show what a corpus holds and how it is split, or download a known corpus.

examples:
  reformer-lab data info novel.txt
  reformer-lab data info books.zip --split-by bytes
  reformer-lab data info photographs/ --side 32
  reformer-lab data info                        # the embedded corpus: Python's standard library
  reformer-lab data download enwik8             # into the cache; broken off, it goes on when called again
"""
_SECONDS_BETWEEN_LINES = 5.0


def main(argv: list[str]) -> int:
    """Run `data info` or `data download` and return the exit code."""
    parser = argparse.ArgumentParser(prog="reformer-lab data", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="info | download")

    info = actions.add_parser("info", help="sizes, splits and sum of a text, or of a set of images")
    info.add_argument("path", nargs="?", metavar="PATH",
                      help="a text (.zip, .gz, .bz2, .xz too), images (folder, .zip, .npz), or enwik8; "
                           "none: the embedded corpus")
    info.add_argument("--length", type=int, default=ByteCorpusConfig.length, help="bytes of a window (%(default)s)")
    info.add_argument("--split-by", choices=("characters", "bytes"), default="characters",
                      help="unit of the held-out splits of a text (%(default)s)")
    info.add_argument("--valid", type=int, help="units held out for validation (5 %% of them)")
    info.add_argument("--test", type=int, help="units held out for the test (5 %% of them)")
    info.add_argument("--side", type=int, default=ImagesConfig.side, help="pixels of an image's side (%(default)s)")

    download = actions.add_parser("download", help="fetch a known corpus")
    download.add_argument("name", choices=("enwik8",), help="which")
    download.add_argument("--url", help="another address of the same file, plain or packed")
    download.add_argument("--output", type=Path, metavar="PATH", help="folder or file to write (the cache)")

    arguments = parser.parse_args(argv)
    if arguments.action == "download":
        return _download(arguments)
    return _info(arguments)


def _info(arguments: argparse.Namespace) -> int:
    from reformer_lab.data.image_sources import holds_images

    if arguments.path is not None and holds_images(Path(os.path.expanduser(arguments.path))):
        _print_facts(_image_facts(ImagesConfig(path=arguments.path, side=arguments.side)))
    else:
        _print_facts(_text_facts(ByteCorpusConfig(path=arguments.path, length=arguments.length, valid=arguments.valid,
                                                  test=arguments.test, split_by=arguments.split_by)))
    return 0


def _text_facts(config: ByteCorpusConfig) -> dict[str, Any]:
    from reformer_lab.data import enwik8
    from reformer_lab.data.corpora import open_corpus, split_bounds, training_starts

    corpus = open_corpus(config.path)
    bounds = split_bounds(corpus, config)
    facts: dict[str, Any] = {
        "corpus": corpus.name + (" (enwik8)" if corpus.sha256 == enwik8.SHA256 else ""),
        "plain bytes in": corpus.path,
        "bytes": f"{corpus.num_bytes:,}",
        "characters": f"{corpus.num_characters:,}",
        "sha256": corpus.sha256,
        "split by": config.split_by,
    }
    for split, (first, end) in bounds.items():
        characters = corpus.characters_before(end) - corpus.characters_before(first)
        facts[split] = f"{characters:,} characters, {end - first:,} bytes, from byte {first:,}"
    try:
        stride, count = training_starts(bounds["train"][1], config)
        facts["windows"] = f"{count:,} of {config.length:,} bytes in an epoch, one every {stride:,}"
    except UserError as error:
        facts["windows"] = f"none: {error}"
    return facts


def _image_facts(config: ImagesConfig) -> dict[str, Any]:
    from reformer_lab.data.images import ImagesDataset

    images = ImagesDataset(config, seed=0)
    return {
        "images": images.name,
        "sequence": f"{config.side} x {config.side} x {config.channels} = {config.length:,} tokens",
        "sha256": images.fingerprint,
        **{split: f"{count:,} images" for split, count in images.store.counts.items()},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(visible(f"{name:<14} {value}"))


def _download(arguments: argparse.Namespace) -> int:
    from reformer_lab.data import enwik8

    with _Progress() as progress:
        path = enwik8.download(arguments.url or enwik8.URL, arguments.output, progress)
    print(f"{visible(path)}: enwik8, {enwik8.NUM_BYTES:,} bytes, its sum is right")
    return 0


class _Progress:
    """Bytes fetched so far, on standard error: a bar on a terminal, else a line every few seconds."""

    def __enter__(self) -> "_Progress":
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                             console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("enwik8", total=None)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int | None) -> None:
        if not self._bar.disable:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(f"enwik8: {done:,} of {total or 0:,} bytes", file=sys.stderr, flush=True)
