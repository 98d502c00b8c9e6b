"""Declarations: identities, verdicts, results of arms."""

import pytest

from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import (
    SCALE_NOTES,
    SCALES,
    Arm,
    Experiment,
    ExperimentResults,
    MeasurementConfig,
    Verdict,
    check_scale,
)
from reformer_lab.experiments.claims import C4, C5, CLAIMS
from reformer_lab.reporting.records import MissingResult, Record
from reformer_lab.reporting.section import Section


def measurement(seed: int = 0, **parameters: object) -> MeasurementConfig:
    return MeasurementConfig(kind="speed", parameters=parameters, seed=seed)


def arm(name: str, seed: int = 0) -> Arm:
    return Arm(name=name, run=measurement(seed, name=name))


def record(an_arm: Arm, status: str = "finished", **final: object) -> Record:
    return Record({"arm": an_arm.id, "seed": an_arm.seed, "status": status, "error": "broke"}, [{"event": "final", **final}])


def results(arms: list[Arm], *records: Record) -> ExperimentResults:
    return ExperimentResults(scale="quick", arms=tuple(one.entry() for one in arms), records={one.arm: one for one in records})


def test_claims_are_thirteen_with_every_field() -> None:
    assert [claim.id for claim in CLAIMS] == [f"C{i}" for i in range(1, 14)]
    for claim in CLAIMS:
        assert claim.statement.endswith(".")
        assert claim.source
        assert claim.paper
        assert claim.reproduction_2021


def test_scales_have_notes_and_unknown_ones_are_refused() -> None:
    assert tuple(SCALE_NOTES) == SCALES
    assert check_scale("gpu") == "gpu"
    with pytest.raises(UserError, match=r"'huge' does not exist; choose one of smoke, quick"):
        check_scale("huge")


def test_digests_depend_on_every_value_and_on_nothing_else() -> None:
    assert measurement(a=1, b=2).digest() == measurement(b=2, a=1).digest()
    others = [measurement(), measurement(a=1), measurement(a=2), measurement(a="1"), measurement(1, a=1)]
    others.append(MeasurementConfig(kind="memory", parameters={"a": 1}))
    assert len({one.digest() for one in others}) == len(others)
    config = measurement(3, lengths=[1, 2])
    assert MeasurementConfig.from_dict(config.to_dict()) == config


def test_an_arms_identity_is_its_runs_not_its_labels() -> None:
    assert Arm(name="LSH-4", run=measurement(a=1)).id == Arm(name="four rounds", run=measurement(a=1)).id
    assert arm("x").id != arm("x", seed=1).id
    assert arm("x", seed=7).id == f"speed-seed7-{arm('x', seed=7).run.digest()}"
    assert arm("x").kind == "measurement"


def test_a_training_arm_names_data_and_attention() -> None:
    from reformer_lab.data.config import DuplicationConfig
    from reformer_lab.models.config import ReformerConfig
    from reformer_lab.training.config import RunConfig

    model = ReformerConfig(vocab_size=128, attention=("local", "lsh", "lsh"), num_hashes=2, max_length=64)
    run = RunConfig(model=model, data=DuplicationConfig(length=64), steps=10, batch_size=2, seed=5)
    trained = Arm(name="LSH-2", run=run)
    assert trained.kind == "training"
    assert trained.id == f"duplication-local-lsh2-seed5-{run.digest()}"


def test_indicative_verdicts_have_fewer_than_three_seeds() -> None:
    def verdict(n: int, outcome: str = "supported") -> Verdict:
        return Verdict(claim="C5", experiment="x", outcome=outcome, summary="", scale="quick", n=n)  # type: ignore[arg-type]

    assert [verdict(n).indicative for n in (1, 2, 3)] == [True, True, False]
    assert not verdict(0, "not run").indicative
    with pytest.raises(AssertionError):
        verdict(3, "proved")


def test_results_keep_finished_missing_and_failed_apart() -> None:
    arms = [arm("a"), arm("a", 1), arm("a", 2), arm("b")]
    found = results(arms, record(arms[0], loss=1.0), record(arms[1], "failed"), record(arms[3], loss=2))
    assert found.names == ("a", "b")
    assert [one.arm for one in found.of("a")] == [arms[0].id]
    assert [one.arm for one in found.failed] == [arms[1].id]
    assert [one.id for one in found.missing] == [arms[2].id]
    assert found.values("b", "loss") == [2.0]


def test_asking_for_what_is_missing_raises_missing_result() -> None:
    found = results([arm("a")], record(arm("a"), loss="high"))
    for name, path, message in (("b", "loss", "no finished run of b"), ("a", "bits", "no bits"), ("a", "loss", "no number")):
        with pytest.raises(MissingResult, match=message):
            found.values(name, path)


def experiment(judge, arms=lambda scale: (arm("a"),)) -> Experiment:  # type: ignore[no-untyped-def]
    return Experiment(
        name="x", title="X", question="?", claims=(C4, C5), criterion="none", arms=arms, judge=judge,
        show=lambda results: Section(), cuts=lambda scale: "all",
    )  # fmt: skip


def test_every_claim_of_an_experiment_gets_a_verdict() -> None:
    supported = Verdict(claim="C5", experiment="x", outcome="supported", summary="yes", scale="quick", n=3)
    judged = experiment(lambda results: (supported,)).verdicts(results([arm("a")], record(arm("a"))))
    assert [(one.claim, one.outcome) for one in judged] == [("C5", "supported"), ("C4", "not run")]


def test_missing_results_become_not_run_with_the_reason() -> None:
    def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
        results.require("b")
        return ()

    arms = [arm("a"), arm("b"), arm("c")]
    judged = experiment(judge).verdicts(results(arms, record(arms[0]), record(arms[1], "failed")))
    assert {one.outcome for one in judged} == {"not run"}
    assert judged[0].summary == "no finished run of b; 1 of 3 runs missing, 1 of 3 runs failed"


def test_a_judge_is_not_asked_without_any_finished_run() -> None:
    def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
        raise AssertionError

    assert experiment(judge).verdicts(results([arm("a")]))[0].summary == "1 of 1 runs missing"


def test_an_experiment_outside_the_suite_says_so() -> None:
    assert "no part of this suite" in experiment(lambda results: ()).verdicts(results([]))[0].summary
    elsewhere = experiment(lambda results: (), arms=lambda scale: ())
    assert elsewhere.verdicts(results([]))[0].summary == "no runs at the scale quick"


@pytest.mark.parametrize(("outcome", "expected"), [("supported", "inconclusive"), ("contradicted", "contradicted")])
@pytest.mark.parametrize("lost", ["failed", "missing"])
def test_a_claim_is_not_supported_while_seeds_of_an_arm_are_lost(outcome: str, expected: str, lost: str) -> None:
    arms = [arm("a", seed) for seed in range(3)]
    records = [record(arms[0]), record(arms[1]), *([record(arms[2], "failed")] if lost == "failed" else [])]
    verdict = Verdict(claim="C4", experiment="x", outcome=outcome, summary="so", scale="quick", n=2)
    judged = experiment(lambda results: (verdict,)).verdicts(results(arms, *records))
    assert judged[0].outcome == expected
    assert judged[0].summary == "so; seeds failed or missing: a"
    whole = experiment(lambda results: (verdict,)).verdicts(results(arms, *(record(one) for one in arms)))
    assert whole[0] == verdict
