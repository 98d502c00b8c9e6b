"""An evaluation in the middle of training changes nothing in what follows, nor does a checkpoint or a line of metrics."""

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_model, tiny_run, without_times

from reformer_lab.models.language_model import ReformerLM
from reformer_lab.training.config import RunConfig
from reformer_lab.training.loop import train

DRAWS = {"dropout": 0.2, "attention_dropout": 0.2}
"""Beside hashing, which draws rotations at every step: all that a step draws."""


def trained(run: RunConfig, folder: Path) -> tuple[list[tuple[int, float, float]], dict[str, torch.Tensor], dict]:
    """The steps' losses and gradient norms, the weights, the optimiser's state."""
    train(run, folder)
    lines = [(event["step"], event["loss"], event["grad_norm"]) for event in without_times(folder)
             if event["event"] == "train"]
    state = torch.load(folder / "checkpoints" / str(run.steps) / "state.pt", weights_only=True)
    return lines, ReformerLM.from_pretrained(folder / "model").state_dict(), state["optimizer"]["state"]


@pytest.mark.parametrize("model", [
    {}, {"attention": ("local", "lsh"), "num_layers": 2, "local_chunk_length": 4, "reversible": False},
    {"attention": ("full",), "residual_streams": 1, "reversible": False},
], ids=["lsh-reversible", "local-lsh-stored", "full-regular"])
def test_evaluations_change_nothing(tmp_path: Path, model: dict) -> None:
    """Evaluated after every step, or never; the last weights, optimiser states and every step's loss have the same bits."""
    run = tiny_run(model=tiny_model(**DRAWS | model), steps=12, log_every=1, checkpoint_every=None, eval_every=None)
    never = trained(run, tmp_path / "never")
    always = trained(RunConfig.from_dict(run.to_dict() | {"eval_every": 1}), tmp_path / "always")
    kinds = [event["event"] for event in without_times(tmp_path / "always")]
    assert (kinds.count("eval"), kinds.count("train")) == (12, 12)
    assert never[0] == always[0]
    for one, other in ((never[1], always[1]), *zip(never[2].values(), always[2].values(), strict=True)):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


def test_logs_and_checkpoints_change_nothing(tmp_path: Path) -> None:
    run = tiny_run(model=tiny_model(**DRAWS), steps=12, eval_every=None)
    often = trained(RunConfig.from_dict(run.to_dict() | {"checkpoint_every": 1, "log_every": 1}), tmp_path / "often")
    seldom = trained(RunConfig.from_dict(run.to_dict() | {"checkpoint_every": None, "log_every": 12}), tmp_path / "seldom")
    assert len(often[0]) == 12
    assert len(seldom[0]) == 1
    for name, value in often[1].items():
        assert torch.equal(value, seldom[1][name]), name
