"""`reformer-lab bench`: seconds and bytes on this machine."""

import argparse
import datetime
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reformer_lab.errors import UserError

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
  reformer-lab bench figure attention.csv --figure attention.svg

Contenders take turns, each in a process of its own. transformers and reformer-pytorch take part where they are
installed: `make bench-environment` makes an environment with them, `make bench` measures there. docs/benchmarks.md.
"""

MEMORY_COLUMNS = ("layers", "attention", "reversible", "length", "ff_chunk", "status", "activation_bytes", "parameter_bytes",
                  "gradient_bytes", "optimizer_bytes", "seconds", "device", "device_name", "threads")

PIECES = {"ff_chunk_length": "positions of the feed-forward layer", "loss_chunk_length": "positions whose logits exist",
          "projection_chunk_length": "positions of the attention's projections",
          "heads_at_once": "heads whose attention exists"}
"""Options of `step` that trade time for memory."""


def main(argv: list[str]) -> int:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(prog="reformer-lab bench", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True,
                                    metavar="attention | scaling | step | generate | memory | figure")

    attention = actions.add_parser("attention", help="one attention, alone or with its projections, forward and backward")
    scaling = actions.add_parser("scaling", help="time and memory per token of one attention against length")
    step = actions.add_parser("step", help="a whole training step of a language model")
    generation = actions.add_parser("generate", help="one more token of a text against the length of the text")
    memory = actions.add_parser("memory", help="activations of a training step against depth, length, feed-forward chunk")
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
    for action in (attention, scaling, step):
        action.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw the rows of --csv into this file")
    arguments = parser.parse_args(argv)
    actions_by_name: dict[str, Callable[[argparse.Namespace], int]] = {
        "attention": _attention, "scaling": _scaling, "step": _step, "generate": _generate, "memory": _memory,
        "figure": _figure}
    return actions_by_name[arguments.action](arguments)


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


def _attention(arguments: argparse.Namespace) -> int:
    plan = _AttentionPlan(arguments)

    from reformer_lab.benchmarks.attention import COLUMNS, bench_attention, choose_contenders

    contenders = {what: choose_contenders(what, plan.device, arguments.precision, plan.only, say=plan.say)
                  for what in plan.whats}
    plan.check_backends([name for names in contenders.values() for name in names])
    table = _Table(arguments, COLUMNS, ("what", 9), ("pass", 17), ("length", 9), ("contender", 17), ("median s", 10),
                   ("20 %", 10), ("80 %", 10), ("times faster", 13), ("peak", 9))
    for what, names in contenders.items():
        for direction in plan.passes:
            table.add(bench_attention(plan.lengths, names, what=what, direction=direction, progress=_progress, **plan.common))
    return table.end()


def _scaling(arguments: argparse.Namespace) -> int:
    plan = _AttentionPlan(arguments)

    from reformer_lab.benchmarks.attention import SCALING_COLUMNS, bench_scaling, choose_contenders

    contenders = {what: choose_contenders(what, plan.device, arguments.precision, plan.only, say=lambda text: None)
                  for what in plan.whats}
    if plan.only is None:
        best = ("lsh-triton", "lsh-native", "lsh-torch")
        contenders = {what: [next(name for name in best if name in names)] for what, names in contenders.items()}
    plan.check_backends([name for names in contenders.values() for name in names])
    table = _Table(arguments, SCALING_COLUMNS, ("what", 9), ("pass", 17), ("length", 9), ("contender", 17), ("median s", 10),
                   ("µs/token", 10), ("relative", 10), ("bytes/token", 13), ("relative", 9))
    for what, names in contenders.items():
        for name in names:
            for direction in plan.passes:
                table.add(bench_scaling(plan.lengths, name, what=what, direction=direction, progress=_progress, **plan.common))
    return table.end()


class _AttentionPlan:
    """The options that `attention` and `scaling` share, checked."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.lengths = parse_counts(arguments.lengths)
        _positive(arguments, "batch_size", "heads", "d_head", "rounds", "chunk_length", "repeats", "threads")
        _check_seconds(arguments)
        _check_files(arguments)

        from reformer_lab.benchmarks.attention import PASSES, PRECISIONS, LayerShape
        from reformer_lab.benchmarks.measure import resolve_device

        _check_precision(arguments.precision)
        self.arguments = arguments
        self.whats = _words(arguments.what)
        self.passes = _words(arguments.passes)
        for direction in self.passes:
            if direction not in PASSES:
                raise UserError(f"--passes {direction}: choose {' or '.join(PASSES)}, or both with a comma")
        self.only = _words(arguments.only) if arguments.only else None
        self.device = resolve_device(arguments.device)
        self.dtype = PRECISIONS[arguments.precision]
        shape = LayerShape(batch_size=arguments.batch_size, num_heads=arguments.heads, d_head=arguments.d_head,
                           num_hashes=arguments.rounds, chunk_length=arguments.chunk_length)
        self.common = {"shape": shape, "device": self.device.type, "precision": arguments.precision,
                       "repeats": arguments.repeats, "max_seconds": arguments.max_seconds, "threads": arguments.threads}
        self._said: set[str] = set()
        print(f"{_machine(arguments)['device_name']}, {_machine(arguments)['threads']} threads, {arguments.precision}; "
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

        _check_backends(list(dict.fromkeys(backends_of(contenders))), self.device, self.dtype, self.arguments.d_head)


def _step(arguments: argparse.Namespace) -> int:
    lengths = parse_counts(arguments.lengths) if arguments.lengths else None
    _positive(arguments, "batch_size", "repeats", "threads", *PIECES)
    _check_seconds(arguments)
    _check_files(arguments)
    _check_precision(arguments.precision)

    from reformer_lab.benchmarks.attention import PRECISIONS
    from reformer_lab.benchmarks.measure import resolve_device
    from reformer_lab.benchmarks.train_step import COLUMNS, OURS, bench_step, choose_contenders, preset_model

    config = preset_model(arguments.preset, {name: getattr(arguments, name) for name in PIECES})
    device = resolve_device(arguments.device)
    machine = _machine(arguments)
    print(f"{machine['device_name']}, {machine['threads']} threads, {arguments.precision}; batch {arguments.batch_size}, "
          f"{config.num_layers} layers ({', '.join(config.attention)}), d_model {config.d_model}, d_ff {config.d_ff}, "
          f"{config.num_heads} heads x {config.d_head}, {config.num_hashes} rounds", flush=True)
    contenders, missing = choose_contenders(arguments.preset, _words(arguments.only) if arguments.only else None)
    for line in missing:
        print(line, flush=True)
    if OURS in contenders:
        _check_backends([config.lsh_backend], device, PRECISIONS[arguments.precision], config.d_head)
    table = _Table(arguments, COLUMNS, ("length", 9), ("contender", 17), ("s / step", 10), ("20 %", 10), ("80 %", 10),
                   ("tokens/s", 10), ("times faster", 13), ("peak", 9), ("above", 9), ("loss", 8))
    lengths = lengths or ([4096, 16384] if arguments.preset is None else [config.max_length])
    table.add(bench_step(lengths, contenders, config=config, name=arguments.preset or "", batch_size=arguments.batch_size,
                         device=device.type, precision=arguments.precision, repeats=arguments.repeats,
                         max_seconds=arguments.max_seconds, threads=arguments.threads, progress=_progress))
    return table.end()


def _generate(arguments: argparse.Namespace) -> int:
    lengths = parse_counts(arguments.lengths)
    _positive(arguments, "batch_size", "repeats")
    _check_writable(arguments.csv)
    arguments.threads = None

    from reformer_lab.benchmarks.generation import COLUMNS, CONTENDERS, bench_generation
    from reformer_lab.benchmarks.measure import write_csv

    machine, rows = _machine(arguments), []
    contenders = _words(arguments.only)
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


def _figure(arguments: argparse.Namespace) -> int:
    from reformer_lab.reporting.benchmark_figure import draw_benchmark

    draw_benchmark(arguments.source, arguments.figure)
    print(f"written: {arguments.figure}")
    return 0


class _Table:
    """Rows on the console and in the CSV file, which is complete after each of them, so that Ctrl-C leaves what there is."""

    def __init__(self, arguments: argparse.Namespace, columns: Sequence[str], *heading: tuple[str, int]) -> None:
        self._arguments, self._columns, self._heading = arguments, columns, heading
        self._machine = _machine(arguments)
        self._rows: list[dict[str, Any]] = []
        self._failed = False
        print(self._line([name for name, _ in heading]), flush=True)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Show each row as it comes and write it down."""
        from reformer_lab.benchmarks.measure import write_csv

        medians: dict[int, dict[str, float]] = {}
        for row in rows:
            self._rows.append({**self._machine, **row})
            if row["status"] == "finished":
                medians.setdefault(row["length"], {})[row["contender"]] = row["median"]
            self._failed |= row["status"] == "failed"
            _progress("")
            print(self._line(self._cells(row)), flush=True)
            if self._arguments.csv is not None:
                write_csv(self._arguments.csv, self._rows, self._columns)
        for length, seconds in medians.items():
            ours = {name: own for name, own in seconds.items() if name.startswith(("lsh-", "reformer-lab"))}
            if ours and len(ours) < len(seconds):
                best = min(ours, key=ours.__getitem__)
                faster = [f"{seconds[name] / ours[best]:.2f} times faster than {name}" for name in seconds if name not in ours]
                print(f"at {length:,} tokens {best} is {', '.join(faster)}", flush=True)

    def end(self) -> int:
        """Draw the figure, say what was written, and return the exit code: 1 if a contender failed."""
        from reformer_lab.reporting.benchmark_figure import draw_benchmark

        if self._arguments.csv is not None:
            print(f"written: {self._arguments.csv}")
        if self._arguments.figure is not None:
            draw_benchmark(self._arguments.csv, self._arguments.figure)
            print(f"written: {self._arguments.figure}")
        return int(self._failed)

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        names = {"what": "what", "pass": "pass", "contender": "contender"}
        head = [f"{row['length']:,}" if name == "length" else str(row[names[name]])
                for name, _ in self._heading if name == "length" or name in names]
        if row["status"] != "finished":
            return [*head, row["status"] + (f" ({row['error']})" if "error" in row else "")]
        if "relative_time" in self._columns:
            return [*head, f"{row['median']:.4f}", f"{row['seconds_per_token'] * 1e6:.3f}", f"{row['relative_time']:.3f}",
                    _number(row.get("bytes_per_token"), ",.0f"), _number(row.get("relative_memory"), ".3f")]
        cells = [*head, *(f"{row[name]:.4f}" for name in ("median", "low", "high"))]
        if "tokens_per_second" in row:
            cells.append(f"{row['tokens_per_second']:,.0f}")
        cells += [_number(row.get("times_faster"), ".2f"), _gigabytes(row.get("peak_bytes"))]
        if "tokens_per_second" in row:
            cells += [_gigabytes(row.get("above_baseline_bytes")), f"{row['loss']:.4f}"]
        return cells

    def _line(self, cells: Sequence[str]) -> str:
        widths = [width for _, width in self._heading]
        return " ".join(f"{cell:<{width}}" if name in ("what", "pass", "contender") else f"{cell:>{width}}"
                        for cell, width, (name, _) in zip(cells, widths, self._heading, strict=False)).rstrip()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f} GB"


def _progress(text: str) -> None:
    """Show on a terminal what is being measured; "" takes it away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",")))


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the columns of every row that tell where and with what it was measured."""
    import torch

    from reformer_lab.benchmarks.measure import describe_device, resolve_device
    from reformer_lab.training.tracking import environment

    facts = environment()
    machine = {**describe_device(resolve_device(arguments.device)), "torch": torch.__version__,
               "reformer_lab": facts["reformer_lab"], "commit": facts["commit"],
               "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    return {**machine, "threads": arguments.threads or machine["threads"]}


def _check_backends(backends: Sequence[str], device: Any, dtype: Any, d_head: int) -> None:
    from reformer_lab.benchmarks.check import CheckFailed, check_backends

    try:
        check_backends(backends, device, dtype, d_head)
    except CheckFailed as wrong:
        print(f"reformer-lab: nothing was measured: {wrong}", file=sys.stderr)
        raise SystemExit(1) from None


def _check_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision}: choose fp32 or bf16")


def _check_files(arguments: argparse.Namespace) -> None:
    if arguments.figure is not None and arguments.csv is None:
        raise UserError("--figure draws what --csv writes: give both")
    if arguments.figure is not None and arguments.figure.suffix.lower() != ".svg":
        raise UserError(f"--figure {arguments.figure}: the figure is an SVG file; choose a name that ends in .svg")
    for option in ("csv", "figure"):
        _check_writable(getattr(arguments, option), f"--{option}")


def _positive(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")


def _check_seconds(arguments: argparse.Namespace) -> None:
    if not arguments.max_seconds > 0:
        raise UserError(f"--max-seconds {arguments.max_seconds}: must be more than 0")


def _check_writable(path: Path | None, option: str = "--csv") -> None:
    """Raise UserError now rather than after the measurements."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another file with {option}") from error


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
