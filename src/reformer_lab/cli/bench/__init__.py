"""`reformer-lab bench`: seconds and bytes on this machine."""

import argparse
from collections.abc import Callable
from pathlib import Path

from reformer_lab.cli.bench.attention import run_attention, run_scaling
from reformer_lab.cli.bench.generation import run_generation
from reformer_lab.cli.bench.memory import run_memory
from reformer_lab.cli.bench.soak import run_soak
from reformer_lab.cli.bench.step import PIECES, run_step

HELP = """\
Measure attention, training steps and memory on this machine, side by side with what others do.

examples:
  reformer-lab bench attention --lengths 1k,4k,16k
  reformer-lab bench attention --what operator,layer --csv attention.csv --figure attention.svg
  reformer-lab bench attention --device cuda --precision bf16 --heads 16 --lengths 1k,4k,16k,64k,256k,1m --what operator
  reformer-lab bench scaling --lengths 8k,16k,32k,64k,128k,256k
  reformer-lab bench step --lengths 4k,16k
  reformer-lab bench step --preset crime_and_punishment --repeats 1
  reformer-lab bench generate --lengths 1k,4k,16k,32k
  reformer-lab bench memory --depths 2,4,8 --lengths 8k --csv memory.csv
  reformer-lab bench soak --steps 2000 --csv soak.csv --figure soak.svg
  reformer-lab bench figure attention.csv --figure attention.svg

Contenders take turns, each in a process of its own. transformers and reformer-pytorch take part where they are
installed: `make bench-environment` makes an environment with them, `make bench` measures there. docs/benchmarks.md.
"""


def main(argv: list[str]) -> int:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(prog="reformer-lab bench", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True,
                                    metavar="attention | scaling | step | generate | memory | soak | figure")

    attention = actions.add_parser("attention", help="one attention, alone or with its projections, forward and backward")
    scaling = actions.add_parser("scaling", help="time and memory per token of one attention against length")
    step = actions.add_parser("step", help="a whole training step of a language model")
    generation = actions.add_parser("generate", help="one more token of a text against the length of the text")
    memory = actions.add_parser("memory", help="activations of a training step against depth, length, feed-forward chunk")
    soak = actions.add_parser("soak", help="whether a long training run grows, in memory or on the disk (CPU)")
    figure = actions.add_parser("figure", help="draw what one of the others wrote with --csv")

    lengths = {attention: "1k,4k,16k", scaling: "8k,16k,32k,64k,128k,256k", memory: "4k,16k,64k"}
    for action, default in lengths.items():
        action.add_argument("--lengths", default=default, help="tokens; k and m are 1024 and 1024² (%(default)s)")
    step.add_argument("--lengths", help="tokens; k and m are 1024 and 1024² (4k,16k; the greatest of a preset)")

    for action, default in ((attention, "layer"), (scaling, "operator")):
        action.add_argument("--what", default=default,
                            help="operator (queries, keys and values are given), layer (with projections), or both with a "
                                 "comma (%(default)s)")
        action.add_argument("--passes", default="forward,forward+backward", help="one or both (%(default)s)")
        action.add_argument("--heads", type=int, default=8, help="attention heads (%(default)s)")
        action.add_argument("--d-head", type=int, default=64, help="width of a head (%(default)s)")
        action.add_argument("--rounds", type=int, default=4, help="hash rounds (%(default)s)")
        action.add_argument("--chunk-length", type=int, default=64, help="chunk of sorted tokens (%(default)s)")
    attention.add_argument("--only", help="contenders, separated by commas (all that can run)")
    scaling.add_argument("--only", help="contenders, separated by commas (the fastest backend of this package)")

    step.add_argument("--preset", help="a preset's model, with transformers beside it, instead of 6 layers of width 512")
    step.add_argument("--only", help="contenders, separated by commas (all that can run)")
    for name, meaning in PIECES.items():
        step.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"ours: {meaning} at once (the model's)")

    for action, seconds in ((attention, 60), (scaling, 300), (step, 600)):
        action.add_argument("--batch-size", type=int, default=1, help="sequences (%(default)s)")
        action.add_argument("--repeats", type=int, default=5, help="turns of each contender (%(default)s)")
        action.add_argument("--max-seconds", type=float, default=seconds,
                            help="a call that takes longer is stopped; no new turn after so long (%(default)s)")
        action.add_argument("--threads", type=int, help="threads of each contender (torch's default)")

    memory.add_argument("--depths", default="2", help="layers (%(default)s)")
    memory.add_argument("--ff-chunks", default="none", help="positions of the feed-forward layer at once (%(default)s)")
    memory.add_argument("--attention", default="lsh", help="lsh, full or local (%(default)s)")
    memory.add_argument("--d-model", type=int, default=128, help="width (%(default)s)")
    memory.add_argument("--d-ff", type=int, default=512, help="width of the feed-forward layer (%(default)s)")
    memory.add_argument("--rounds", type=int, default=4, help="hash rounds (%(default)s)")

    generation.add_argument("--lengths", default="1k,4k,16k,32k", help="tokens that are there already (%(default)s)")
    generation.add_argument("--only", default="lsh,local", help="lsh, lsh-bucket, local, full (%(default)s)")
    generation.add_argument("--batch-size", type=int, default=1, help="texts (%(default)s)")
    generation.add_argument("--repeats", type=int, default=9, help="turns of each length, of 8 tokens (%(default)s)")
    generation.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    generation.add_argument("--csv", type=Path, metavar="FILE", help="write every point to this file too")

    for action in (attention, scaling, step, memory):
        action.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
        action.add_argument("--precision", default="fp32", help="fp32 or bf16 (%(default)s)")
        action.add_argument("--csv", type=Path, metavar="FILE", help="write every point to this file too")
    figure.add_argument("source", type=Path, metavar="CSV", help="a file that --csv wrote")
    figure.add_argument("--figure", type=Path, metavar="FILE.svg", required=True, help="what to draw")
    soak.add_argument("--steps", type=int, default=2000, help="optimiser steps (%(default)s)")
    soak.add_argument("--threads", type=int, help="threads of the training process (torch's default)")
    soak.add_argument("--csv", type=Path, metavar="FILE", help="write every sample to this file too")
    for action in (attention, scaling, step, soak):
        action.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw the rows of --csv into this file")
    arguments = parser.parse_args(argv)
    actions_by_name: dict[str, Callable[[argparse.Namespace], int]] = {
        "attention": run_attention, "scaling": run_scaling, "step": run_step, "generate": run_generation, "memory": run_memory,
        "soak": run_soak, "figure": _figure}
    return actions_by_name[arguments.action](arguments)


def _figure(arguments: argparse.Namespace) -> int:
    from reformer_lab.reporting.benchmark_figure import draw_benchmark

    draw_benchmark(arguments.source, arguments.figure)
    print(f"written: {arguments.figure}")
    return 0
