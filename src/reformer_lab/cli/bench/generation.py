"""`bench generate`: one more token of a text against the length of the text."""

import argparse

from reformer_lab.cli.bench.options import check_writable, describe_machine, parse_counts, positive, words
from reformer_lab.errors import UserError


def run_generation(arguments: argparse.Namespace) -> int:
    lengths = parse_counts(arguments.lengths)
    positive(arguments, "batch_size", "repeats")
    check_writable(arguments.csv)
    arguments.threads = None

    from reformer_lab.benchmarks.generation import COLUMNS, CONTENDERS, bench_generation
    from reformer_lab.benchmarks.measure import write_csv

    machine, rows = describe_machine(arguments), []
    contenders = words(arguments.only)
    for name in contenders:
        if name not in CONTENDERS:
            raise UserError(f"--only {name}: choose from {', '.join(CONTENDERS)}")
    print(f"{machine['device_name']}, {machine['threads']} threads; batch {arguments.batch_size}, 2 layers of width 256, "
          "4 rounds")
    print(f"{'contender':<12} {'length':>9} {'ms/token':>10} {'20 %':>10} {'80 %':>10} {'tokens/s':>10} {'relative':>9}")
    for name in contenders:
        for row in bench_generation(lengths, name, batch_size=arguments.batch_size, repeats=arguments.repeats,
                                    device=arguments.device):
            rows.append({**machine, **row})
            times = " ".join(f"{1e3 * row[column]:>10.3f}" for column in ("median", "low", "high"))
            print(f"{name:<12} {row['length']:>9,} {times} {row['tokens_per_second']:>10,.0f} {row['relative_time']:>9.3f}",
                  flush=True)
            if arguments.csv is not None:
                write_csv(arguments.csv, rows, COLUMNS)
    if arguments.csv is not None:
        print(f"written: {arguments.csv}")
    return 0
