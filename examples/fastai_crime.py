"""Train a Reformer on a novel with fastai, and let it write.

    python examples/fastai_crime.py crime_and_punishment.txt

Any UTF-8 text will do; without one the source files of Python's standard library are read. docs/fastai.md explains each step.
"""

import argparse
import sys
from contextlib import nullcontext

from fastai.callback.training import GradientAccumulation, GradientClip

from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.integrations.fastai import byte_dataloaders, generate_text, language_learner
from reformer_lab.models.config import ReformerConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a Reformer on a text with fastai, and let it continue a prompt.")
    parser.add_argument("text", nargs="?", help="a UTF-8 file; left out: the standard library's source files")
    parser.add_argument("--length", type=int, default=512, help="bytes of a window (default: 512)")
    parser.add_argument("--width", type=int, default=64, help="d_model, a multiple of 4 (default: 64)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows at once (default: 4)")
    parser.add_argument("--accumulate", type=int, default=8, help="windows of one step (default: 8)")
    parser.add_argument("--epochs", type=int, default=1, help="times that the text is read (default: 1)")
    parser.add_argument("--rate", type=float, default=5e-3, help="highest learning rate (default: 0.005)")
    parser.add_argument("--prompt", default="It was ", help="text to continue")
    parser.add_argument("--new", type=int, default=400, help="bytes to write (default: 400)")
    options = parser.parse_args()

    data = ByteCorpusConfig(path=options.text, length=options.length, stride=options.length)
    dls = byte_dataloaders(data, batch_size=options.batch_size, eval_limit=40)
    model = ReformerConfig(
        d_model=options.width, d_ff=4 * options.width, num_layers=3, num_heads=4, d_head=options.width // 4,
        max_length=options.length, attention=("local", "lsh", "local"), num_hashes=2, loss_chunk_length=options.length // 4,
    )  # fmt: skip
    learn = language_learner(model, dls, cbs=[GradientAccumulation(options.accumulate), GradientClip(1.0)])

    with nullcontext() if sys.stdout.isatty() else learn.no_bar():
        before = learn.validate()[1]
        learn.fit_one_cycle(options.epochs, options.rate)
        after = learn.validate()[1]
    print(f"bits per byte of the validation split: {before:.3f} before, {after:.3f} after")
    room = options.length - len(options.prompt.encode())
    print(options.prompt + generate_text(learn, options.prompt, length=min(options.new, room), temperature=0.8, seed=1))


if __name__ == "__main__":
    main()
