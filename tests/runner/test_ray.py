"""Suites on a Ray cluster of two nodes, one processor each: the same results, lost workers, one terminal."""

import io
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
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

from reformer_lab.runner.cluster import Cluster  # noqa: E402

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    from ray.cluster_utils import Cluster as TestCluster

    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}
    nodes = TestCluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    nodes.wait_for_nodes()
    try:
        with Cluster(nodes.address) as connected:
            yield connected
    finally:
        nodes.shutdown()


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
    wanted = plan(training(0, steps=60))
    (arm,) = wanted.arms
    killed: list[int] = []

    def kill() -> None:
        while len(list((tmp_path / "ray" / "runs" / arm / "checkpoints").glob("[0-9]*"))) < 2:
            time.sleep(0.02)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            words = path.read_text(errors="replace").split("\0") if path.exists() else []
            if "reformer_lab.runner.worker" in words and any(str(tmp_path) in word for word in words):
                pid = int(path.parent.name)
                if victim != "training":
                    pid = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

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
