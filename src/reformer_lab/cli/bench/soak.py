"""`bench soak`: whether a long training run grows, in memory or on the disk."""

import argparse

from reformer_lab.cli.bench.options import check_files, describe_machine, positive

COLUMNS = ("step", "resident_bytes", "tensors", "tensor_bytes", "metrics_bytes", "checkpoint_bytes", "files", "log_every",
           "eval_every", "checkpoint_every", "device", "device_name", "threads", "precision", "torch", "reformer_lab", "commit",
           "date")


def run_soak(arguments: argparse.Namespace) -> int:
    positive(arguments, "steps", "threads")
    check_files(arguments)
    arguments.device = "cpu"

    from reformer_lab.benchmarks.measure import write_csv
    from reformer_lab.benchmarks.soak import measure_soak, soak_run
    from reformer_lab.reporting.benchmark_figure import draw_benchmark
    from reformer_lab.reporting.soak import judge_soak, soak_lines

    run, machine, rows = soak_run(arguments.steps), describe_machine(arguments), []
    print(f"{machine['device_name']}, {machine['threads']} threads; {arguments.steps:,} steps, an evaluation and a checkpoint "
          f"every {run.eval_every}")
    print(f"{'step':>9} {'resident':>11} {'tensors':>8} {'of them':>10} {'metrics':>10} {'checkpoints':>12} {'files':>6}")
    for sample in measure_soak(arguments.steps, arguments.threads):
        rows.append({**machine, "precision": run.precision, **sample})
        print(f"{sample['step']:>9,} {sample['resident_bytes'] / 1e6:>8.1f} MB {sample['tensors']:>8,} "
              f"{sample['tensor_bytes'] / 1e6:>7.2f} MB {sample['metrics_bytes'] / 1e3:>7.1f} kB "
              f"{sample['checkpoint_bytes'] / 1e6:>9.3f} MB {sample['files']:>6,}", flush=True)
        if arguments.csv is not None:
            write_csv(arguments.csv, rows, COLUMNS)
    soak = judge_soak([{name: str(value) for name, value in row.items()} for row in rows])
    print("\n".join(soak_lines(soak)))
    if arguments.csv is not None:
        print(f"written: {arguments.csv}")
    if arguments.figure is not None:
        draw_benchmark(arguments.csv, arguments.figure)
        print(f"written: {arguments.figure}")
    return int(bool(soak.failures))
