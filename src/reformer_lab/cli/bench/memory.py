"""`bench memory`: activations of a training step against depth, length and the feed-forward chunk."""

import argparse
from typing import Any

from reformer_lab.cli.bench.options import check_precision, check_writable, parse_count, parse_counts, positive

COLUMNS = ("layers", "attention", "reversible", "length", "ff_chunk", "status", "activation_bytes", "parameter_bytes",
           "gradient_bytes", "optimizer_bytes", "seconds", "device", "device_name", "threads")


def run_memory(arguments: argparse.Namespace) -> int:
    lengths, depths = parse_counts(arguments.lengths), parse_counts(arguments.depths)
    chunks = [None if part.strip() == "none" else parse_count(part) for part in arguments.ff_chunks.split(",")]
    positive(arguments, "d_model", "d_ff", "rounds")
    check_writable(arguments.csv)

    from reformer_lab.benchmarks.measure import resolve_device, write_csv
    from reformer_lab.benchmarks.memory import measure_memory
    from reformer_lab.models.config import ReformerConfig

    resolve_device(arguments.device)
    check_precision(arguments.precision)
    model = ReformerConfig(d_model=arguments.d_model, d_ff=arguments.d_ff, num_heads=4, d_head=max(1, arguments.d_model // 4),
                           attention=arguments.attention, num_hashes=arguments.rounds, positions="none", loss_chunk_length=1024)
    points = [{"num_layers": depth, "reversible": reversible, "length": length, "ff_chunk_length": chunk}
              for depth in depths for length in lengths for chunk in chunks for reversible in (True, False)]
    parameters = {"model": model.to_dict(), "points": points, "batch_size": 1, "device": arguments.device,
                  "precision": arguments.precision}
    rows: list[dict[str, Any]] = []
    reversible_bytes = 0
    print(f"d_model {model.d_model}, d_ff {model.d_ff}, {model.attention[0]} attention, {model.num_hashes} rounds, batch 1")
    print(_line("layers", "length", "ff chunk", "activations", "seconds", "", "stored / reversible"))
    for event in measure_memory(parameters, seed=0):
        fields = event["model"]
        kind = "reversible" if fields["reversible"] else "stored"
        row = {**event, "layers": fields["num_layers"], "reversible": fields["reversible"], "attention": model.attention[0],
               "ff_chunk": fields["ff_chunk_length"] or "none"}
        rows.append(row)
        if event["status"] != "finished":
            numbers, reversible_bytes = [event["status"]], 0
        else:
            size = event["activation_bytes"]
            ratio = f"{size / reversible_bytes:.2f}" if kind == "stored" and reversible_bytes else ""
            numbers = [f"{size / 1e6:,.1f} MB", f"{event['seconds']:.2f}", "", ratio]
            reversible_bytes = size if kind == "reversible" else 0
        print(_line(f"{fields['num_layers']} {kind}", f"{event['length']:,}", str(row["ff_chunk"]), *numbers), flush=True)
    if arguments.csv is not None:
        write_csv(arguments.csv, rows, COLUMNS)
        print(f"written: {arguments.csv}")
    return 0


def _line(name: str, length: str, *cells: str) -> str:
    return f"{name:<14} {length:>9}  {cells[0]:<17}" + "".join(f" {cell:>12}" for cell in cells[1:])
