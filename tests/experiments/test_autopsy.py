"""The arms of the autopsy: one fault apart, five seeds."""

from dataclasses import replace

import pytest
from invented import Events, invent

from reformer_lab.experiments import autopsy
from reformer_lab.experiments.claim import Arm, Scale
from reformer_lab.experiments.faults import FAULTS, FEW, FLAT, RAW, WRONG, FaultyRunConfig
from reformer_lab.experiments.symptoms import ALL, BOTH_SCALES, CONTROL, COPY_FULL, COPY_LSH, NONE, TEXT, arm_name
from reformer_lab.training.config import RunConfig
from reformer_lab.training.run_folder import differences

SCALES_WITH_RUNS: tuple[Scale, ...] = ("smoke", "small", "gpu")


@pytest.mark.parametrize("scale", SCALES_WITH_RUNS)
@pytest.mark.parametrize("task", autopsy.CONCERNED)
def test_an_arm_differs_from_the_clean_run_by_its_faults(task: str, scale: Scale) -> None:
    runs = {arm.name: arm.run for arm in autopsy.arms(scale) if arm.name.startswith(task) and arm.seed == 0}
    clean = runs.pop(arm_name(task, NONE))
    assert type(clean) is RunConfig
    assert clean.final_split == "test"
    runs.pop(arm_name(task, CONTROL), None)
    theirs = tuple(fault for fault in autopsy.CONCERNED[task] if task == TEXT or fault != WRONG)
    together = {ALL: theirs} if task == TEXT else {ALL: theirs, BOTH_SCALES: (FLAT, RAW)}
    assert set(runs) == {arm_name(task, fault) for fault in (*autopsy.CONCERNED[task], *together)}
    fields = {FLAT: {"model.key_scale"}, FEW: {"model.num_buckets"}}
    for name, run in runs.items():
        assert isinstance(run, FaultyRunConfig)
        fault = name.removeprefix(f"{task}: ")
        faults = together.get(fault, (fault,))
        assert run.faults == faults
        found = {line.split(" is ")[0] for line in differences(clean.to_dict(), run.to_dict(), limit=100)}
        assert found == {"faults"}.union(*(fields.get(one, set()) for one in faults))


def test_every_fault_is_tried_somewhere() -> None:
    assert set().union(*autopsy.CONCERNED.values()) == set(FAULTS)


def test_buckets_and_seeds() -> None:
    for scale in SCALES_WITH_RUNS:
        for arm in autopsy.arms(scale):
            assert isinstance(arm.run, RunConfig)
            model = arm.run.model
            chunks = model.max_length // model.chunk_length
            few = FEW in getattr(arm.run, "faults", ())
            assert (model.num_buckets or 2 * chunks) == (chunks if few else 2 * chunks)
    for arm in autopsy.arms("small"):
        seeds = {other.seed for other in autopsy.arms("small") if other.name == arm.name}
        assert len(seeds) == (3 if arm.name.startswith(TEXT) else 5)


def test_no_runs_where_it_has_none() -> None:
    assert autopsy.arms("quick") == autopsy.arms("paper") == ()


def test_the_control_has_local_attention_in_the_place_of_lsh_attention() -> None:
    runs = {arm.name: arm.run for arm in autopsy.arms("small") if arm.run.seed == 0}
    control, clean = runs[arm_name(TEXT, CONTROL)], runs[arm_name(TEXT, NONE)]
    assert isinstance(control, RunConfig)
    assert isinstance(clean, RunConfig)
    assert "lsh" in clean.model.attention
    assert set(control.model.attention) == {"local"}
    assert replace(control, model=control.model.replace(attention=clean.model.attention)) == clean


def test_the_figures_show_the_row_of_2021_and_every_curve() -> None:
    measured = {"LSH-8": 0.04, "LSH-4": 0.07, "LSH-2": 0.11, "LSH-1": 0.12}

    def events(arm: Arm) -> Events | None:
        both = arm.name == arm_name(COPY_FULL, BOTH_SCALES)
        if arm.name.startswith(TEXT) or arm.name == arm_name(COPY_FULL, ALL):
            return None
        scores = {name: {"accuracy": value if both else 0.99} for name, value in {"full": 1.0, **measured}.items()}
        return [{"event": "eval", "step": 25, "accuracy": 0.5},
                {"event": "final", "step": 50, "stopped_early": True, "evaluations": scores}]

    row, curves = autopsy.show(invent(autopsy.EXPERIMENT, "small", events)).figures
    lines = {series.label: dict(zip(series.x, series.y, strict=True)) for series in row.series}
    assert set(lines) == {NONE, FLAT, RAW, BOTH_SCALES, "2021, published", "the paper, length 1,024"}
    assert lines[BOTH_SCALES] == pytest.approx({8: 4, 4: 7, 2: 11, 1: 12})
    assert lines[NONE][8] == pytest.approx(99)
    assert lines["2021, published"] == {8: 1.37, 4: 1.85, 2: 3.0, 1: 4.56}
    assert {series.label for series in curves.series} == {NONE, BOTH_SCALES, ALL, *autopsy.CONCERNED[COPY_LSH]}
