"""Several processes train what one trains; one writes; they stop, resume and fail together."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from launching import SECONDS, WORKER, ends, start
from tiny_runs import tiny_model, tiny_run, without_times

from reformer_lab.cli.train import parse, run_config
from reformer_lab.errors import UserError
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.training.checkpoint import newest_checkpoint
from reformer_lab.training.config import RunConfig
from reformer_lab.training.interruption import StopRequests
from reformer_lab.training.loop import check_same_data, check_seen, train
from reformer_lab.training.sharding import WholeState

TRAPS = {"attention": ("local", "lsh", "full"), "num_layers": 3, "local_chunk_length": 4, "ff_chunk_length": 5}
"""A layer of every kind, and a function that is called several times."""
MODELS = {
    "reversible": tiny_model(**TRAPS),
    "tied": tiny_model(**TRAPS, tie_embeddings=True, loss_chunk_length=7),
    "stored": tiny_model(**TRAPS, reversible=False),
}
RUNS: dict[str, RunConfig] = {name: tiny_run(model=model, accumulation=2) for name, model in MODELS.items()}
RUNS["stored"] = tiny_run(model=MODELS["stored"], accumulation=2, eval_batch_size=3)  # in 3, 3 and 2
RUNS["four-pieces"] = tiny_run(accumulation=4)
RUNS["larger-batch"] = tiny_run(model=tiny_model(attention=("full",), dropout=0.0), eval_batch_size=4)
RUNS["stopped"] = RUNS["to-one"] = RUNS["from-one"] = tiny_run(accumulation=2, checkpoint_every=None)
SHARDED = ("tied", "four-pieces")
STOPPED = {"stopped": [1, 3], "to-one": [0, 5]}
"""Rank and step of the process that is told to stop."""


def cases(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, run in RUNS.items():
        case = {"config": run.to_dict(), "output": str(folder / name)}
        found += [{**case, "stop": STOPPED[name]}] if name in STOPPED else []
        found += [case] if name != "to-one" else []
    found.append({"config": RUNS["tied"].to_dict(), "output": str(folder / "unused"), "find_unused": True})
    for name in SHARDED:
        found.append({"config": RUNS[name].to_dict(), "output": str(folder / f"sharded {name}"), "shard": True})
    for name in (*STOPPED, "whole", "from-one"):
        case = {"config": RUNS["stopped"].to_dict(), "output": str(folder / f"sharded {name}"), "shard": True}
        found += [{**case, "stop": STOPPED[name]}] if name in STOPPED else []
        found += [case] if name != "to-one" else []
    return found


def begin_alone(run: RunConfig, folder: Path) -> None:
    """Train in this process until step 4 is saved."""
    def progress(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(run, folder, progress)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, all by the same two."""
    folder = tmp_path_factory.mktemp("together")
    for name in ("from-one", "sharded from-one"):
        begin_alone(RUNS["from-one"], folder / name)
    (folder / "cases.json").write_text(json.dumps(cases(folder)))
    for code, output, errors in ends(start([str(WORKER), str(folder / "cases.json")])):
        assert (code, output) == (0, "all done\n"), errors
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, run in RUNS.items():
        train(run, folder / name)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ReformerLM.from_pretrained(folder / "model").state_dict()


def assert_same(one: Path, other: Path) -> None:
    """Equal lines of metrics and equal weights, every bit."""
    assert without_times(one) == without_times(other)
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


def assert_close(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Losses, norms of the gradients and weights equal up to a relative error."""
    lines, expected = without_times(one), without_times(other)
    assert [(line["event"], line["step"]) for line in lines] == [(line["event"], line["step"]) for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        for name in {"loss", "bits", "grad_norm"} & line.keys():
            assert line[name] == pytest.approx(wanted[name], rel=tolerance), (name, line)
    for name, value in weights(one).items():
        assert float((value - weights(other)[name]).norm() / value.norm()) < tolerance, name


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("to-one", "from-one")])
def test_two_processes_train_what_one_does(name: str, together: Path, alone: Path) -> None:
    """Losses, gradients, evaluations; "stopped" was told to stop, one process of it, and was resumed."""
    # Two pieces add up in one order only. Four are added in pairs, and half a batch is not the whole one.
    (assert_same if RUNS[name].accumulation == 2 else assert_close)(together / name, alone / name)


def test_looking_for_unused_parameters_changes_nothing(together: Path, alone: Path) -> None:
    assert_same(together / "unused", alone / "tied")


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_processes_train_what_one_does(name: str, together: Path, alone: Path) -> None:
    assert_close(together / f"sharded {name}", alone / name)


def test_a_sharded_run_resumes_to_the_same_bits(together: Path) -> None:
    assert_same(together / "sharded stopped", together / "sharded whole")


@pytest.mark.parametrize("prefix", ["", "sharded "])
def test_resumed_by_another_number_of_processes(prefix: str, together: Path, alone: Path) -> None:
    """Two begin and one goes on; one begins and two go on."""
    check = assert_close if prefix else assert_same
    final = train(RUNS["to-one"], together / f"{prefix}to-one")
    assert final["step"] == 8
    check(together / f"{prefix}to-one", alone / "to-one")
    check(together / f"{prefix}from-one", alone / "from-one")


def test_a_sharded_checkpoint_is_that_of_one_process(together: Path, alone: Path) -> None:
    """Whole parameters and a whole optimiser: names, shapes and types are the same."""
    def content(folder: Path) -> dict[str, Any]:
        state = torch.load(folder / "checkpoints" / "8" / "state.pt", weights_only=True)["optimizer"]
        return {"groups": [{**group, "fused": None, "foreach": None} for group in state["param_groups"]],
                "state": {number: {name: (value.shape, value.dtype) for name, value in values.items()}
                          for number, values in state["state"].items()}}

    assert content(together / "sharded stopped") == content(alone / "stopped")


ARGUMENTS = ("-m", "reformer_lab", "train", "--preset", "duplication_cpu", "--length", "64", "--steps", "6",
             "--eval-limit", "4", "--model.num-layers", "1", "--checkpoint-every", "2", "--threads", "1", "--batch-size")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no")


@pytest.mark.parametrize("launcher", [TORCHRUN, (*ACCELERATE, "--use_fsdp", "--fsdp_version", "2")],
                         ids=["torchrun", "accelerate"])
def test_the_command_line_under_a_launcher(launcher: tuple[str, ...], tmp_path: Path) -> None:
    (code, output, errors), = ends(start((*launcher, *ARGUMENTS, "4", "--output", "run"), count=1, directory=tmp_path))
    assert code == 0, errors
    assert [output.count(line) for line in ("run folder: run", "finished: 6 steps", "next: reformer-lab evaluate")] == [1, 1, 1]
    assert "on cpu, 2 processes, 6 steps" in output
    steps = [event["step"] for event in without_times(tmp_path / "run") if event["event"] == "train"]
    assert steps == sorted(set(steps))
    assert not (tmp_path / "run" / "run.lock").exists()


LONGER = (*ARGUMENTS, "4", "--accumulation", "2", "--steps", "40", "--checkpoint-every", "15", "--log-every", "1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `LONGER` by this one process."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(run_config(parse(list(LONGER[3:]))), folder)
    return folder


@pytest.mark.parametrize("launcher", [TORCHRUN, (*ACCELERATE, "--multi_gpu")], ids=["torchrun", "accelerate"])
def test_sigterm_to_the_launcher(launcher: tuple[str, ...], tmp_path: Path, uninterrupted: Path) -> None:
    """It tells its processes, which save and leave together; its own exit code is 1. Nothing of it is left running."""
    words = (*launcher, *LONGER, "--output", "run")
    process, = start(words, count=1, directory=tmp_path)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + SECONDS
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    (code, output, errors), = ends([process])
    assert (code, "got signal: 15" in errors) == (1, True), errors
    assert psutil.wait_procs(children, 10)[1] == []
    stopped = int(re.findall(r"stopped at step (\d+), saved: the same call goes on from there", output)[0])
    assert 3 <= stopped < 40
    assert newest_checkpoint(tmp_path / "run" / "checkpoints", pytest.fail) == tmp_path / "run" / "checkpoints" / str(stopped)
    assert not (tmp_path / "run" / "run.lock").exists()
    if launcher == TORCHRUN:
        (code, output, errors), = ends(start(words, count=1, directory=tmp_path))
        assert code == 0, errors
        assert f"2 processes, 40 steps, going on after step {stopped}" in output
    else:  # one process takes it up, in less time
        train(run_config(parse(list(LONGER[3:]))), tmp_path / "run")
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(("words", "message"), [
    (("3",), "batch_size=3: 2 processes and accumulation=1 cut a step's batch into 2 equal parts; give a multiple of 2"),
    (("2", "--output", "file"), "file is a file"),
], ids=["batch", "folder"])
def test_a_mistake_is_said_once(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = ends(start((*ARGUMENTS, *words), directory=tmp_path))
    assert sorted(code for code, _, _ in found) == [1, 2]
    said = [errors for _, _, errors in found if "reformer-lab: error" in errors]
    assert len(said) == 1
    assert message in said[0]
    assert not any("Traceback" in errors for _, _, errors in found)


def test_a_killed_process_ends_the_others_with_a_message(tmp_path: Path, alone: Path) -> None:
    run = tiny_run(accumulation=2)
    case = {"config": run.to_dict(), "output": str(tmp_path / "run"), "kill": [1, 6]}
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    (code, _, errors), (killed, _, _) = ends(start([str(WORKER), str(tmp_path / "cases.json")]))
    assert (code, killed) == (1, -9)
    assert "process 0 of 2 lost another one" in errors
    assert "the same call goes on from the last checkpoint" in errors
    train(run, tmp_path / "run")
    assert_same(tmp_path / "run", alone / "stopped")


def test_a_signal_that_a_launcher_passes_on_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("reformer_lab.training.interruption.time.monotonic", lambda: now[0])
    with StopRequests(alone=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.noticed, stop.received) == (signal.SIGTERM, None)  # the others must be asked first
        now[0] += 10
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def test_adafactor_is_not_sharded() -> None:
    with pytest.raises(UserError, match=r"cannot be shared out: choose --optimizer\.name adam"):
        WholeState(torch.optim.Adafactor([torch.zeros(2, requires_grad=True)]))


def test_other_data_and_a_folder_that_is_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="process 1 reads other data"):
        check_same_data(["one", "other"])
    with pytest.raises(UserError, match="is not on this machine"):
        check_seen(tmp_path / "4")
