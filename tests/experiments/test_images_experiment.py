"""The experiment on images: arms that agree with their data, and claims judged as on text, each by its own arms."""

from dataclasses import replace
from itertools import pairwise
from statistics import mean
from typing import Any

import pytest
from invented import Events, invent, trained

from reformer_lab.data.config import ByteCorpusConfig, ImagesConfig
from reformer_lab.experiments import hash_rounds, images, ladder, reversible, shared_qk
from reformer_lab.experiments.claim import SCALES, Arm, Experiment, Scale, Verdict
from reformer_lab.experiments.registry import MINUTES
from reformer_lab.training.config import RunConfig
from reformer_lab.training.run_folder import differences

WITH_RUNS: tuple[Scale, ...] = tuple(scale for scale in SCALES if images.arms(scale))


SPACED = ("eval_every", "checkpoint_every", "log_every")
"""Fields that follow from the number of steps."""


def runs(scale: Scale) -> dict[str, RunConfig]:
    found: dict[str, RunConfig] = {}
    for arm in images.arms(scale):
        assert isinstance(arm.run, RunConfig)
        found.setdefault(arm.name, arm.run)
    return found


def test_quick_alone_has_no_runs() -> None:
    assert set(SCALES) - set(WITH_RUNS) == {"quick"}
    assert set(MINUTES["images"]) == set(WITH_RUNS)
    assert "no runs" in images.EXPERIMENT.cuts("quick")
    verdicts = images.EXPERIMENT.verdicts(invent(images.EXPERIMENT, "quick", lambda arm: None))
    assert {(verdict.outcome, verdict.summary) for verdict in verdicts} == {("not run", "no runs at the scale quick")}


@pytest.mark.parametrize("scale", WITH_RUNS)
def test_models_agree_with_their_rasters(scale: Scale) -> None:
    for run in runs(scale).values():
        assert isinstance(run.data, ImagesConfig)
        assert run.model.max_length == run.data.length
        assert run.model.axial_shape == (run.data.side, run.data.side, run.data.channels)
        assert run.model.vocab_size == run.data.vocab_size
        assert run.data.length % run.model.chunk_length == 0
        assert run.model.dropout == 0


@pytest.mark.parametrize("scale", SCALES)
def test_lengths_on_text_are_those_of_the_data(scale: Scale) -> None:
    """The report says the model's longest sequence where it means the data's."""
    setting = ladder.SETTINGS[scale]
    assert isinstance(setting.data, ByteCorpusConfig)
    assert setting.data.length == setting.model.max_length


@pytest.mark.parametrize("scale", WITH_RUNS)
def test_arms_differ_in_the_one_thing(scale: Scale) -> None:
    found = runs(scale)
    rounds = [ladder.lsh_name(number) for number in images.SETTINGS[scale].rounds]
    longer = [images.LONGER_REGULAR, images.LONGER_SHARED] if scale in images.LONGER else []
    assert list(found) == [images.REGULAR, images.SHARED_NAME, images.REVERSIBLE_NAME, images.FULL_NAME, *rounds,
                           images.LOCAL_NAME, *longer]
    steps: list[tuple[str, str, set[str]]] = [
        (images.REGULAR, images.SHARED_NAME, {"model.shared_qk"}),
        (images.REGULAR, images.REVERSIBLE_NAME, {"model.residual_streams", "model.reversible"}),
        (images.REVERSIBLE_NAME, images.FULL_NAME, {"model.shared_qk"}),
        (images.FULL_NAME, images.LOCAL_NAME, {"model.attention"}),
        *((one, other, {"model.num_hashes"}) for one, other in pairwise(rounds)),
    ]
    if longer:
        steps += [(images.REGULAR, longer[0], {"steps", *SPACED}), (longer[0], longer[1], {"model.shared_qk"})]
    for one, other, fields in steps:
        lines = differences(found[one].to_dict(), found[other].to_dict(), limit=100)
        assert {line.split(" is ")[0] for line in lines} == fields
    assert found[images.FULL_NAME].model.replace(attention=("lsh",), num_hashes=found[rounds[0]].model.num_hashes) == (
        found[rounds[0]].model)


def test_the_papers_numbers() -> None:
    run = runs("paper")["LSH-8"]
    assert (run.data.length, run.steps, run.batch_size, run.optimizer.name) == (12_288, 500_000, 8, "adafactor")
    assert (run.model.num_layers, run.model.d_model, run.model.num_buckets) == (3, 1024, (16, 12))
    assert list(images.SETTINGS["paper"].rounds) == [2, 4, 8, 16]
    half = runs("gpu")["LSH-8"]
    assert (half.model.d_model, half.model.max_length, half.precision) == (512, 12_288, "bf16")


def by_claim(events: Any, scale: Scale = "small") -> dict[str, Verdict]:
    return {verdict.claim: verdict for verdict in images.EXPERIMENT.verdicts(invent(images.EXPERIMENT, scale, events))}


def events_of(changes: dict[str, tuple[float, ...]], raised: float = -0.05) -> Any:
    """Runs near 5 bits: `changes` by seed, those of LSH far above full attention with few rounds."""
    base = {"LSH-1": 0.3, "LSH-2": 0.2, "LSH-4": 0.1, "LSH-8": 0.02}

    def events(arm: Arm) -> Events:
        own = 5.0 + arm.seed + base.get(arm.name, 0.0) + changes.get(arm.name, (0.0, 0.0, 0.0))[arm.seed % 3]
        return trained(own, {f"LSH-{2**i}": own + raised * i for i in range(4)})
    return events


SEEDS = {"C4": 3, "C5": 8, "C6": 3}
HARMS = [((0.0, 0.01, 0.02), "supported"), ((0.08, 0.1, 0.09), "contradicted"), ((0.0, 0.05, 0.1), "inconclusive")]


@pytest.mark.parametrize(("harm", "outcome"), HARMS)
@pytest.mark.parametrize(("claim", "arm"), [("C4", images.SHARED_NAME), ("C5", images.REVERSIBLE_NAME), ("C6", "LSH-8")])
def test_each_claim_is_judged_by_its_own_arms(claim: str, arm: str, harm: tuple[float, ...], outcome: str) -> None:
    found = by_claim(events_of({arm: tuple(value - (0.02 if arm == "LSH-8" else 0) for value in harm)}))
    assert found[claim].outcome == outcome
    assert found[claim].value == pytest.approx(mean(harm[seed % 3] for seed in range(SEEDS[claim])))
    assert {verdict.outcome for verdict in found.values() if verdict.claim != claim} == {"supported"}
    for verdict in found.values():
        assert (verdict.experiment, verdict.n) == ("images", SEEDS[verdict.claim])
        assert verdict.unit.startswith("bits per dimension above ")
        assert verdict.unit.endswith(" after 1,000 steps") == (verdict.claim != "C6")
        assert verdict.summary.startswith("on images: ")
        assert "bits per dimension" in verdict.summary


@pytest.mark.parametrize(("raised", "outcome"), [(0.05, "contradicted"), (0.0, "inconclusive")])
def test_more_rounds_at_evaluation_alone_decide_too(raised: float, outcome: str) -> None:
    assert by_claim(events_of({}, raised))["C6"].outcome == outcome


@pytest.mark.parametrize(("lost", "claims"), [
    (images.SHARED_NAME, {"C4"}), (images.REVERSIBLE_NAME, {"C5"}), (images.FULL_NAME, {"C6"}), ("LSH-2", {"C6"}),
    (images.REGULAR, {"C4", "C5"}),
])
def test_a_claim_without_its_arms_is_not_run_and_says_why(lost: str, claims: set[str]) -> None:
    events = events_of({})
    found = by_claim(lambda arm: None if arm.name == lost else events(arm))
    assert {claim for claim, verdict in found.items() if verdict.outcome == "not run"} == claims
    assert all(found[claim].summary == f"no finished run of {lost}" for claim in claims)


def test_text_and_images_are_judged_alike() -> None:
    """One function each: the same invented runs get the same value and outcome."""
    seeds = images.SETTINGS["small"].seeds
    names = {shared_qk.SEPARATE_NAME: images.REGULAR}
    events = events_of({images.SHARED_NAME: (0.01, 0.06, 0.02), images.REVERSIBLE_NAME: (0.2, 0.1, 0.3)})

    def of_these_seeds(experiment: Experiment) -> Experiment:
        return replace(experiment, arms=lambda scale: tuple(arm for arm in experiment.arms(scale) if arm.seed in seeds))

    def on_text(arm: Arm) -> Events:
        if arm.name == hash_rounds.LOCAL_NAME:
            return trained(9.0)
        return events(Arm(name=names.get(arm.name, arm.name), run=arm.run))

    on_images = of_these_seeds(images.EXPERIMENT)
    found = {verdict.claim: verdict for verdict in on_images.verdicts(invent(on_images, "small", events))}
    for module in (shared_qk, reversible, hash_rounds):
        experiment = of_these_seeds(module.EXPERIMENT)
        (verdict,) = experiment.verdicts(invent(experiment, "small", on_text))
        ours = found[verdict.claim]
        assert (verdict.outcome, verdict.value, verdict.low, verdict.n) == (ours.outcome, ours.value, ours.low, ours.n)
        words = ours.summary.removeprefix("on images: ").replace("bits per dimension", "bits per byte")
        words = words.partition(f"; {hash_rounds.LOCAL_NAME}, a control")[0]
        assert verdict.summary.partition("; without these layers")[0] == words


def test_c4_after_more_steps_is_told_and_not_judged() -> None:
    events = events_of({images.LONGER_SHARED: (0.3, 0.31, 0.32)})
    assert by_claim(events)["C4"].outcome == "supported"
    section = images.EXPERIMENT.show(invent(images.EXPERIMENT, "small", events))
    assert "after 2 times the steps, with a schedule made for them: shared QK +0.310 [+0.285, +0.335] bits" in section.text[-1]
    without = images.EXPERIMENT.show(invent(images.EXPERIMENT, "small",
                                            lambda arm: None if arm.name == images.LONGER_SHARED else events(arm)))
    assert not any("C4 once more" in text for text in without.text)


def test_seeds_added_after_a_first_look_are_told_alone() -> None:
    """0.01 more bits in the seeds 3 and 6 (by their remainder), 0.02 in 4 and 7, 0.03 in 5: a mean of 0.018."""
    events = events_of({images.REVERSIBLE_NAME: (0.01, 0.02, 0.03)})
    verdicts = by_claim(events)
    assert {claim: verdict.looks for claim, verdict in verdicts.items()} == {"C4": 1, "C5": 2, "C6": 1}
    assert verdicts["C5"].label == "supported (n = 8 seeds, 2 looks)"
    section = images.EXPERIMENT.show(invent(images.EXPERIMENT, "small", events))
    assert any("C5 by the seeds alone that were added after a first look: +0.018" in text and "(5 seeds)" in text
               for text in section.text)


def test_the_page_is_in_bits_per_dimension() -> None:
    section = images.EXPERIMENT.show(invent(images.EXPERIMENT, "small", events_of({})))
    assert section.text[0].startswith("Images of 16 x 16 pixels")
    assert "length 768" in section.text[0]
    assert all("bits per dimension" in figure.y_label for figure in section.figures)
    assert len({figure.title for figure in section.figures}) == len(section.figures) == 3
    assert section.tables[0].header[1] == "bits per dimension"
    assert "on 128 sequences spread evenly over the validation split" in section.tables[0].caption
    assert [row[0] for row in section.tables[0].rows] == list(runs("small"))
    assert "Bits per dimension" in section.tables[1].caption


@pytest.mark.parametrize(("local", "words"), [
    ((-0.5, -0.51, -0.49), "−0.500 [−0.525, −0.475] bits per dimension against the arm \"reversible\", which sees the whole "
     "image so. A model this young"),
    ((0.5, 0.51, 0.49), "+0.500 [+0.475, +0.525] bits per dimension against the arm \"reversible\", which sees the whole "
     "image so. Seeing far is worth that much"),
    ((-0.5, 0.5, 0.0), "which sees the whole image so."),
])  # fmt: skip
def test_the_control_is_told_and_judges_nothing(local: tuple[float, ...], words: str) -> None:
    events = events_of({images.LOCAL_NAME: local})
    (control,) = (text for text in images.EXPERIMENT.show(invent(images.EXPERIMENT, "small", events)).text if "control" in text)
    assert words in control
    assert control.endswith("whole image so.") == (local[2] == 0.0)
    assert {verdict.outcome for verdict in by_claim(events).values()} == {"supported"}


def test_what_the_arms_bundle_is_told() -> None:
    events = events_of({"LSH-8": (0.38, 0.39, 0.37)})  # 0.02 more by `events_of`
    text = images.EXPERIMENT.show(invent(images.EXPERIMENT, "small", events)).text[1]
    assert "against the regular Transformer it has +0.400 [+0.375, +0.425] bits per dimension." in text
    assert "The reversible model has 0.0 % more parameters" in text  # invented: all have 1,000
