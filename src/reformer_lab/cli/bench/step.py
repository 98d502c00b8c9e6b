"""`bench step`: a whole training step of a language model, beside those of others."""

import argparse

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

PIECES = {"ff_chunk_length": "positions of the feed-forward layer", "loss_chunk_length": "positions whose logits exist",
          "projection_chunk_length": "positions of the attention's projections",
          "heads_at_once": "heads whose attention exists"}
"""Options of `step` that trade time for memory."""


def run_step(arguments: argparse.Namespace) -> int:
    lengths = parse_counts(arguments.lengths) if arguments.lengths else None
    positive(arguments, "batch_size", "repeats", "threads", *PIECES)
    check_seconds(arguments)
    check_files(arguments)
    check_precision(arguments.precision)

    from reformer_lab.benchmarks.attention import PRECISIONS
    from reformer_lab.benchmarks.measure import resolve_device
    from reformer_lab.benchmarks.train_step import COLUMNS, OURS, bench_step, choose_contenders, preset_model

    config = preset_model(arguments.preset, {name: getattr(arguments, name) for name in PIECES})
    device = resolve_device(arguments.device)
    machine = describe_machine(arguments)
    print(f"{machine['device_name']}, {machine['threads']} threads, {arguments.precision}; batch {arguments.batch_size}, "
          f"{config.num_layers} layers ({', '.join(config.attention)}), d_model {config.d_model}, d_ff {config.d_ff}, "
          f"{config.num_heads} heads x {config.d_head}, {config.num_hashes} rounds", flush=True)
    contenders, missing = choose_contenders(arguments.preset, words(arguments.only) if arguments.only else None)
    for line in missing:
        print(line, flush=True)
    if OURS in contenders:
        check_backends([config.lsh_backend], device, PRECISIONS[arguments.precision], config.d_head)
    table = Table(arguments, COLUMNS, ("length", 9), ("contender", 17), ("s / step", 10), ("20 %", 10), ("80 %", 10),
                   ("tokens/s", 10), ("times faster", 13), ("peak", 9), ("above", 9), ("loss", 8))
    lengths = lengths or ([4096, 16384] if arguments.preset is None else [config.max_length])
    table.add(bench_step(lengths, contenders, config=config, name=arguments.preset or "", batch_size=arguments.batch_size,
                         device=device.type, precision=arguments.precision, repeats=arguments.repeats,
                         max_seconds=arguments.max_seconds, threads=arguments.threads, progress=progress))
    return table.end()
