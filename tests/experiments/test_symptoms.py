"""What a change means, and findings from invented results."""

from typing import Any

import pytest
from invented import Events, invent

from reformer_lab.experiments import autopsy
from reformer_lab.experiments.claim import Arm, ExperimentResults, Scale
from reformer_lab.experiments.faults import FEW, FLAT, FROZEN, LINES, RAW, REPEATED, SEEN, WRONG
from reformer_lab.experiments.symptoms import (
    BOTH_SCALES,
    CONTROL,
    COPY_FULL,
    COPY_LSH,
    NONE,
    SYMPTOMS,
    TEXT,
    answers,
    arm_name,
    findings,
    findings_table,
    in_short,
    judge_change,
)
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.statistics import Estimate

ROW, COLUMN, BITS, STEPS = SYMPTOMS


@pytest.mark.parametrize(("low", "high", "finding"), [
    (-97, -60, "explains it"), (-97, -45, "contributes"), (-30, -6, "contributes"), (-30, -4, "inconclusive"),
    (-4.9, 4.9, "does not matter"), (-0.0, 0.0, "does not matter"), (-4, 6, "inconclusive"), (5.1, 9, "works against it"),
    (-60, 60, "inconclusive"),
])  # fmt: skip
def test_what_a_change_means(low: float, high: float, finding: str) -> None:
    """From 98 % without faults down to about 0."""
    assert judge_change(Estimate(value=(low + high) / 2, low=low, high=high, n=5), -98, 5) == finding
    assert judge_change(Estimate(value=-(low + high) / 2, low=-high, high=-low, n=5), 98, 5) == finding


def test_a_single_run_decides_by_its_value() -> None:
    assert judge_change(Estimate(value=0.06), 0.11, 0.03) == "explains it"
    assert judge_change(Estimate(value=0.04), 0.11, 0.03) == "contributes"
    assert judge_change(Estimate(value=0.02), 0.11, 0.03) == "does not matter"


def test_a_symptom_within_the_margin_is_explained_by_nothing_small() -> None:
    assert judge_change(Estimate(value=-4, low=-4.5, high=-3.5, n=5), -6, 5) == "does not matter"


def events(arm: Arm, **changes: Any) -> Events | None:
    """Without faults: all solved after 200 steps, 3.0 bits, 3.5 without context; a little noise between the seeds."""
    noise = 0.001 * arm.seed
    accuracy = {name: {"accuracy": 0.99 + noise} for name in ("own", "full", "LSH-8", "LSH-4", "LSH-2", "LSH-1")}
    bits = 3.5 if arm.name == arm_name(TEXT, CONTROL) else 3.0
    final = {"event": "final", "step": 200, "stopped_early": True,
             "evaluations": {"own": {"bits": bits + noise}} if arm.name.startswith(TEXT) else accuracy}
    change = changes.get(arm.name)
    if change is not None:
        change(final, arm.seed)
    return [{"event": "eval", "step": 100, "accuracy": 0.5, "bits": 3.1}, final]


def results(scale: Scale = "small", **changes: Any) -> ExperimentResults:
    return invent(autopsy.EXPERIMENT, scale, lambda arm: events(arm, **changes))


def scored(column: str, value: float, spread: float = 0.0, key: str = "accuracy") -> Any:
    def change(final: dict[str, Any], seed: int) -> None:
        final["evaluations"][column][key] = value + spread * seed

    return change


def stopped(*steps: int) -> Any:
    def change(final: dict[str, Any], seed: int) -> None:
        final["step"] = steps[seed]

    return change


def test_findings_of_invented_results() -> None:
    found = results(**{
        arm_name(COPY_FULL, RAW): scored("LSH-8", 0.02), arm_name(COPY_FULL, BOTH_SCALES): scored("LSH-8", 0.2),
        arm_name(COPY_FULL, FLAT): scored("LSH-8", 0.8),
        arm_name(COPY_FULL, FROZEN): scored("LSH-8", 0.9, 0.05),
        arm_name(COPY_LSH, RAW): scored("full", 0.5), arm_name(COPY_LSH, FLAT): stopped(400, 425, 375, 400, 450),
        arm_name(COPY_LSH, FEW): stopped(100, 125, 100, 100, 125),
        arm_name(TEXT, LINES): scored("own", 3.09, key="bits"), arm_name(TEXT, FEW): scored("own", 2.9, key="bits"),
        arm_name(TEXT, FLAT): scored("own", 3.0, 0.05, key="bits"),
    })
    by_symptom = [{one.fault: one.finding for one in findings(found, symptom)} for symptom in SYMPTOMS]
    row, column, bits, steps = by_symptom
    assert row == {RAW: "explains it", FLAT: "contributes", FROZEN: "inconclusive", FEW: "does not matter",
                   REPEATED: "does not matter", BOTH_SCALES: "explains it", "all": "does not matter"}
    assert (column[RAW], column[FLAT]) == ("explains it", "does not matter")
    assert (bits[LINES], bits[FEW], bits[FLAT]) == ("explains it", "works against it", "inconclusive")
    assert (steps[FLAT], steps[FEW], steps[FROZEN]) == ("explains it", "works against it", "does not matter")
    assert SEEN not in bits
    assert RAW not in steps
    table = findings_table(found)
    assert len(table.rows) == sum(len(one) for one in by_symptom)
    text = answers(found)
    assert "Explained by: raw keys in full attention (2.0 %, −97.2 [−97.4, −97.0])" in text[0]
    assert "Contributing, half of the way is not shown: flat logits (80.0 %" in text[0]
    assert "Of no matter: as many buckets as chunks" in text[0]
    assert "Flat logits and raw keys in full attention together: 20.0 %, −79.2 [−79.4, −79.0], which explains it." in text[0]
    assert "All faults together: 99.2 %, +0.0 [+0.0, +0.0], which is no change that matters." in text[0]
    assert "worth +0.500" in text[2]
    assert in_short(found) == (
        "In short, what explains it. Their row \"full\": raw keys in full attention; their column \"full\": raw keys in full "
        "attention; bits per byte: shuffled lines; steps to solve: flat logits.")


def test_in_short() -> None:
    together = results(**{arm_name(COPY_FULL, BOTH_SCALES): scored("LSH-8", 0.2),
                          arm_name(COPY_LSH, "all"): scored("full", 0.3),
                          arm_name(TEXT, LINES): scored("own", 3.05, key="bits")})
    assert in_short(together) == (
        "In short, what explains it. Their row \"full\": no fault alone, but flat logits and raw keys together; their column "
        "\"full\": no fault alone, but all of them together; bits per byte: no fault is shown to do half of it; shuffled "
        "lines a part at least; steps to solve: none of these faults.")
    assert "steps to solve: undecided." in in_short(results(**{arm_name(COPY_LSH, FEW): stopped(100, 300, 200, 100, 300)}))
    assert "their column \"full\": no fault alone; all of them together a part at least;" in in_short(
        results(**{arm_name(COPY_LSH, "all"): scored("full", 0.85)}))
    assert in_short(invent(autopsy.EXPERIMENT, "small", lambda arm: None)) == ""


def test_a_language_model_that_needs_no_lsh_layers_says_nothing_of_their_faults() -> None:
    found = results(**{arm_name(TEXT, CONTROL): scored("own", 3.05, key="bits"),
                       arm_name(TEXT, LINES): scored("own", 3.2, key="bits"),
                       **{arm_name(TEXT, fault): scored("own", 3.001, 0.001, key="bits")
                          for fault in (*autopsy.CONCERNED[TEXT], "all") if fault != LINES}})
    bits = {one.fault: one.finding for one in findings(found, BITS)}
    assert bits.pop(LINES) == "explains it"  # a harm that is seen is one all the same
    assert set(bits.values()) == {"inconclusive"}
    assert "too little" in answers(found)[2]


def test_runs_at_the_limit_give_a_lower_bound() -> None:
    def unsolved(final: dict[str, Any], seed: int) -> None:
        final.update(step=400 if seed < 3 else 300, stopped_early=seed >= 3)

    changes: dict[str, Any] = {arm_name(COPY_LSH, WRONG): unsolved}
    found = results(**changes)
    (wrong,) = (one for one in findings(found, STEPS) if one.fault == WRONG)
    assert wrong.unsolved == 3
    assert "wrong buckets backward (360 steps, at least +160 [+92, +228], 3 of 5 at the limit)" in answers(found)[3]
    assert ("steps to solve", WRONG, 360, "at least +160 [+92, +228], 3 of 5 at the limit") in {
        row[:4] for row in findings_table(found).rows}


def test_smoke_decides_nothing() -> None:
    found = results("smoke", **{arm_name(COPY_FULL, RAW): scored("LSH-8", 0.02)})
    assert {one.finding for symptom in SYMPTOMS for one in findings(found, symptom)} == {"inconclusive"}


def test_missing_runs() -> None:
    def without(missing: str) -> ExperimentResults:
        return invent(autopsy.EXPERIMENT, "small", lambda arm: None if arm.name == missing else events(arm))

    with pytest.raises(MissingResult):
        findings(without(arm_name(COPY_FULL, NONE)), ROW)
    assert len(answers(without(arm_name(COPY_FULL, NONE)))) == len(SYMPTOMS) - 1
    assert RAW not in {one.fault for one in findings(without(arm_name(COPY_LSH, RAW)), COLUMN)}
    unknown = invent(autopsy.EXPERIMENT, "small", lambda arm: None if arm.name == arm_name(TEXT, CONTROL) else events(
        arm, **{arm_name(TEXT, FLAT): scored("own", 3.001, 0.001, key="bits")}))
    assert {one.fault: one.finding for one in findings(unknown, BITS)}[FLAT] == "inconclusive"


def test_the_section_shows_every_arm() -> None:
    section = autopsy.show(results())
    findings_rows, accuracies, text = section.tables
    assert len(findings_rows.rows) == 7 + 8 + 6 + 7
    assert accuracies.rows[0] == (arm_name(COPY_FULL, NONE), 99.2, 99.2, 99.2, 99.2, 99.2, 200, "5 of 5")
    assert [row[0] for row in text.rows] == [NONE, *autopsy.CONCERNED[TEXT], "all", CONTROL]
    assert text.rows[0][1:] == (pytest.approx(3.001), pytest.approx(2.9985, abs=1e-3), pytest.approx(3.0035, abs=1e-3), 3.1, 3)
    assert [len(figure.series) for figure in section.figures] == [5 + 2, 9]
