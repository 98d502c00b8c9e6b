"""Judges on invented results: each outcome can come out, for the reason that it should."""

from typing import Any

import pytest
from invented import Events, invent, memory_events, rounds_events, speed_events, table_events, trained

from reformer_lab.experiments import depth, hash_rounds, images, memory, reversible, shared_qk, speed, table2
from reformer_lab.experiments.claim import Arm, Scale, Verdict
from reformer_lab.experiments.claims import C13
from reformer_lab.experiments.judging import above, below, falls, learning_curve, paired_difference, seeds_of, together
from reformer_lab.experiments.ladder import SETTINGS
from reformer_lab.experiments.registry import EXPERIMENTS
from reformer_lab.reporting.records import MissingResult, Record
from reformer_lab.reporting.statistics import Estimate


def by_claim(verdicts: tuple[Verdict, ...]) -> dict[str, Verdict]:
    return {verdict.claim: verdict for verdict in verdicts}


def test_below_and_above_use_the_whole_interval() -> None:
    wide, narrow, point = Estimate(value=0, low=-1, high=1), Estimate(value=0, low=-0.1, high=0.1), Estimate(value=0)
    assert (below(wide, 0.5), below(narrow, 0.5), below(narrow, -0.5), below(point, 0.5)) == (None, True, False, True)
    assert (above(wide, 0.5), above(narrow, -0.5), above(narrow, 0.5)) == (None, True, False)


def test_falls_by_more_than_the_slack_or_in_doubt() -> None:
    values = [(-0.03, -0.02), (-0.03, -0.005), (-0.005, 0.005), (0.005, 0.03), (0.02, 0.03)]
    changes = [Estimate(value=(low + high) / 2, low=low, high=high) for low, high in values]
    assert [falls(change, 0.01) for change in changes] == [True, None, None, None, False]
    assert [falls(Estimate(value=value), 0.01) for value in (-0.02, -0.005, 0.005, 0.02)] == [True, None, None, False]


def test_a_run_that_ended_early_keeps_its_last_value_in_the_mean_curve() -> None:
    def run(*values: float) -> Record:
        return Record({"status": "finished"}, [{"event": "eval", "step": 10 * (i + 1), "bits": value}
                                               for i, value in enumerate(values)])

    curve = learning_curve("x", [run(4.0, 2.0), run(6.0, 4.0, 1.0)])
    assert curve is not None
    assert (curve.x, curve.y, curve.low, curve.high) == ([10, 20, 30], [5.0, 3.0, 1.5], [4.0, 2.0, 1.0], [6.0, 4.0, 2.0])
    assert learning_curve("x", [run(4.0), run()]) is None


def test_together() -> None:
    assert together(True, True) is True
    assert together(True, None) is None
    assert together(None, False, True) is False


def test_seeds_are_counted_by_arm() -> None:
    found = invent(images.EXPERIMENT, "small", lambda arm: trained(1.0))
    assert seeds_of(found) == "3 to 8 seeds"
    assert seeds_of(found, ("LSH-1", images.FULL_NAME)) == "3 seeds"
    assert seeds_of(invent(images.EXPERIMENT, "smoke", lambda arm: None)) == "1 seed"


def test_paired_difference_pairs_by_seed() -> None:
    def events(arm: Arm) -> Events:
        return trained(1.0 + 4.0 * arm.seed + (0.01 if arm.name == shared_qk.SHARED_NAME else 0))

    results = invent(shared_qk.EXPERIMENT, "small", events)
    found = paired_difference(results, shared_qk.SHARED_NAME, shared_qk.SEPARATE_NAME)
    assert found.n == len(SETTINGS["small"].paired_seeds) == 5
    assert found.value == pytest.approx(0.01)
    assert found.low == pytest.approx(0.01)  # the seeds' own spread has gone
    assert found.high == pytest.approx(0.01)


def test_paired_difference_needs_a_common_seed() -> None:
    wanted = {shared_qk.SHARED_NAME: 0, shared_qk.SEPARATE_NAME: 1}
    results = invent(shared_qk.EXPERIMENT, "small", lambda arm: trained(1.0) if wanted[arm.name] == arm.seed else None)
    with pytest.raises(MissingResult, match="no finished seed in common"):
        paired_difference(results, shared_qk.SHARED_NAME, shared_qk.SEPARATE_NAME)


@pytest.mark.parametrize(("harm", "outcome"), [
    ((0.0, 0.01, 0.02), "supported"), ((0.08, 0.1, 0.09), "contradicted"), ((0.0, 0.05, 0.1), "inconclusive"),
])
def test_shared_qk_and_reversible(harm: tuple[float, ...], outcome: str) -> None:
    for module, baseline in ((shared_qk, shared_qk.SEPARATE_NAME), (reversible, reversible.REGULAR)):
        results = invent(module.EXPERIMENT, "small",
                         lambda arm, baseline=baseline: trained(2.0 + (0 if arm.name == baseline else harm[arm.seed % 3])))
        (verdict,) = module.EXPERIMENT.verdicts(results)
        assert verdict.outcome == outcome
        assert verdict.n == len(SETTINGS["small"].paired_seeds)
        assert not verdict.indicative


def test_one_seed_is_indicative_and_smoke_decides_nothing() -> None:
    for scale, outcome in (("quick", "supported"), ("smoke", "inconclusive")):
        (verdict,) = shared_qk.EXPERIMENT.verdicts(invent(shared_qk.EXPERIMENT, scale, lambda arm: trained(2.0)))
        assert verdict.outcome == outcome
        assert verdict.indicative


@pytest.mark.parametrize(("best", "raised", "outcome"), [
    (2.02, -0.1, "supported"),      # close to full attention, better than one round, better with more at evaluation
    (2.2, -0.1, "contradicted"),    # far from full attention
    (2.02, 0.004, "inconclusive"),  # more rounds at evaluation: no gain, within the slack
    (2.02, -0.004, "inconclusive"),  # a gain that is none
    (2.02, 0.1, "contradicted"),    # more rounds at evaluation hurt
])
def test_hash_rounds(best: float, raised: float, outcome: str) -> None:
    bits = {hash_rounds.FULL_NAME: 2.0, "LSH-1": 2.3, "LSH-2": 2.2, "LSH-4": 2.1, "LSH-8": best, hash_rounds.LOCAL_NAME: 2.4}
    results = invent(hash_rounds.EXPERIMENT, "small", rounds_events(bits, raised))
    assert hash_rounds.EXPERIMENT.verdicts(results)[0].outcome == outcome


def test_equal_arms_say_nothing_where_local_layers_do_as_well() -> None:
    bits = {hash_rounds.FULL_NAME: 2.0, "LSH-1": 2.03, "LSH-2": 2.02, "LSH-4": 2.01, "LSH-8": 2.0, hash_rounds.LOCAL_NAME: 2.0}
    (verdict,) = hash_rounds.EXPERIMENT.verdicts(invent(hash_rounds.EXPERIMENT, "small", rounds_events(bits, -0.1)))
    assert verdict.outcome == "inconclusive"
    assert "without these layers +0.000" in verdict.summary


def test_hash_rounds_in_doubt_are_no_gain() -> None:
    """The seeds differ in sign: the mean is a gain, the interval is not."""
    gains = (-0.3, 0.05, 0.05)

    def events(arm: Arm) -> Events:
        own = 2.0 + (0.02 + gains[arm.seed] if arm.name == "LSH-8" else 0.02)
        return trained(own, {f"LSH-{rounds}": own - 0.1 * number for number, rounds in enumerate((1, 2, 4, 8))})

    (verdict,) = hash_rounds.EXPERIMENT.verdicts(invent(hash_rounds.EXPERIMENT, "small", events))
    assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize(("eight", "sixteen", "outcome"), [(2.02, 2.1, "supported"), (2.2, 2.0, "contradicted")])
@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_the_claim_is_about_eight_rounds_where_there_are_more(
        scale: Scale, eight: float, sixteen: float, outcome: str) -> None:
    bits = {hash_rounds.FULL_NAME: 2.0, "LSH-2": 2.3, "LSH-4": 2.25, "LSH-8": eight, "LSH-16": sixteen}
    (verdict,) = hash_rounds.EXPERIMENT.verdicts(invent(hash_rounds.EXPERIMENT, scale, rounds_events(bits, -0.1)))
    assert verdict.outcome == outcome
    assert verdict.value == pytest.approx(eight - 2.0)


@pytest.mark.parametrize(("change", "outcome"), [(-0.1, "supported"), (0.1, "contradicted"), (0.0, "inconclusive")])
def test_depth(change: float, outcome: str) -> None:
    steps = {"2 layers": 0.0, "4 layers": 1.0, "8 layers": 2.0}
    results = invent(depth.EXPERIMENT, "small", lambda arm: trained(2.0 + change * steps[arm.name]))
    (verdict,) = depth.EXPERIMENT.verdicts(results)
    assert verdict.outcome == outcome
    assert verdict.value == pytest.approx(change, abs=1e-3)
    assert "only \"deeper is better\" is judged, 2 to 8 layers, not on enwik8" in verdict.summary


@pytest.mark.parametrize(("changes", "outcome"), [
    ({}, "supported"),
    ({("LSH-2", "LSH-2"): 0.97, ("LSH-2", "LSH-1"): 0.9}, "inconclusive"),  # below 99 % in its own setting
    ({("LSH-1", "LSH-1"): 0.92}, "inconclusive"),
    ({("LSH-1", "full"): 0.92}, "inconclusive"),                            # its own is well, under full it is not
    ({("LSH-1", "LSH-1"): 0.79}, "contradicted"),
    ({("full", "LSH-8"): 0.94, ("full", "LSH-4"): 0.94, ("full", "LSH-2"): 0.93}, "inconclusive"),
    ({("LSH-4", "LSH-8"): 0.99}, "inconclusive"),                           # falls by 0.9 points with more rounds
    ({("LSH-4", "LSH-8"): 0.96}, "contradicted"),                           # falls by 3.9 points
    ({("LSH-4", "full"): 0.01}, "contradicted"),                            # attends to itself: not solved under full
])
def test_table2(changes: dict[tuple[str, str], float], outcome: str) -> None:
    results = invent(table2.EXPERIMENT, "quick", table_events(changes))
    assert table2.EXPERIMENT.verdicts(results)[0].outcome == outcome


@pytest.mark.parametrize(("per_seed", "outcome"), [
    ((0.95, 0.95, 0.95), "supported"),
    ((0.95, 0.83, 0.95), "inconclusive"),   # one seed misses 84 %
    ((0.95, 0.71, 0.95), "inconclusive"),   # one seed fails
    ((0.71, 0.71, 0.83), "inconclusive"),   # two of three fail
    ((0.71, 0.6, 0.7), "contradicted"),
])
def test_the_worst_seed_of_table2_decides(per_seed: tuple[float, ...], outcome: str) -> None:
    results = invent(table2.EXPERIMENT, "small", lambda arm: table_events({("LSH-1", "LSH-1"): per_seed[arm.seed]})(arm))
    (verdict,) = table2.EXPERIMENT.verdicts(results)
    assert (verdict.outcome, verdict.n) == (outcome, 3)
    assert f"LSH-1 {100 * min(per_seed):.1f}" in verdict.summary
    assert "lowest of 3 seeds" in verdict.summary


def test_the_number_of_table2_is_the_lowest_over_rows_and_seeds() -> None:
    lowest = {0: 0.999, 1: 0.992, 2: 0.996}
    results = invent(table2.EXPERIMENT, "small", lambda arm: table_events({("LSH-2", "LSH-2"): lowest[arm.seed]})(arm))
    (verdict,) = table2.EXPERIMENT.verdicts(results)
    assert (verdict.outcome, verdict.value, verdict.low) == ("supported", pytest.approx(99.2), None)
    table = next(table for table in table2.EXPERIMENT.show(results).tables if table.title.startswith("Lowest"))
    assert table.rows[2][table.header.index("LSH-2")] == 99.2
    one = table2.EXPERIMENT.show(invent(table2.EXPERIMENT, "quick", table_events({})))
    assert not any(table.title.startswith("Lowest") for table in one.tables)


@pytest.mark.parametrize(("cells", "outcome"), [
    ((1.0, 1.0, 1.0, 0.996), "supported"),        # LSH-1, solved by one round: nothing to rise
    ((0.998, 0.998, 0.998, 0.998), "supported"),
    ((0.96, 0.961, 0.962, 0.963), "inconclusive"),  # no step falls by 0.5 points, but the trend does not rise
])
def test_accuracy_must_rise_with_the_rounds(cells: tuple[float, ...], outcome: str) -> None:
    row = dict(zip((("LSH-1", f"LSH-{rounds}") for rounds in (8, 4, 2, 1)), cells, strict=True))
    (verdict,) = table2.EXPERIMENT.verdicts(invent(table2.EXPERIMENT, "quick", table_events(row)))
    assert verdict.outcome == outcome
    assert ("does not rise" in verdict.summary) == (outcome != "supported")


def test_the_papers_own_table_supports_its_claim_at_its_length() -> None:
    def events(changes: dict[str, float]) -> Any:
        def of(arm: Arm) -> Events:
            cells = {name: value / 100 for name, value in table2.PAPER[arm.name].items()}
            if arm.name == "LSH-1":
                cells |= changes
            scores = {name: {"accuracy": value} for name, value in {**cells, "full": 1.0}.items()}  # convention b
            return [{"event": "final", "step": 150_000, "evaluations": scores}]
        return of

    for scale in ("gpu", "paper"):
        for changes, outcome in (({}, "supported"), ({"LSH-1": 0.7}, "inconclusive"), ({"LSH-1": 0.64}, "contradicted")):
            (verdict,) = table2.EXPERIMENT.verdicts(invent(table2.EXPERIMENT, scale, events(changes)))
            assert verdict.outcome == outcome
    short = invent(table2.EXPERIMENT, "quick", events({}))
    assert table2.EXPERIMENT.verdicts(short)[0].outcome == "contradicted"  # 77.9 % are too few at length 64


def test_the_tables_text_is_about_the_runs_that_were_made() -> None:
    results = invent(table2.EXPERIMENT, "quick", table_events({}))
    for record in results.records.values():
        record.header["config"]["steps"] = 77  # type: ignore[index]
    section = table2.EXPERIMENT.show(results)
    assert "Length 64," in section.text[0]
    assert "at most 77 steps" in section.text[0]
    full, other = section.tables[1].rows[0], section.tables[1].rows[1]
    assert (full[1:3], other[1:3]) == ((100, None), (None, 0.8))


@pytest.mark.parametrize(("full", "lsh", "c8", "c1"), [
    (0.8, 0.02, "supported", "supported"),
    (0.8, 0.5, "contradicted", "contradicted"),  # LSH slows down too
    (0.1, 0.02, "contradicted", "contradicted"),  # full attention is flat as well, and faster
    (0.345, 0.02, "supported", "inconclusive"),   # as fast as each other, within their spread
])
def test_speed(full: float, lsh: float, c8: str, c1: str) -> None:
    results = invent(speed.EXPERIMENT, "quick", speed_events({"full": full, "lsh": lsh}))
    verdicts = by_claim(speed.EXPERIMENT.verdicts(results))
    assert (verdicts["C8"].outcome, verdicts["C1"].outcome) == (c8, c1)
    assert verdicts["C1"].value == pytest.approx(1 + lsh)
    assert verdicts["C8"].n == 3


def test_speed_leaves_out_what_ran_out_of_memory() -> None:
    whole = speed_events({"full": 0.8, "lsh": 0.0})

    def events(arm: Arm) -> Events:
        found = whole(arm)
        (index,) = (index for index, event in enumerate(found)
                    if event["model"]["attention"] == ["full"] and event["length"] == max(speed.SETTINGS["quick"].lengths))
        found[index] = {**found[index], "status": "out of memory", "seconds": []}
        return found

    results = invent(speed.EXPERIMENT, "quick", events)
    assert by_claim(speed.EXPERIMENT.verdicts(results))["C8"].outcome == "supported"
    assert "out of memory" in speed.EXPERIMENT.show(results).tables[0].rows[0]
    assert by_claim(speed.EXPERIMENT.verdicts(results))["C1"].summary.count("at 4,096 tokens LSH-1") == 1


def test_ratio_of_medians_of_rounds() -> None:
    found = speed.ratio_of_medians([(2.0, 1.0), (2.1, 1.1), (1.9, 0.9), (9.0, 1.0), (2.0, 1.0)])
    assert found.value == pytest.approx(2.0)
    assert found.low is not None
    assert found.high is not None
    assert 1.5 < found.low < 2.0 < found.high <= 9.0
    assert found.n == 5
    assert speed.ratio_of_medians([(3.0, 1.0)]) == Estimate(value=3.0)


def test_a_slow_round_of_the_machine_leaves_the_ratio_alone() -> None:
    found = speed.ratio_of_medians([(2.0 * slow, slow) for slow in (1.0, 1.0, 4.0, 5.0, 6.0)])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize(("layer", "outcome"), [(0.1e6, "supported"), (5e6, "contradicted"), (1.5e6, "inconclusive")])
def test_memory_against_depth(layer: float, outcome: str) -> None:
    verdicts = by_claim(memory.EXPERIMENT.verdicts(invent(memory.EXPERIMENT, "quick", memory_events(layer))))
    assert verdicts["C2"].outcome == outcome
    assert verdicts["C2"].value == pytest.approx(layer / 20e6 * 100)
    assert verdicts["C2"].n == 1  # one measurement at several depths
    assert (verdicts["C13"].outcome, verdicts["C13"].summary) == ("not run", C13.not_run)


@pytest.mark.parametrize(("loss", "chunked", "outcome"), [
    (5.5, 0.3, "supported"), (5.500001, 0.3, "supported"), (5.501, 0.3, "contradicted"), (5.5, 1.2, "contradicted"),
    (5.5, 1.0, "inconclusive"),
])
def test_memory_against_chunk(loss: float, chunked: float, outcome: str) -> None:
    results = invent(memory.EXPERIMENT, "quick", memory_events(0.0, loss, chunked))
    verdict = by_claim(memory.EXPERIMENT.verdicts(results))["C3"]
    assert (verdict.outcome, verdict.n) == (outcome, 1)


@pytest.mark.parametrize(("component", "outcome"), [(1e-9 + 5e-6, "supported"), (1e-9 + 5e-5, "contradicted")])
def test_a_gradients_component_is_compared_by_the_size_of_the_gradient(component: float, outcome: str) -> None:
    def events(arm: Arm) -> Events:
        found = memory_events(0.0)(arm)
        for event in found:
            event["gradient_component"] = component if event["model"].get("ff_chunk_length") == 128 else 1e-9
        return found

    assert by_claim(memory.EXPERIMENT.verdicts(invent(memory.EXPERIMENT, "quick", events)))["C3"].outcome == outcome


@pytest.mark.parametrize(("loss", "outcome"), [(5.5, "supported"), (5.6, "contradicted")])
def test_pieces_that_fit_where_the_whole_does_not_are_a_saving(loss: float, outcome: str) -> None:
    def events(arm: Arm) -> Events:
        found = memory_events(0.0)(arm)
        if arm.name == memory.CHUNK:
            found[0] = {key: found[0][key] for key in ("event", "length", "model")} | {"status": "out of memory"}
            found[-1]["loss"] = loss
        return found

    verdict = by_claim(memory.EXPERIMENT.verdicts(invent(memory.EXPERIMENT, "quick", events)))["C3"]
    assert (verdict.outcome, verdict.value) == (outcome, None)
    assert "the whole sequence at once runs out of memory" in verdict.summary


def test_without_a_baseline_nothing_is_decided_about_depth() -> None:
    def events(arm: Arm) -> Events:
        found = memory_events(5e6)(arm)
        if arm.name == memory.DEPTH_STORED:
            found = [{**event, "activation_bytes": 50e6} for event in found]
        return found

    verdict = by_claim(memory.EXPERIMENT.verdicts(invent(memory.EXPERIMENT, "quick", events)))["C2"]
    assert verdict.outcome == "inconclusive"
    assert "no baseline" in verdict.summary


def test_each_claim_about_memory_says_what_it_misses() -> None:
    def events(arm: Arm) -> Events | None:
        return None if arm.name == memory.DEPTH_STORED else memory_events(0.0)(arm)

    verdicts = by_claim(memory.EXPERIMENT.verdicts(invent(memory.EXPERIMENT, "quick", events)))
    assert (verdicts["C2"].outcome, verdicts["C2"].summary) == ("not run", "no finished run of depth, stored")
    assert verdicts["C3"].outcome == "supported"


def test_memory_of_half_a_million_tokens() -> None:
    for size, outcome in ((3e9, "supported"), (9e9, "contradicted")):
        def events(arm: Arm, size: float = size) -> Events:
            if arm.name == memory.HALF_MILLION:
                return [{"event": "measurement", "length": 524_288, "status": "finished", "activation_bytes": size,
                         "parameter_bytes": 1e7, "gradient_bytes": 1e7, "optimizer_bytes": 2e7, "model": {}}]
            return memory_events(0.0)(arm)
        results = invent(memory.EXPERIMENT, "gpu", events)
        verdict = by_claim(memory.EXPERIMENT.verdicts(results))["C13"]
        assert verdict.outcome == outcome
        assert "only half a million tokens" in verdict.summary
        assert any(row[:2] == (memory.HALF_MILLION, 524_288) for row in memory.EXPERIMENT.show(results).tables[0].rows)


EVENTS = {
    "table2": table_events({}), "speed": speed_events({"full": 0.8, "lsh": 0.0}), "memory": memory_events(0.0),
}


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if one.arms("quick")])  # others: their own tests
def test_pages_of_whole_half_and_no_results(name: str) -> None:
    experiment = EXPERIMENTS[name]

    def whole(arm: Arm) -> Events:
        other = dict.fromkeys(("LSH-1", "LSH-2", "LSH-4", "LSH-8"), 2.0)
        return EVENTS[name](arm) if name in EVENTS else trained(2.0, other)

    scale: Scale = "quick" if experiment.arms("quick") else "small"
    results = invent(experiment, scale, whole)
    section = experiment.show(results)
    assert section.tables
    assert all(figure.series for figure in section.figures)
    assert all(verdict.outcome != "not run" or verdict.claim == "C13" for verdict in experiment.verdicts(results))

    last = experiment.arms(scale)[-1].id
    half = invent(experiment, scale, lambda arm: whole(arm) if arm.id == last else None)
    assert experiment.show(half).tables
    judged = {verdict.claim for verdict in experiment.verdicts(half) if verdict.outcome != "not run"}
    # Speed is one measurement; memory's claims rest on arms of their own.
    assert judged == {"speed": {"C1", "C8"}, "memory": {"C3"}}.get(name, set())
    assert all(verdict.summary for verdict in experiment.verdicts(half))

    none = invent(experiment, scale, lambda arm: None)
    assert {verdict.outcome for verdict in experiment.verdicts(none)} == {"not run"}
    assert {verdict.claim for verdict in experiment.verdicts(none)} == {claim.id for claim in experiment.claims}
