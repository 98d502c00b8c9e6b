"""Fixtures for every test folder."""

import random
import signal
from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
from hypothesis import settings

# Examples follow from the test's name, so that a failure is found again; no deadline, as machines differ.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A shell's background job ignores Ctrl-C, one under nohup a closed terminal, and so would every process that a test starts
# and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """Fill what torch.empty gives with NaN (and large integers): a read before a write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    # On a GPU some operations that the tests use for what is expected have no deterministic form: they warn.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are computed faster by one thread, above all where tests run in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def global_random_state() -> Iterator[None]:
    """Fail if the test changes the global random state of torch, numpy or Python."""

    def state() -> tuple[object, ...]:
        name, keys, *rest = numpy.random.get_state()
        return torch.get_rng_state().tolist(), name, keys.tolist(), *rest, random.getstate()

    before = state()
    yield
    assert state() == before


@pytest.fixture
def peak_bytes() -> Callable[[Callable[[], object]], int]:
    """Measure the peak of the bytes that a function allocates and has not freed yet, temporaries inside torch too."""

    def measure(function: Callable[[], object]) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            function()
        events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        now = peak = 0
        for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
            now += change
            peak = max(peak, now)
        return peak

    return measure


@pytest.fixture
def saved_bytes() -> Callable[[Callable[[], object]], int]:
    """Measure the bytes that autograd keeps for the backward pass while a function runs; each storage counts once."""

    def measure(function: Callable[[], object]) -> int:
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            result = function()
        del result
        return sum(storage.nbytes() for storage in kept.values())

    return measure
