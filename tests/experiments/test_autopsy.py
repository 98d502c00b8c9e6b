"""The arms of the autopsy: one fault apart, five seeds."""

from dataclasses import replace

import pytest

from reformer_lab.experiments import autopsy
from reformer_lab.experiments.claim import Scale
from reformer_lab.experiments.faults import FAULTS, FEW, FLAT, RAW, FaultyRunConfig
from reformer_lab.experiments.symptoms import ALL, BOTH_SCALES, CONTROL, NONE, TEXT, arm_name
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
    together = {ALL: autopsy.CONCERNED[task]} if task == TEXT else {ALL: autopsy.CONCERNED[task], BOTH_SCALES: (FLAT, RAW)}
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
