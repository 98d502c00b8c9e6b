"""The training loop. A run that is killed at any instant and started again gives the bits of an uninterrupted one.

Nothing in it carries a random state: the data of a step and every draw in it (dropout, hash rotations) are functions of
the seed and the step's number. What must be saved is the weights, the optimiser and a few counters.
"""

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from reformer_lab.data.dataset import Batch, Dataset, open_dataset
from reformer_lab.errors import OutOfMemory, UserError, is_out_of_memory, wanted_memory
from reformer_lab.evaluation.evaluate import autocast, evaluate, split_sizes
from reformer_lab.evaluation.metrics import IGNORED, Metrics
from reformer_lab.files import TEMPORARY, sync, sync_all, writing
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.seeds import derive_seed
from reformer_lab.training.checkpoint import load_state, load_weights, newest_checkpoint, of_this_run, save_checkpoint, steps_of
from reformer_lab.training.config import Evaluation, RunConfig
from reformer_lab.training.diagnosis import first_weight_not_finite, where_not_finite
from reformer_lab.training.interruption import StopRequests
from reformer_lab.training.onlooker import NoLog, SeenFolder
from reformer_lab.training.optimizers import build_optimizer, learning_rate, set_learning_rate
from reformer_lab.training.processes import Processes
from reformer_lab.training.run_folder import RunFolder
from reformer_lab.training.sharding import WholeState, full
from reformer_lab.training.spare_objects import release_spare_objects
from reformer_lab.training.tracking import Event, MetricsLog, Progress, bits, parameter_count, peak_memory_bytes


@dataclass
class Counters:
    """What goes on from one step to the next beside weights and optimiser."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent, over all calls."""
    loss_sum: float = 0.0
    """Sum of the losses since the last line of metrics."""
    loss_count: int = 0
    """Steps since the last line of metrics."""
    metrics_position: int = 0
    """Bytes of metrics.jsonl."""


@dataclass(frozen=True)
class Pending:
    """A step whose numbers are still on the device."""

    step: int
    batch: Batch
    numbers: torch.Tensor
    """Of each process its micro-batches' losses, already weighted, and the signal that it has had; then the gradient's norm."""
    rate: float
    began: float


def build_model(config: RunConfig) -> ReformerLM:
    """Return the model of a run, untrained."""
    return ReformerLM(config.model, seed=config.seed)


def build_data(config: RunConfig) -> Dataset:
    """Return the data of a run."""
    return open_dataset(config.data, config.seed)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How a run makes what it trains. A run is resumed with the parts that it was started with; its `config` must tell."""

    model: Callable[[RunConfig], ReformerLM] = build_model
    data: Callable[[RunConfig], Dataset] = build_data


def train(
    config: RunConfig, output: Path, progress: Progress | None = None, parts: Parts | None = None, *, shard: bool = False
) -> Event:
    """Train as `config` says in the folder `output` and return the "final" event. `parts`: another model or other data.

    A folder with an unfinished run of the same configuration: goes on where it was. A finished one: returns what is
    recorded. SIGINT, SIGTERM, SIGHUP: the step is finished and saved, then KeyboardInterrupt, SystemExit(143) or (129) is
    raised. The same for a BrokenPipeError of `progress`, which is raised on. Raises `UserError` for what a user can mend;
    the last checkpoint is kept. Started by a launcher in several processes, which must all see `output`, they share the work:
    all return the same event, the first one alone writes and reports. `shard`: they share out parameters, gradients and
    optimiser state too.
    """
    with Processes(shard) as processes, cpu_threads(config.threads), run_folder(output, config, processes) as folder:
        report = progress if progress and processes.is_first else (lambda event: None)
        final = processes.of_first(folder.final)
        if final is not None:
            report({"event": "note", "text": f"{output} holds this run, finished: nothing to do"})
            return final
        try:
            run = Run(config, folder, report, parts or Parts(), processes)
            with run.stop, contextlib.closing(run.log):
                return run.to_the_end()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"out of memory{wanted_memory(error)}; {kept(folder)}. Less is needed with a smaller "
                              "--batch-size, more --accumulation, a shorter --length or a smaller model, in another --output"
                              ) from error


def kept(folder: RunFolder | SeenFolder) -> str:
    """Return which checkpoint a run that ends now leaves behind, as a phrase."""
    steps = steps_of(folder.checkpoints)
    return f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"


def run_folder(output: Path, config: RunConfig, processes: Processes) -> RunFolder | SeenFolder:
    """Return the run's folder, opened by the first process; the others fail where that one does."""
    opened: list[RunFolder] = []
    processes.of_first(lambda: opened.append(RunFolder(output, config)))
    return opened[0] if opened else SeenFolder(output, config)


class Run:
    """One training run, from its newest checkpoint, or from its start."""

    def __init__(
        self, config: RunConfig, folder: RunFolder | SeenFolder, report: Progress, parts: Parts, processes: Processes
    ) -> None:
        self.config, self.folder, self.report, self.parts, self.processes = config, folder, report, parts, processes
        self.stop = StopRequests(alone=processes.count == 1)
        self.pieces, self.own_pieces = processes.pieces(config.batch_size, config.accumulation)
        self.dataset = parts.data(config)
        check_fit(config, self.dataset)
        check_same_data(processes.gather(self.dataset.fingerprint))
        self.model = parts.model(config).to(processes.device)
        check_evaluations(config, self.dataset, self.model)
        processes.of_first(lambda: folder.claim(self.dataset.fingerprint))
        self.counters, self.saved_step = Counters(), -1
        checkpoint = processes.of_first(
            lambda: newest_checkpoint(folder.checkpoints, lambda text: report({"event": "note", "text": text})))
        if checkpoint is not None:
            check_seen(checkpoint)
            load_weights(checkpoint, self.model)
        self.prepared = processes.prepare(self.model)
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.state = WholeState(self.optimizer) if processes.shard else self.optimizer
        if checkpoint is not None:
            saved = load_state(checkpoint, self.state)
            with of_this_run(checkpoint):
                self.counters = Counters(**saved)
            self.saved_step = self.counters.step
        self.log = MetricsLog(folder.metrics, self.counters.metrics_position) if processes.is_first else NoLog()
        self.began = time.perf_counter() - self.counters.seconds
        self.timed_steps, self.timed_seconds = 0, 0.0
        self.pending: Pending | None = None
        self.settled = time.perf_counter()
        self.late = reads_late(processes.device)
        self.answered: tuple[object, Metrics] | None = None
        self.tell({"event": "start", "data": self.dataset.name, "unit": self.dataset.unit,
                   "splits": split_sizes(self.dataset),
                   "parameters": parameter_count(self.model), "device": processes.device.type, "processes": processes.count,
                   "step": self.counters.step, "steps": config.steps, "output": str(folder.path)})

    def to_the_end(self) -> Event:
        """Train, evaluate, save: the whole run."""
        config, counters = self.config, self.counters
        stopped_early = False
        while True:
            if config.eval_every and counters.step > 0 and counters.step % config.eval_every == 0:
                stopped_early = self.evaluate_on_the_way()
            if stopped_early or counters.step == config.steps:
                break
            self.step()
            if self.rests():
                self.settle()
            if config.checkpoint_every and counters.step % config.checkpoint_every == 0:
                self.save()
            self.leave_if_asked()
            if self.rests():
                release_spare_objects()
        self.save()
        scores = {evaluation.name: self.score(evaluation, config.final_split).to_dict()
                  for evaluation in config.evaluations}
        self.save_model()
        final = self.record({"event": "final", "step": counters.step, "seconds": self.seconds(),
                             "parameters": parameter_count(self.model), "evaluations": scores,
                             "stopped_early": stopped_early})
        self.log.sync()
        return final

    def rests(self) -> bool:
        """Whether something other than a step comes next."""
        step, config = self.counters.step, self.config
        due = any(every and step % every == 0 for every in (config.eval_every, config.checkpoint_every))
        return due or step == config.steps or self.stop.received is not None

    def step(self) -> None:
        """Take one optimiser step. A gradient that is not finite ends the run, and is never in a checkpoint."""
        config, counters, began = self.config, self.counters, time.perf_counter()
        step = counters.step + 1
        rate = learning_rate(config.optimizer, step, config.steps)
        set_learning_rate(self.optimizer, rate)
        batch = self.dataset.train_batch(step - 1, config.batch_size)
        losses = self.gradient(step, batch)
        limit = math.inf if config.optimizer.clip_norm is None else config.optimizer.clip_norm
        norm = full(torch.nn.utils.clip_grad_norm_(self.prepared.parameters(), limit))
        self.settle()
        asked = losses[0].new_tensor(float(self.stop.noticed or 0))
        numbers = torch.cat([self.processes.gather_numbers(torch.stack([*losses, asked])).flatten(), norm[None]])
        self.pending = Pending(step, batch, numbers, rate, began)
        if self.late:  # torch's fused Adam then leaves the weights as they are, as `settle` would have done
            self.optimizer.found_inf = (~numbers.isfinite().all()).float()  # type: ignore[attr-defined]
        else:
            self.settle()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        counters.step = step

    def gradient(self, step: int, batch: Batch) -> list[torch.Tensor]:
        """Add the gradient of a step to the parameters'; return the losses of the micro-batches, whose sum is the step's."""
        config, losses = self.config, []
        counted = int((batch.targets != IGNORED).sum())
        self.prepared.train()
        parts = cut(batch, self.pieces)
        for piece in self.own_pieces:
            # A mean over the step's targets, not a mean of the pieces' means: accumulation changes nothing.
            share = int((parts[piece].targets != IGNORED).sum()) / counted
            with self.processes.computing(self.prepared, last=piece == self.own_pieces[-1]):
                part_loss = self.forward(parts[piece], derive_seed(config.seed, "step", step, piece)) * share
                (part_loss * self.processes.count).backward()  # the exchange takes the mean over the processes, not the sum
            losses.append(part_loss.detach())
        return losses

    def settle(self) -> None:
        """Read the numbers of the step that is not settled yet, and report it."""
        if self.pending is None:
            return
        pending, self.pending, counters = self.pending, None, self.counters
        *numbers, norm = pending.numbers.tolist()
        each = len(self.own_pieces) + 1  # of each process: its losses, and the signal that it has had
        asked = max(numbers[each - 1 :: each])
        del numbers[each - 1 :: each]
        loss = math.fsum(numbers)
        if asked:
            self.stop.received = signal.Signals(int(asked))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            where = self.processes.said_by_all(
                where_not_finite(self.model, lambda: sum(self.gradient(pending.step, pending.batch), torch.zeros(()))))
            raise UserError(f"step {pending.step}: the loss is {loss}, the gradient's norm {norm}; {kept(self.folder)}. {where}"
                            "\nTry a lower --optimizer.learning-rate, or --precision fp32, in another --output")
        counters.loss_sum, counters.loss_count = counters.loss_sum + loss, counters.loss_count + 1
        began, self.settled = max(pending.began, self.settled), time.perf_counter()
        self.timed_steps, self.timed_seconds = self.timed_steps + 1, self.timed_seconds + self.settled - began
        self.report_step(pending, norm, loss)
        # Where the step's own lines end: an evaluation that follows is made and recorded again after a resume.
        counters.metrics_position = self.log.position()

    def forward(self, batch: Batch, seed: int) -> torch.Tensor:
        """Return the loss of a batch, every draw from a generator seeded with `seed`."""
        device = self.processes.device
        mask = None if batch.key_padding_mask is None else batch.key_padding_mask.to(device)
        generator = torch.Generator().manual_seed(seed)
        with autocast(device, self.config.precision):
            return self.prepared(batch.tokens.to(device), targets=batch.targets.to(device), key_padding_mask=mask,
                                 generator=generator).loss

    def report_step(self, pending: Pending, norm: float, loss: float) -> None:
        """Show the step; write a line of metrics when one is due."""
        counters, config = self.counters, self.config
        mean = counters.loss_sum / counters.loss_count
        tokens = pending.batch.tokens.numel()
        speed = tokens * self.timed_steps / self.timed_seconds
        event = {"step": pending.step, "loss": mean, "bits": bits(mean), "tokens_per_second": speed,
                 "peak_memory_bytes": peak_memory_bytes(self.processes.device)}
        left = (config.steps - pending.step) * tokens / speed
        self.tell({"event": "step", **event, "seconds_left": left})
        if pending.step % config.log_every == 0 or pending.step == config.steps:
            self.record({"event": "train", **event, "learning_rate": pending.rate, "grad_norm": norm,
                         "seconds": self.seconds()})
            counters.loss_sum, counters.loss_count = 0.0, 0
            self.timed_steps, self.timed_seconds = 0, 0.0

    def evaluate_on_the_way(self) -> bool:
        """Evaluate on the validation split; return whether the run may end."""
        score = self.score(Evaluation(), "validation")
        self.record({"event": "eval", "step": self.counters.step, "split": "validation", "name": "own",
                     **score.to_dict()})
        goal = self.config.stop_at_accuracy
        return goal is not None and score.accuracy is not None and score.accuracy >= goal

    def score(self, evaluation: Evaluation, split: str) -> Metrics:
        """Return the scores of the model with the evaluation's changes; the same question is not computed twice."""
        config, question = self.config, (self.counters.step, split, evaluation.model)
        if self.answered is not None and question == self.answered[0]:
            return self.answered[1]

        total = split_sizes(self.dataset, config.eval_limit).get(split)

        def show(so_far: Metrics) -> None:
            self.tell({"event": "scoring", "name": evaluation.name, "split": split, "total": total, **so_far.to_dict()})
            self.stop.received = self.processes.agreed(self.stop.noticed or 0)
            self.leave_if_asked()

        model = self.whole_model()
        model = model.with_config(**evaluation.model) if evaluation.model else model
        size = config.eval_batch_size or config.batch_size // config.accumulation
        score = evaluate(model, self.dataset, split, batch_size=size, limit=config.eval_limit,
                         precision=config.precision, progress=show, processes=self.processes)
        self.answered = question, score
        return score

    def record(self, event: Event) -> Event:
        """Write an event down, show it and return it."""
        self.log.append(event)
        self.tell(event)
        return event

    def tell(self, event: Event) -> None:
        """Show an event. When nobody reads the output any more, the run ends as after a signal."""
        try:
            self.report(event)
        except BrokenPipeError:
            self.report = lambda event: None
            self.stop.reader_left()

    def seconds(self) -> float:
        """Return the time that the run has taken, over all calls."""
        return time.perf_counter() - self.began

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one. Weights that are not finite never replace those that are."""
        if self.saved_step == self.counters.step:
            return
        model = self.whole_model()
        spoilt = first_weight_not_finite(model)
        if spoilt is not None:
            raise UserError(f"step {self.counters.step} left weights that are not finite, {spoilt} the first of them; "
                            f"{kept(self.folder)}.\nTry a lower --optimizer.learning-rate in another --output")
        self.counters.seconds = self.seconds()
        self.log.sync()
        if isinstance(self.state, WholeState):
            self.state.gather()
        if self.processes.is_first:
            save_checkpoint(self.folder.checkpoints, model, self.state, asdict(self.counters))
        self.saved_step = self.counters.step

    def leave_if_asked(self) -> None:
        """After SIGINT, SIGTERM, SIGHUP, or when nobody reads the output: save and end the process."""
        if self.stop.received is not None:
            self.settle()
            self.save()
            self.processes.wait()  # a launcher ends them all when one has left
            self.tell({"event": "note", "text": f"stopped at step {self.counters.step}, saved: "
                                                "the same call goes on from there"})
            self.stop.leave()

    def whole_model(self) -> ReformerLM:
        """Return the model with all of its parameters."""
        return self.processes.whole(self.model, lambda: self.parts.model(self.config))

    def save_model(self) -> None:
        """Write the trained model into `model/`, whole or not at all."""
        model, target = self.whole_model(), self.folder.model
        if not self.processes.is_first:
            return
        temporary = target.with_name(f"{TEMPORARY}{target.name}")
        with writing(target):
            for leftover in (temporary, target):  # of a call that was killed before it could write "final"
                if leftover.exists():
                    shutil.rmtree(leftover)
            model.save_pretrained(temporary)
            sync_all(temporary)
            temporary.rename(target)
            sync(target.parent)


def reads_late(device: torch.device) -> bool:
    """Whether a step's numbers are read when the next step is under way: reading waits for what a GPU has still to do."""
    return device.type != "cpu"


def cut(batch: Batch, pieces: int) -> list[Batch]:
    """Cut a batch into equal pieces."""
    masks = [None] * pieces if batch.key_padding_mask is None else batch.key_padding_mask.chunk(pieces)
    return [Batch(*parts) for parts in zip(batch.tokens.chunk(pieces), batch.targets.chunk(pieces), masks, strict=True)]


def check_fit(config: RunConfig, dataset: Dataset) -> None:
    """Raise `UserError` unless the model can take the data."""
    if dataset.vocab_size > config.model.vocab_size:
        raise UserError(f"vocab_size={config.model.vocab_size}: the data have {dataset.vocab_size} token ids; "
                        f"set --model.vocab-size {dataset.vocab_size}")
    if dataset.length > config.model.max_length:
        raise UserError(f"max_length={config.model.max_length}: the data's sequences have {dataset.length} tokens; "
                        "raise --model.max-length or shorten the sequences")


def check_evaluations(config: RunConfig, dataset: Dataset, model: ReformerLM) -> None:
    """Raise `UserError` for a score that could not be computed once the training is over."""
    for evaluation in config.evaluations:
        model.with_config(**evaluation.model)
    on_the_way = {"validation"} if config.eval_every else set()
    for split in sorted(on_the_way | ({config.final_split} if config.evaluations else set())):
        if next(iter(dataset.eval_batches(split, 1, 1)), None) is None:
            raise UserError(f"the {split} split holds nothing to score: give a longer corpus or a larger split")


def check_same_data(fingerprints: list[str]) -> None:
    """Raise `UserError` unless all processes have the data of the first."""
    for rank, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise UserError(f"process {rank} reads other data ({fingerprint[:12]}) than process 0 ({fingerprints[0][:12]}): "
                            "copy the same file to every machine")


def check_seen(checkpoint: Path) -> None:
    """Raise `UserError` if this process cannot see a checkpoint that the first one has found."""
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is not on this machine: give an --output that every machine sees, or run on one machine")


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Let torch use `number` threads inside the context. None: as many as it does already."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
