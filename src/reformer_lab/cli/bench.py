"""`reformer-lab bench`: seconds and bytes on this machine."""

import argparse
from pathlib import Path
from typing import Any

from reformer_lab.errors import UserError

HELP = """\
Measure attention (seconds) or a model's training step (bytes of activations) on this machine.

examples:
  reformer-lab bench attention --lengths 1k,4k,16k
  reformer-lab bench attention --lengths 4k --rounds 8 --precision bf16 --csv attention.csv
  reformer-lab bench memory --lengths 4k,16k,64k
  reformer-lab bench memory --depths 2,4,8 --lengths 8k --csv memory.csv
"""

MEMORY_COLUMNS = ("layers", "attention", "reversible", "length", "ff_chunk", "status", "activation_bytes", "parameter_bytes",
                  "gradient_bytes", "optimizer_bytes", "seconds", "device", "device_name", "threads")


def main(argv: list[str]) -> int:
    """Run `bench attention` or `bench memory`."""
    parser = argparse.ArgumentParser(prog="reformer-lab bench", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="attention | memory")

    attention = actions.add_parser("attention", help="one attention layer with its projections, forward and backward")
    attention.add_argument("--lengths", default="1k,4k,16k", help="tokens; k and m are 1024 and 1024² (%(default)s)")
    attention.add_argument("--only", help="contenders, separated by commas (all)")
    attention.add_argument("--batch-size", type=int, default=1, help="sequences (%(default)s)")
    attention.add_argument("--heads", type=int, default=8, help="attention heads (%(default)s)")
    attention.add_argument("--d-head", type=int, default=64, help="width of a head (%(default)s)")
    attention.add_argument("--rounds", type=int, default=4, help="hash rounds (%(default)s)")
    attention.add_argument("--chunk-length", type=int, default=64, help="chunk of sorted tokens (%(default)s)")
    attention.add_argument("--repeats", type=int, default=5, help="times that each point is measured (%(default)s)")
    attention.add_argument("--max-seconds", type=float, default=60, help="no new repeat after so long (%(default)s)")

    memory = actions.add_parser("memory", help="activations of a training step against depth, length, feed-forward chunk")
    memory.add_argument("--lengths", default="4k,16k,64k", help="tokens; k and m are 1024 and 1024² (%(default)s)")
    memory.add_argument("--depths", default="2", help="layers (%(default)s)")
    memory.add_argument("--ff-chunks", default="none", help="positions of the feed-forward layer at once (%(default)s)")
    memory.add_argument("--attention", default="lsh", help="lsh, full or local (%(default)s)")
    memory.add_argument("--d-model", type=int, default=128, help="width (%(default)s)")
    memory.add_argument("--d-ff", type=int, default=512, help="width of the feed-forward layer (%(default)s)")
    memory.add_argument("--rounds", type=int, default=4, help="hash rounds (%(default)s)")

    for action in (attention, memory):
        action.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
        action.add_argument("--precision", default="fp32", help="fp32 or bf16 (%(default)s)")
        action.add_argument("--csv", type=Path, metavar="FILE", help="write every point to this file too")
    arguments = parser.parse_args(argv)
    return _attention(arguments) if arguments.action == "attention" else _memory(arguments)


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


def _positive(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")


def _check_writable(path: Path | None) -> None:
    """Raise UserError now rather than after the measurements."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another file with --csv") from error


def _attention(arguments: argparse.Namespace) -> int:
    lengths = parse_counts(arguments.lengths)
    _positive(arguments, "batch_size", "heads", "d_head", "rounds", "chunk_length", "repeats")
    _check_writable(arguments.csv)

    from reformer_lab.benchmarks.attention import COLUMNS, CONTENDERS, LayerShape, bench_attention
    from reformer_lab.benchmarks.measure import write_csv

    shape = LayerShape(batch_size=arguments.batch_size, num_heads=arguments.heads, d_head=arguments.d_head,
                       num_hashes=arguments.rounds, chunk_length=arguments.chunk_length)
    rows: list[dict[str, Any]] = []
    measured = bench_attention(lengths, contenders=arguments.only.split(",") if arguments.only else tuple(CONTENDERS),
                               shape=shape, device=arguments.device, precision=arguments.precision,
                               repeats=arguments.repeats, max_seconds=arguments.max_seconds)
    for row in measured:
        if not rows:
            print(f"{row['device_name']}, {row['threads']} threads, {row['precision']}; batch {shape.batch_size}, "
                  f"{shape.num_heads} heads x {shape.d_head}, {shape.num_hashes} rounds, chunk {shape.chunk_length}")
            print(_line("contender", "length", "pass", "median s", "20 %", "80 %", "times faster"))
        rows.append(row)
        if row["status"] == "finished":
            numbers = [f"{row[key]:.4f}" for key in ("median", "low", "high")]
            numbers.append(f"{row['times_faster']:.2f}" if "times_faster" in row else "")
        else:
            numbers = [row["status"]]
        print(_line(row["contender"], f"{row['length']:,}", row["pass"], *numbers), flush=True)
    if arguments.csv is not None:
        write_csv(arguments.csv, rows, COLUMNS)
        print(f"written: {arguments.csv}")
    return 0


def _memory(arguments: argparse.Namespace) -> int:
    lengths, depths = parse_counts(arguments.lengths), parse_counts(arguments.depths)
    chunks = [None if part.strip() == "none" else parse_count(part) for part in arguments.ff_chunks.split(",")]
    _positive(arguments, "d_model", "d_ff", "rounds")
    _check_writable(arguments.csv)

    from reformer_lab.benchmarks.measure import resolve_device, write_csv
    from reformer_lab.benchmarks.memory import measure_memory
    from reformer_lab.models.config import ReformerConfig

    resolve_device(arguments.device)
    if arguments.precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {arguments.precision}: choose fp32 or bf16")
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
        write_csv(arguments.csv, rows, MEMORY_COLUMNS)
        print(f"written: {arguments.csv}")
    return 0


def _line(name: str, length: str, *cells: str) -> str:
    return f"{name:<14} {length:>9}  {cells[0]:<17}" + "".join(f" {cell:>12}" for cell in cells[1:])
