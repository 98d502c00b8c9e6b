"""The processes that share one training: what each computes, what they tell one another, how they end together.

A launcher starts them (torchrun, `accelerate launch`, srun); one process alone is the same with nobody to tell. The
micro-batches of a step are dealt out. Their sequences and their draws depend on how many there are, not on who computes them:
a run with `accumulation` 4 computes the same on 1, 2 and 4 processes, up to the order of its sums.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from reformer_lab.errors import UserError
from reformer_lab.training import sharding

Result = TypeVar("Result")


class Processes:
    """This process among those that train one model.

    As a context: the first process that fails raises its error, every other one ends with exit code 1 and says nothing.
    """

    STAY_SECONDS = 2.0

    def __init__(self, shard: bool = False) -> None:
        """Join the others, if a launcher has started any. `shard`: see `training.sharding`; without others it has no effect."""
        # Precision is ours (`autocast`): Accelerate's is a state of the whole process, which runs may not share. Without CUDA
        # it is told to compute on the CPU: else it joins no others, and takes devices for which there are no operators here.
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        self.count, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.shard = shard and self.count > 1
        device = self.accelerator.device
        self.device = torch.device("cpu") if device.type == "cpu" else device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.count == 1:
            return
        if error is None:
            try:
                self.wait()  # none is gone while the first one still writes
                return
            except Exception as lost:
                if self.is_first:
                    return  # all is written
                error = lost
        if not isinstance(error, Exception) or isinstance(error, BrokenPipeError):
            return  # after signals, and when nobody reads the output, all leave as they have agreed
        if not self._fails_first():
            self._ends_quietly()
        self._let_others_ask()
        if not isinstance(error, UserError) and _is_lost_connection(error):
            raise UserError(f"process {self.rank} of {self.count} lost another one, which ended without a word (killed, or its "
                            "machine is gone): the same call goes on from the last checkpoint") from error
        if not isinstance(error, UserError):
            error.add_note(f"in process {self.rank} of {self.count}")
        if kind is None:
            raise error

    def _fails_first(self) -> bool:
        try:
            store = distributed.distributed_c10d._get_default_store()
            return store.add("reformer_lab/failures", 1) == 1
        except Exception:  # the process that kept the store is gone, and said nothing
            return True

    def _ends_quietly(self) -> NoReturn:
        with contextlib.suppress(Exception):
            distributed.distributed_c10d._get_default_store().add("reformer_lab/quiet", 1)
        raise SystemExit(1)

    def _let_others_ask(self) -> None:
        """Stay for a moment if this process keeps the store: the others ask it whether an error has been told already."""
        if not self.is_first or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return
        end = time.monotonic() + self.STAY_SECONDS
        with contextlib.suppress(Exception):
            store = distributed.distributed_c10d._get_default_store()
            while store.add("reformer_lab/quiet", 0) < self.count - 1 and time.monotonic() < end:
                time.sleep(0.02)

    def pieces(self, batch_size: int, accumulation: int) -> tuple[int, range]:
        """Return the number of micro-batches of a step, and which of them are this process's.

        The number is `accumulation`, or the next one that the processes can share. Raises `UserError` if a batch cannot be cut
        into so many equal parts.
        """
        number = math.lcm(accumulation, self.count)
        if batch_size % number:
            raise UserError(f"batch_size={batch_size}: {self.count} processes and accumulation={accumulation} cut a step's "
                            f"batch into {number} equal parts; give a multiple of {number}, or start fewer processes")
        own = number // self.count
        return number, range(self.rank * own, (self.rank + 1) * own)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model in the form that exchanges its gradients' means, and takes the first process's parameters."""
        if self.count == 1:
            return model
        return sharding.shard(model, self.device) if self.shard else self.accelerator.prepare(model)

    def computing(self, prepared: nn.Module, *, last: bool) -> AbstractContextManager:
        """Return the context of one micro-batch, forward and backward: gradients are exchanged after the `last` alone."""
        if self.shard:
            return sharding.computing(prepared, last)
        return nullcontext() if last or self.count == 1 else self.accelerator.no_sync(prepared)

    def whole(self, model: nn.Module, build: Callable[[], nn.Module]) -> Any:
        """Return the model with all of its parameters in this process: itself or, when it is sharded, a copy.

        `build` makes the model to copy into. All processes must ask at once.
        """
        return sharding.whole(model, build()).to(self.device) if self.shard else model

    def gather(self, value: Result) -> list[Result]:
        """Return every process's `value`, in the order of the ranks. All must ask at once."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def gather_numbers(self, numbers: Tensor) -> Tensor:
        """Return (count, n) for each process's (n,), without waiting for the device."""
        return numbers[None] if self.count == 1 else self.accelerator.gather(numbers[None])

    def of_first(self, action: Callable[[], Result]) -> Result:
        """Return what `action` returns in the first process. If it fails there, the others end quietly."""
        if self.count == 1:
            return action()
        error: Exception | None = None
        outcome: list[Any] = [None, False]
        if self.is_first:
            try:
                outcome = [action(), False]
            except Exception as raised:
                error, outcome = raised, [None, True]
        distributed.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        if outcome[1]:
            self._ends_quietly()
        return outcome[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            distributed.barrier()

    def agreed(self, signal_number: int) -> signal.Signals | None:
        """Return the signal that any process has received, None if none has. All must ask at once."""
        number = max(self.gather(signal_number))
        return signal.Signals(number) if number else None

    def said_by_all(self, sentence: str) -> str:
        """Return every process's sentence, with its rank where they differ. All must ask at once."""
        said = self.gather(sentence)
        if len(set(said)) == 1:
            return sentence
        return " ".join(f"Process {rank}: {one}" for rank, one in enumerate(said))


def _is_lost_connection(error: Exception) -> bool:
    """Whether the error is what is left of a collective operation when another process has gone."""
    signs = ("connection closed by peer", "connection reset by peer", "read error", "broken pipe")
    return isinstance(error, (distributed.DistError, RuntimeError)) and any(sign in str(error).lower() for sign in signs)
