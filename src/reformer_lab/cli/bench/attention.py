"""`bench attention` and `bench scaling`: one attention against length, beside others or against itself."""

import argparse
from collections.abc import Sequence

from reformer_lab.cli.bench.options import (
    check_backends,
    check_files,
    check_precision,
    check_seconds,
    describe_machine,
    parse_counts,
    positive,
    words,
)
from reformer_lab.cli.bench.table import Table, progress
from reformer_lab.errors import UserError


def run_attention(arguments: argparse.Namespace) -> int:
    plan = _AttentionPlan(arguments)

    from reformer_lab.benchmarks.attention import COLUMNS, bench_attention, choose_contenders

    contenders = {what: choose_contenders(what, plan.device, arguments.precision, plan.only, say=plan.say)
                  for what in plan.whats}
    plan.check_backends([name for names in contenders.values() for name in names])
    table = Table(arguments, COLUMNS, ("what", 9), ("pass", 17), ("length", 9), ("contender", 17), ("median s", 10),
                   ("20 %", 10), ("80 %", 10), ("times faster", 13), ("peak", 9))
    for what, names in contenders.items():
        for direction in plan.passes:
            table.add(bench_attention(plan.lengths, names, what=what, direction=direction, progress=progress, **plan.common))
    return table.end()


def run_scaling(arguments: argparse.Namespace) -> int:
    plan = _AttentionPlan(arguments)

    from reformer_lab.benchmarks.attention import SCALING_COLUMNS, bench_scaling, choose_contenders

    contenders = {what: choose_contenders(what, plan.device, arguments.precision, plan.only, say=lambda text: None)
                  for what in plan.whats}
    if plan.only is None:
        best = ("lsh-triton", "lsh-native", "lsh-torch")
        contenders = {what: [next(name for name in best if name in names)] for what, names in contenders.items()}
    plan.check_backends([name for names in contenders.values() for name in names])
    table = Table(arguments, SCALING_COLUMNS, ("what", 9), ("pass", 17), ("length", 9), ("contender", 17), ("median s", 10),
                   ("µs/token", 10), ("relative", 10), ("bytes/token", 13), ("relative", 9))
    for what, names in contenders.items():
        for name in names:
            for direction in plan.passes:
                table.add(bench_scaling(plan.lengths, name, what=what, direction=direction, progress=progress, **plan.common))
    return table.end()


class _AttentionPlan:
    """The options that `attention` and `scaling` share, checked."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.lengths = parse_counts(arguments.lengths)
        positive(arguments, "batch_size", "heads", "d_head", "rounds", "chunk_length", "repeats", "threads")
        check_seconds(arguments)
        check_files(arguments)

        from reformer_lab.benchmarks.attention import PASSES, PRECISIONS, LayerShape
        from reformer_lab.benchmarks.measure import resolve_device

        check_precision(arguments.precision)
        self.arguments = arguments
        self.whats = words(arguments.what)
        self.passes = words(arguments.passes)
        for direction in self.passes:
            if direction not in PASSES:
                raise UserError(f"--passes {direction}: choose {' or '.join(PASSES)}, or both with a comma")
        self.only = words(arguments.only) if arguments.only else None
        self.device = resolve_device(arguments.device)
        self.dtype = PRECISIONS[arguments.precision]
        shape = LayerShape(batch_size=arguments.batch_size, num_heads=arguments.heads, d_head=arguments.d_head,
                           num_hashes=arguments.rounds, chunk_length=arguments.chunk_length)
        self.common = {"shape": shape, "device": self.device.type, "precision": arguments.precision,
                       "repeats": arguments.repeats, "max_seconds": arguments.max_seconds, "threads": arguments.threads}
        self._said: set[str] = set()
        machine = describe_machine(arguments)
        print(f"{machine['device_name']}, {machine['threads']} threads, {arguments.precision}; "
              f"batch {shape.batch_size}, {shape.num_heads} heads x {shape.d_head}, {shape.num_hashes} rounds, "
              f"chunk {shape.chunk_length}", flush=True)

    def say(self, text: str) -> None:
        """Print a line, once."""
        if text not in self._said:
            print(text, flush=True)
        self._said.add(text)

    def check_backends(self, contenders: Sequence[str]) -> None:
        """Leave with exit code 1 if a backend that is to be measured is wrong."""
        from reformer_lab.benchmarks.attention import backends_of

        check_backends(list(dict.fromkeys(backends_of(contenders))), self.device, self.dtype, self.arguments.d_head)
