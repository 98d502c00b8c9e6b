"""`reformer-lab reproduce`: runs the paper's experiments and ends in a report."""

import argparse
import contextlib
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reformer_lab.errors import UserError
from reformer_lab.terminal import visible

if TYPE_CHECKING:
    from reformer_lab.runner.cluster import Cluster

HELP = """\
Run the paper's experiments at one scale, write the report, print the verdicts. Ctrl-C and kill leave everything that is done:
the same command goes on from there. A finished run is never run again.

examples:
  reformer-lab reproduce --scale smoke                    # a few minutes: does everything run here?
  reformer-lab reproduce --scale quick                    # about 15 minutes on 2 CPU cores
  reformer-lab reproduce --scale small --only table2,memory --output results/small
  reformer-lab reproduce --scale small --data ~/texts     # the folder that holds books.zip
  reformer-lab reproduce --scale gpu --minutes 8          # a piece of it; again and again, until the exit code is not 3
  reformer-lab reproduce --scale small --corpus novel.txt # another text for the language models
  reformer-lab reproduce --scale small --engine ray --address auto --output /shared/small    # on a Ray cluster
"""

EXIT_LEFT = 3
"""The minutes are over, and something is left to run."""


def main(argv: list[str]) -> int:
    """Run the suite; 0 when every run finished, 1 when one failed, 3 when the minutes are over and some are left."""
    parser = argparse.ArgumentParser(prog="reformer-lab reproduce", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="quick", help="smoke, quick, small, gpu or paper (%(default)s)")
    parser.add_argument("--only", metavar="NAMES", help="experiments, separated by commas (all; see `reformer-lab list`)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of runs, results and report (reproduction/SCALE)")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="where the data that a scale names are looked for ($REFORMER_LAB_DATA, or the current folder)")
    parser.add_argument("--corpus", metavar="NAME", default="",
                        help="text that the language models read instead of the scale's own: enwik8, or any UTF-8 file, plain "
                        "or compressed")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="trainings at once (one for each processor; on a GPU one, or four small ones)")
    parser.add_argument("--minutes", type=float, metavar="M",
                        help="stop after M minutes, with exit code 3 if something is left; the same command goes on from there")
    parser.add_argument("--engine", choices=("local", "ray"), default="local",
                        help="where to run: this machine, or a Ray cluster (%(default)s)")
    parser.add_argument("--address", metavar="HOST:PORT",
                        help="the Ray cluster; auto: the one that this machine is part of (left out: $RAY_ADDRESS, or this "
                        "machine alone)")
    arguments = parser.parse_args(argv)

    from reformer_lab.experiments.claim import SCALES, check_scale
    from reformer_lab.experiments.registry import get_experiments
    from reformer_lab.folders import DATA_VARIABLE

    scale = check_scale(arguments.scale)
    names = None if arguments.only is None else [name for name in arguments.only.replace(" ", "").split(",") if name]
    experiments = get_experiments(names)
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be at least 1")
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise UserError(f"--minutes {arguments.minutes:g}: must be above 0")
    if arguments.address is not None and arguments.engine != "ray":
        raise UserError(f"--address {arguments.address}: has a meaning with --engine ray alone; leave it out, or add that")
    if arguments.data is not None:
        if not arguments.data.is_dir():
            raise UserError(f"--data {arguments.data}: no such folder")
        os.environ[DATA_VARIABLE] = str(arguments.data.resolve())  # the workers inherit it
    output: Path = arguments.output or Path("reproduction") / scale

    from reformer_lab.cli.report import print_report
    from reformer_lab.runner.engine import run_suite
    from reformer_lab.runner.plan import make_plan

    command = shlex.join(["reformer-lab", "reproduce", *argv])
    plan = make_plan(experiments, scale, arguments.corpus)
    if not plan.arms:
        others = [other for other in SCALES if any(one.arms(other) for one in experiments)]
        raise UserError(f"{', '.join(plan.entries)}: no runs at the scale {scale}; choose {' or '.join(others)}")
    for path, wanting in plan.missing_data.items():
        raise UserError(f"{path} is not here, which {', '.join(wanting)} at the scale {scale} is trained on: "
                        + ("run `reformer-lab data download enwik8` once" if path == "enwik8"
                           else "give the folder that holds it with --data (what it is: results/README.md)")
                        + (", or another text with --corpus" if path in plan.texts else "")
                        + ", or name other experiments with --only")
    with contextlib.ExitStack() as connected:
        cluster = connected.enter_context(connect(arguments.address)) if arguments.engine == "ray" else None
        outcome = run_suite(plan, output, workers=arguments.workers, minutes=arguments.minutes, command=command,
                            cluster=cluster)
    print_report(output)
    for label, error in outcome.failed.items():
        print(visible(f"reformer-lab: {label} failed: {error}; the same command tries it again"), file=sys.stderr)
    if outcome.left:
        shown = ", ".join(outcome.left[:3]) + (", ..." if len(outcome.left) > 3 else "")
        print(f"reformer-lab: the time is over; {len(outcome.left)} of {len(plan.arms)} runs are left ({shown}); "
              "the same command goes on from here", file=sys.stderr)
        return EXIT_LEFT
    return 1 if outcome.failed else 0


def connect(address: str | None) -> "Cluster":
    """Connect to a Ray cluster. Raises UserError where Ray is not installed or does not answer."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs Ray, which is not installed: pip install '.[cluster]' in a copy of the repository, "
                        "on every machine")
    from reformer_lab.runner.cluster import Cluster

    return Cluster(address)
