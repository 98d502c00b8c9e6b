"""Judges on invented results: each outcome can come out, for the reason that it should."""

from typing import Any

import pytest
from invented import Events, invent, trained

from reformer_lab.experiments import depth, hash_rounds, memory, reversible, shared_qk, speed, table2
from reformer_lab.experiments.claim import Arm, Verdict
from reformer_lab.experiments.judging import above, below, paired_difference, together
from reformer_lab.experiments.registry import EXPERIMENTS
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.statistics import Estimate


def by_claim(verdicts: tuple[Verdict, ...]) -> dict[str, Verdict]:
    return {verdict.claim: verdict for verdict in verdicts}


def test_below_and_above_use_the_whole_interval() -> None:
    wide, narrow, point = Estimate(value=0, low=-1, high=1), Estimate(value=0, low=-0.1, high=0.1), Estimate(value=0)
    assert (below(wide, 0.5), below(narrow, 0.5), below(narrow, -0.5), below(point, 0.5)) == (None, True, False, True)
    assert (above(wide, 0.5), above(narrow, -0.5), above(narrow, 0.5)) == (None, True, False)


def test_together() -> None:
    assert together(True, True) is True
    assert together(True, None) is None
    assert together(None, False, True) is False


def test_paired_difference_pairs_by_seed() -> None:
    noise = {0: 1.0, 1: 5.0, 2: 9.0}

    def events(arm: Arm) -> Events:
        return trained(noise[arm.seed] + (0.01 if arm.name == shared_qk.SHARED_NAME else 0))

    results = invent(shared_qk.EXPERIMENT, "small", events)
    found = paired_difference(results, shared_qk.SHARED_NAME, shared_qk.SEPARATE_NAME)
    assert found.n == 3
    assert found.value == pytest.approx(0.01)
    assert found.low == pytest.approx(0.01)  # the seeds' own spread has gone
    assert found.high == pytest.approx(0.01)


def test_paired_difference_needs_a_common_seed() -> None:
    wanted = {shared_qk.SHARED_NAME: 0, shared_qk.SEPARATE_NAME: 1}
    results = invent(shared_qk.EXPERIMENT, "small", lambda arm: trained(1.0) if wanted[arm.name] == arm.seed else None)
    with pytest.raises(MissingResult, match="no finished seed in common"):
        paired_difference(results, shared_qk.SHARED_NAME, shared_qk.SEPARATE_NAME)


@pytest.mark.parametrize(("harm", "outcome"), [
    ((0.0, 0.01, 0.02), "supported"), ((0.06, 0.08, 0.07), "contradicted"), ((0.0, 0.05, 0.1), "inconclusive"),
])
def test_shared_qk_and_reversible(harm: tuple[float, ...], outcome: str) -> None:
    for module, baseline in ((shared_qk, shared_qk.SEPARATE_NAME), (reversible, reversible.REGULAR)):
        results = invent(module.EXPERIMENT, "small",
                         lambda arm, baseline=baseline: trained(2.0 + (0 if arm.name == baseline else harm[arm.seed])))
        (verdict,) = module.EXPERIMENT.verdicts(results)
        assert verdict.outcome == outcome
        assert verdict.n == 3
        assert not verdict.indicative


def test_one_seed_is_indicative_and_smoke_decides_nothing() -> None:
    for scale, outcome in (("quick", "supported"), ("smoke", "inconclusive")):
        (verdict,) = shared_qk.EXPERIMENT.verdicts(invent(shared_qk.EXPERIMENT, scale, lambda arm: trained(2.0)))
        assert verdict.outcome == outcome
        assert verdict.indicative


def rounds_events(bits: dict[str, float], raised: float) -> Any:
    def events(arm: Arm) -> Events:
        own = bits[arm.name]
        return trained(own, {"LSH-1": own, "LSH-2": own, "LSH-4": own, "LSH-8": own + raised})
    return events


@pytest.mark.parametrize(("best", "raised", "outcome"), [
    (2.02, -0.1, "supported"),      # close to full attention, better than one round, better with more at evaluation
    (2.2, -0.1, "contradicted"),    # far from full attention
    (2.02, 0.005, "inconclusive"),  # more rounds at evaluation: no gain, within the slack
    (2.02, 0.1, "contradicted"),    # more rounds at evaluation hurt
])
def test_hash_rounds(best: float, raised: float, outcome: str) -> None:
    bits = {hash_rounds.FULL_NAME: 2.0, "LSH-1": 2.3, "LSH-2": 2.2, "LSH-4": 2.1, "LSH-8": best}
    results = invent(hash_rounds.EXPERIMENT, "small", rounds_events(bits, raised))
    assert hash_rounds.EXPERIMENT.verdicts(results)[0].outcome == outcome


@pytest.mark.parametrize(("change", "outcome"), [(-0.1, "supported"), (0.1, "contradicted"), (0.0, "inconclusive")])
def test_depth(change: float, outcome: str) -> None:
    steps = {"1 layer": 0.0, "3 layers": 1.58, "6 layers": 2.58}
    results = invent(depth.EXPERIMENT, "small", lambda arm: trained(2.0 + change * steps[arm.name]))
    (verdict,) = depth.EXPERIMENT.verdicts(results)
    assert verdict.outcome == outcome
    assert verdict.value == pytest.approx(change, abs=1e-3)


TABLE = {  # convention b, LSH-8, LSH-4, LSH-2, LSH-1: the rough trial of PAPER section 1
    "full": (1.0, 1.0, 0.999, 0.987, 0.893), "LSH-4": (1.0, 1.0, 0.999, 0.965, 0.830),
    "LSH-2": (1.0, 1.0, 1.0, 0.995, 0.923), "LSH-1": (1.0, 1.0, 1.0, 0.99, 0.95),
}


def table_events(changes: dict[tuple[str, str], float]) -> Any:
    def events(arm: Arm) -> Events:
        cells = dict(zip(("full", "LSH-8", "LSH-4", "LSH-2", "LSH-1"), TABLE[arm.name], strict=True))
        cells |= {column: value for (row, column), value in changes.items() if row == arm.name}
        scores = {name: {"accuracy": value} for name, value in {"full, raw keys": 0.008, **cells}.items()}
        return [{"event": "eval", "step": 100, "name": "own", "accuracy": 0.5},
                {"event": "final", "step": 700, "stopped_early": True, "evaluations": scores}]
    return events


@pytest.mark.parametrize(("changes", "outcome"), [
    ({}, "supported"),
    ({("LSH-2", "LSH-2"): 0.97, ("LSH-2", "LSH-1"): 0.9}, "inconclusive"),  # below 99 % in its own setting
    ({("LSH-1", "LSH-1"): 0.92}, "inconclusive"),
    ({("full", "LSH-8"): 0.94, ("full", "LSH-4"): 0.94, ("full", "LSH-2"): 0.93}, "inconclusive"),
    ({("LSH-4", "LSH-8"): 0.99}, "inconclusive"),                           # falls by 0.9 points with more rounds
    ({("LSH-4", "LSH-8"): 0.96}, "contradicted"),                           # falls by 3.9 points
    ({("LSH-4", "full"): 0.01}, "contradicted"),                            # attends to itself: not solved under full
])
def test_table2(changes: dict[tuple[str, str], float], outcome: str) -> None:
    results = invent(table2.EXPERIMENT, "quick", table_events(changes))
    assert table2.EXPERIMENT.verdicts(results)[0].outcome == outcome


def speed_events(exponents: dict[str, float]) -> Any:
    def events(arm: Arm) -> Events:
        exponent = exponents["full" if arm.name == speed.FULL else "lsh"]
        base = 1.0 if arm.name == speed.FULL else 2.0
        return [{"event": "measurement", "length": length, "batch_size": 8192 // length, "status": "finished", "model": {},
                 "seconds": [base * (length / 1024) ** exponent * wobble for wobble in (1, 1.01, 0.99)], "median": 1.0,
                 "low": 1.0, "high": 1.0, "device_name": "invented", "threads": 1}
                for length in (1024, 2048, 4096, 8192)]
    return events


@pytest.mark.parametrize(("full", "lsh", "c8", "c1"), [
    (0.8, 0.02, "supported", "supported"),
    (0.8, 0.5, "contradicted", "contradicted"),  # LSH slows down too
    (0.1, 0.02, "contradicted", "inconclusive"),  # full attention is flat as well, and faster
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
        if arm.name == speed.FULL:
            found[-1] = {**found[-1], "status": "out of memory", "seconds": []}
        return found

    results = invent(speed.EXPERIMENT, "quick", events)
    assert by_claim(speed.EXPERIMENT.verdicts(results))["C8"].outcome == "supported"
    assert "out of memory" in speed.EXPERIMENT.show(results).tables[0].rows[0]


def memory_events(reversible_layer: float, loss: float = 5.5, chunked: float = 0.3) -> Any:
    def events(arm: Arm) -> Events:
        common = {"event": "measurement", "status": "finished", "batch_size": 1, "seconds": 1.0, "loss": 5.5,
                  "gradient_norm": 1.0, "gradient_component": 0.1}
        if arm.name in (memory.DEPTH_REVERSIBLE, memory.DEPTH_STORED):
            layer = reversible_layer if arm.name == memory.DEPTH_REVERSIBLE else 20e6
            return [{**common, "length": 2048, "model": {"num_layers": depth}, "activation_bytes": 50e6 + depth * layer}
                    for depth in (2, 4, 8)]
        if arm.name == memory.CHUNK:
            return [{**common, "length": 2048, "model": {"ff_chunk_length": chunk}, "loss": loss if chunk else 5.5,
                     "activation_bytes": 100e6 * (chunked if chunk else 1)} for chunk in (None, 2048, 512, 128)]
        return [{**common, "length": length, "model": {}, "activation_bytes": length * 1e4} for length in (2048, 4096, 8192)]
    return events


@pytest.mark.parametrize(("layer", "outcome"), [(0.1e6, "supported"), (5e6, "contradicted"), (1.5e6, "inconclusive")])
def test_memory_against_depth(layer: float, outcome: str) -> None:
    verdicts = by_claim(memory.EXPERIMENT.verdicts(invent(memory.EXPERIMENT, "quick", memory_events(layer))))
    assert verdicts["C2"].outcome == outcome
    assert verdicts["C2"].value == pytest.approx(layer / 20e6 * 100)
    assert verdicts["C13"].outcome == "not run"


@pytest.mark.parametrize(("loss", "chunked", "outcome"), [
    (5.5, 0.3, "supported"), (5.500001, 0.3, "supported"), (5.501, 0.3, "contradicted"), (5.5, 1.1, "contradicted"),
])
def test_memory_against_chunk(loss: float, chunked: float, outcome: str) -> None:
    results = invent(memory.EXPERIMENT, "quick", memory_events(0.0, loss, chunked))
    assert by_claim(memory.EXPERIMENT.verdicts(results))["C3"].outcome == outcome


def test_memory_of_half_a_million_tokens() -> None:
    for size, outcome in ((3e9, "supported"), (9e9, "contradicted")):
        def events(arm: Arm, size: float = size) -> Events:
            if arm.name == memory.HALF_MILLION:
                return [{"event": "measurement", "length": 524_288, "status": "finished", "activation_bytes": size,
                         "parameter_bytes": 1e7, "gradient_bytes": 1e7, "optimizer_bytes": 2e7, "model": {}}]
            return memory_events(0.0)(arm)
        assert by_claim(memory.EXPERIMENT.verdicts(invent(memory.EXPERIMENT, "gpu", events)))["C13"].outcome == outcome


EVENTS = {
    "table2": table_events({}), "speed": speed_events({"full": 0.8, "lsh": 0.0}), "memory": memory_events(0.0),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_pages_of_whole_half_and_no_results(name: str) -> None:
    experiment = EXPERIMENTS[name]

    def whole(arm: Arm) -> Events:
        other = dict.fromkeys(("LSH-1", "LSH-2", "LSH-4", "LSH-8"), 2.0)
        return EVENTS[name](arm) if name in EVENTS else trained(2.0, other)

    results = invent(experiment, "quick", whole)
    section = experiment.show(results)
    assert section.tables
    assert all(figure.series for figure in section.figures)
    assert all(verdict.outcome != "not run" or verdict.claim == "C13" for verdict in experiment.verdicts(results))

    last = experiment.arms("quick")[-1].id
    half = invent(experiment, "quick", lambda arm: whole(arm) if arm.id == last else None)
    assert experiment.show(half).tables
    judged = {verdict.claim for verdict in experiment.verdicts(half) if verdict.outcome != "not run"}
    assert judged == ({"C3"} if name == "memory" else set())  # the memory experiment's claims rest on arms of their own
    assert all(verdict.summary for verdict in experiment.verdicts(half))

    none = invent(experiment, "quick", lambda arm: None)
    assert {verdict.outcome for verdict in experiment.verdicts(none)} == {"not run"}
    assert {verdict.claim for verdict in experiment.verdicts(none)} == {claim.id for claim in experiment.claims}
