"""Suites on a Ray cluster of two nodes, one processor each: the same results, lost workers, one terminal."""

import contextlib
import io
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import Arm, Experiment, MeasurementConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.models.presets import get_preset
from reformer_lab.reporting.records import read_results
from reformer_lab.reporting.section import Section
from reformer_lab.runner.display import Display
from reformer_lab.runner.engine import SuiteOutcome, run_suite
from reformer_lab.runner.plan import Plan, make_plan
from reformer_lab.training.config import RunConfig
from reformer_lab.training.tracking import Event

ray = pytest.importorskip("ray")

from reformer_lab.runner import cluster as module  # noqa: E402
from reformer_lab.runner.cluster import Cluster, Resources  # noqa: E402

MODEL = get_preset("cpu_tiny").replace(vocab_size=128, num_layers=1)
TIMES = ("seconds", "tokens_per_second", "peak_memory_bytes", "median", "low", "high")


def training(seed: int, steps: int = 4, threads: int = 1, **changes: Any) -> Arm:
    run = RunConfig(model=MODEL, data=DuplicationConfig(length=32, eval_sequences=4), steps=steps, seed=seed, threads=threads,
                    **{"checkpoint_every": 5, "log_every": 2} | changes)
    return Arm(name=f"training {seed}", run=run)


def measurement() -> Arm:
    parameters = {"model": MODEL.to_dict(), "points": [{"length": 16, "batch_size": 2}], "rounds": 1, "device": "cpu"}
    return Arm(name="speed", run=MeasurementConfig(kind="speed", parameters=parameters))


def plan(*arms: Arm) -> Plan:
    return make_plan([Experiment(name="invented", title="", question="?", claims=(), criterion="none", arms=lambda scale: arms,
                                 judge=lambda results: (), show=lambda results: Section(), cuts=lambda scale: "all")], "smoke")


NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster as TestCluster

    nodes = TestCluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    nodes.add_node(**NODE)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes: Any) -> Iterator[Cluster]:
    with Cluster(nodes.address) as connected:
        yield connected


def parent(pid: int) -> int:
    return int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def workers(folder: Path) -> dict[int, str]:
    """Return the processes that run arms of a suite, and which."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if "reformer_lab.runner.worker" in words and any(str(folder) in word for word in words):
                found[int(path.parent.name)] = Path(words[-2]).stem
    return found


def run(wanted: Plan, output: Path, cluster: Cluster | None) -> tuple[SuiteOutcome, str]:
    """Run the suite; return how it ended and what a terminal would have shown."""
    shown = io.StringIO()
    outcome = run_suite(wanted, output, workers=None if cluster else 1, cluster=cluster,
                        display=Display(len(wanted.arms), 0, Console(file=shown, width=200)))
    return outcome, shown.getvalue()


def timeless(events: tuple[Event, ...]) -> list[Event]:
    return [{name: value for name, value in event.items() if name not in TIMES} for event in events]


def test_results_are_those_of_the_local_engine(cluster: Cluster, tmp_path: Path) -> None:
    assert len(cluster.nodes) == cluster.at_once == 2
    wanted = plan(training(0), training(1), training(2), measurement())
    for name, where in (("local", None), ("ray", cluster)):
        assert run(wanted, tmp_path / name, where)[0].failed == {}
    local, remote = (read_results(tmp_path / name) for name in ("local", "ray"))
    assert local.keys() == remote.keys() == wanted.arms.keys()
    for arm in local:
        if wanted.arms[arm].kind == "training":
            assert timeless(local[arm].events) == timeless(remote[arm].events)
            one, other = (ReformerLM.from_pretrained(tmp_path / name / "runs" / arm / "model").state_dict() for name in
                          ("local", "ray"))
            assert all(value.equal(other[key]) for key, value in one.items())
        for name in ("config", "digest", "status", "environment"):
            assert local[arm].header[name] == remote[arm].header[name]


@pytest.mark.parametrize("victim", ["training", "ray's worker"])
def test_a_killed_worker_goes_on_from_its_checkpoint(victim: str, cluster: Cluster, tmp_path: Path) -> None:
    wanted = plan(training(0, steps=200, checkpoint_every=20))
    (arm,) = wanted.arms
    killed: list[int] = []

    def kill() -> None:
        while len(list((tmp_path / "ray" / "runs" / arm / "checkpoints").glob("[0-9]*"))) < 2:
            time.sleep(0.02)
        for pid in workers(tmp_path):
            killed.append(pid if victim == "training" else parent(pid))
            os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome, shown = run(wanted, tmp_path / "ray", cluster)
    killer.join()
    assert len(killed) == 1
    assert outcome.failed == {}
    assert "its worker was lost (" in shown
    assert "started again, from its checkpoint" in shown
    assert run(wanted, tmp_path / "local", None)[0].failed == {}
    one, other = (read_results(tmp_path / name)[arm] for name in ("local", "ray"))
    assert timeless(one.events) == timeless(other.events)


def test_a_lost_machine(nodes: Any, cluster: Cluster, tmp_path: Path) -> None:
    """One of two is gone at once, with all that ran there; its arm goes on from the checkpoint in the shared folder."""
    wanted = plan(*(training(seed, steps=200, checkpoint_every=20) for seed in (0, 1)), measurement())
    killed: list[int] = []
    lost: list[str] = []

    def lose() -> None:
        (node,) = nodes.worker_nodes
        (raylet,) = node.all_processes["raylet"]
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            time.sleep(0.02)
            with contextlib.suppress(OSError):
                for pid, arm in workers(tmp_path).items():
                    saved = list((tmp_path / "ray" / "runs" / arm / "checkpoints").glob("[0-9]*"))
                    if parent(parent(pid)) == raylet.process.pid and len(saved) >= 2:
                        killed.append(pid)
                        lost.append(arm)
        for pid in killed:  # at once: this machine goes on, and the training would save once more, or end, before the node has
            os.kill(pid, signal.SIGSTOP)
        nodes.remove_node(node, allow_graceful=False)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    loser = threading.Thread(target=lose)
    loser.start()
    try:
        outcome, shown = run(wanted, tmp_path / "ray", cluster)
    finally:
        loser.join()
        nodes.add_node(**NODE)
        nodes.wait_for_nodes()
    assert outcome.failed == {}
    assert len(killed) == len(lost) == 1
    again = set(re.findall(r"(\S+): its worker was lost .*; started again, from its checkpoint", shown))
    # the measurement too, where the cluster had not noticed yet that the machine it was handed to is gone
    assert again - {arm.id for arm in wanted.measurements} == set(lost)
    assert run(wanted, tmp_path / "local", None)[0].failed == {}
    local, remote = (read_results(tmp_path / name) for name in ("local", "ray"))
    for arm in wanted.trainings:
        assert timeless(local[arm.id].events) == timeless(remote[arm.id].events)
        one, other = (ReformerLM.from_pretrained(tmp_path / name / "runs" / arm.id / "model").state_dict()
                      for name in ("local", "ray"))
        assert all(value.equal(other[key]) for key, value in one.items())


def test_out_of_memory_is_recorded_once(cluster: Cluster, tmp_path: Path) -> None:
    """A real refusal of memory in a real worker."""
    greedy = Arm(name="greedy", run=replace(training(0).run, model=MODEL.replace(d_ff=2**45)))  # type: ignore[type-var]
    outcome, shown = run(plan(greedy, training(0)), tmp_path / "suite", cluster)
    header = read_results(tmp_path / "suite")[greedy.id].header
    assert set(outcome.failed) == {"invented greedy"}
    assert (header["status"], header["cause"]) == ("failed", "out of memory")
    assert header["error"].startswith("out of memory, ")
    assert "started again" not in shown


RAYS_OWN = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory was 95 % full")
SYSTEMS = {"code": -9, "error": "out of memory: the system killed the process", "cause": "out of memory", "seconds": 1.0}
SOMEONES = {"code": -9, "error": "killed by signal 9", "cause": None, "seconds": 1.0}


@pytest.mark.parametrize(("end", "starts", "error", "cause"), [
    (RAYS_OWN, 1, "Task was killed due to the node running low on memory.", "out of memory"),
    (SYSTEMS, 1, "out of memory: the system killed the process", "out of memory"),
    (SOMEONES, 4, "its worker was lost 4 times, at last: killed by signal 9", None),
    (UserError("no room"), 1, "its worker was lost, and no room", None),
], ids=["Ray", "the system", "someone", "nowhere to go"])
def test_which_ends_are_tried_again(end: Any, starts: int, error: str, cause: str | None,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        started = 0

        def options(self, **_: Any) -> "Task":
            return self

        def remote(self, *_: Any) -> Iterator[str]:
            Task.started += 1
            return iter(["reference"])

    def get(_: str) -> Any:
        if isinstance(end, ray.exceptions.RayError):
            raise end
        return SOMEONES if isinstance(end, UserError) else end

    def place() -> Resources:
        if isinstance(end, UserError) and Task.started:
            raise end
        return Resources(1, 0)

    monkeypatch.setattr(module, "_task", Task())
    monkeypatch.setattr(module.ray, "get", get)
    worker = module.RemoteWorker(place, ({}, "jobs/arm.json", "logs/arm.log", None), lambda line: None)
    code = worker.wait(30)
    assert (Task.started, code != 0, worker.failure(code), worker.cause) == (starts, True, error, cause)


def test_failures_and_a_stop_are_seen_here(cluster: Cluster, tmp_path: Path) -> None:
    bad = Arm(name="bad", run=MeasurementConfig(kind="weight", parameters={}))
    outcome, shown = run(plan(training(0), bad), tmp_path / "suite", cluster)
    assert "measurement 'weight' does not exist" in outcome.failed["invented bad"]
    assert "[2/2] invented bad: failed: measurement 'weight' does not exist" in shown
    long = plan(training(3, steps=100_000, checkpoint_every=None))
    (arm,) = long.arms
    outcome = run_suite(long, tmp_path / "long", minutes=0.25, cluster=cluster)
    assert outcome.left == ("invented training 3",)
    assert list((tmp_path / "long" / "runs" / arm / "checkpoints").iterdir())  # asked to stop, not killed


def test_what_arms_hold(cluster: Cluster, tmp_path: Path) -> None:
    assert (cluster.resources(training(0)).cpus, cluster.resources(training(0)).gpus) == (1, 0)
    assert cluster.resources(measurement()).node == cluster.resources(measurement()).node is not None
    with pytest.raises(UserError, match=r"computes with 3 threads, and no machine .* \(1 at most\)"):
        cluster.resources(training(0, threads=3))
    with_gpus = object.__new__(Cluster)
    with_gpus.nodes = [{"NodeID": "a", "Resources": {"CPU": 16.0, "GPU": 2.0}}, {"NodeID": "b", "Resources": {"CPU": 64.0}}]
    assert with_gpus.resources(training(0)).gpus == 0.25
    assert with_gpus.resources(measurement()).node == "a"
    assert with_gpus.at_once == 80
