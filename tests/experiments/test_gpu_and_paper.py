"""The scales gpu and paper without a GPU: every model can be built, and every run, made small, trains and resumes.

`reduced` shrinks sizes alone. Every switch stays: kinds of attention and their order, residual streams, factored buckets, axial
positions, pieces, precision, optimiser, schedule, the evaluations at the end.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reformer_lab.benchmarks.steps import TrainingStep, point_spec
from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig, ImagesConfig
from reformer_lab.experiments.claim import MeasurementConfig
from reformer_lab.experiments.faults import FaultyRunConfig
from reformer_lab.experiments.faulty import train_with_faults
from reformer_lab.experiments.registry import EXPERIMENTS
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.training.config import RunConfig
from reformer_lab.training.loop import train
from reformer_lab.training.tracking import Event, read_events

LENGTH, D_MODEL = 64, 16
TIMES = ("seconds", "tokens_per_second", "peak_memory_bytes")
LARGE = [(f"{scale}-{experiment.name}-{arm.name}", arm) for scale in ("gpu", "paper")
         for experiment in EXPERIMENTS.values() for arm in experiment.arms(scale)]
TRAININGS: dict[str, RunConfig] = {}
for label, one in LARGE:
    if isinstance(one.run, RunConfig) and one.run not in TRAININGS.values():
        TRAININGS[label] = one.run
MEASUREMENTS = {label: arm.run for label, arm in LARGE if isinstance(arm.run, MeasurementConfig)}


def reduced_model(model: ReformerConfig) -> ReformerConfig:
    """A model with every switch of `model`, 64 tokens long."""
    changes: dict[str, Any] = {
        "d_model": D_MODEL, "d_ff": 2 * D_MODEL, "num_heads": 2, "d_head": 8, "max_length": LENGTH,
        "num_layers": min(model.num_layers, 4), "chunk_length": 16, "local_chunk_length": 8,
    }
    if model.num_buckets is not None:
        changes["num_buckets"] = (4, 2) if isinstance(model.num_buckets, tuple) else 8
    if model.axial_shape is not None:
        sides = len(model.axial_shape)
        changes |= {"axial_shape": (4, 16) if sides == 2 else (4, 4, 4),
                    "axial_dims": (D_MODEL // 4, *(D_MODEL // 4,) * (sides - 2), D_MODEL - (sides - 1) * D_MODEL // 4)}
    for name in ("ff_chunk_length", "projection_chunk_length", "loss_chunk_length"):
        if getattr(model, name) is not None:
            changes[name] = LENGTH // 4
    if model.heads_at_once is not None:
        changes["heads_at_once"] = 1
    return model.replace(**changes)


def reduced(run: RunConfig, text: Path) -> RunConfig:
    """A run of four steps with every switch of `run`."""
    data: ByteCorpusConfig | DuplicationConfig | ImagesConfig
    if isinstance(run.data, DuplicationConfig):
        data = run.data.replace(length=LENGTH, eval_sequences=4)
    elif isinstance(run.data, ImagesConfig):
        data = run.data.replace(path=None, side=4)  # 48 tokens of the stand-in
    else:
        assert isinstance(run.data, ByteCorpusConfig)
        data = run.data.replace(path=str(text), length=LENGTH, stride=None if run.data.stride is None else LENGTH // 4)
    return replace(run, model=reduced_model(run.model), data=data, steps=4, batch_size=2, eval_every=2, eval_limit=2,
                   eval_batch_size=1, checkpoint_every=1, log_every=1, threads=1)


def switches(model: ReformerConfig) -> dict[str, Any]:
    """What a reduction may not change."""
    sizes = {"d_model", "d_ff", "num_heads", "d_head", "max_length", "num_layers", "chunk_length", "local_chunk_length",
             "axial_shape", "axial_dims", "num_buckets", "ff_chunk_length", "projection_chunk_length", "loss_chunk_length",
             "heads_at_once"}
    return {name: (type(value) if name in sizes else value) for name, value in vars(model).items()}


class Crash(Exception):
    """A fault that gives the loop no chance to save."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{number} is the square root of {number**2}. " for number in range(1000)))
    return path


@pytest.mark.parametrize("label", TRAININGS)
def test_every_model_can_be_built(label: str) -> None:
    """With shapes and no values: no gigabyte is allocated. The evaluations must fit the same parameters."""
    run = TRAININGS[label]
    model = ReformerLM(run.model, seed=None)
    assert next(model.parameters()).device.type == "meta"
    for evaluation in run.evaluations:
        model.with_config(**evaluation.model)
    assert run.data.length == run.model.max_length


@pytest.mark.parametrize("label", TRAININGS)
def test_every_run_trains_and_resumes_to_the_same_bits(label: str, text: Path, tmp_path: Path) -> None:
    run = reduced(TRAININGS[label], text)
    assert switches(run.model) == switches(TRAININGS[label].model)

    def crash(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 3:
            raise Crash

    start = train_with_faults if isinstance(run, FaultyRunConfig) else train  # as the worker does
    start(run, tmp_path / "whole")
    with pytest.raises(Crash):
        start(run, tmp_path / "halves", crash)
    start(run, tmp_path / "halves")
    lines = [[{name: value for name, value in event.items() if name not in TIMES}
              for event in read_events(tmp_path / folder / "metrics.jsonl")] for folder in ("whole", "halves")]
    assert lines[0] == lines[1]
    assert set(lines[0][-1]["evaluations"]) == {evaluation.name for evaluation in run.evaluations}
    one, other = (ReformerLM.from_pretrained(tmp_path / folder / "model").state_dict() for folder in ("whole", "halves"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("label", MEASUREMENTS)
def test_every_measured_point_can_be_built_and_takes_a_step(label: str) -> None:
    parameters = MEASUREMENTS[label].parameters
    for point in parameters["points"]:
        spec = point_spec(parameters, point)
        whole = ReformerConfig.from_dict(dict(spec["model"]))
        ReformerLM(whole, seed=None)
    small = {**spec, "model": reduced_model(whole).to_dict(), "length": LENGTH, "batch_size": 1, "device": "cpu"}
    assert torch.isfinite(TrainingStep(small, 0, torch.device("cpu")).run())


def test_the_sizes_that_the_scale_gpu_is_for() -> None:
    """Table 2 at the paper's own length, the ablations at 16 K, depth 3, 6 and 12, all in bf16."""
    runs = {label: run for label, run in TRAININGS.items() if label.startswith("gpu-")}
    assert all(run.precision == "bf16" for run in runs.values())
    assert {run.model.max_length for label, run in runs.items() if "table2" in label} == {1024}
    ablations = [run for label, run in runs.items() if run.data.kind == "byte_corpus" and "tuned" not in label]
    assert {run.model.max_length for run in ablations} == {16_384}
    assert {run.model.num_layers for run in ablations} == {3, 6, 12}
    assert runs["gpu-tuned-tuned, 12 layers"].model.max_length == 65_536
