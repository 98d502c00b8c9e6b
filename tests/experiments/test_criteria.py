"""Every criterion on made-up results: for each experiment and claim, results that give each of the four verdicts.

A new experiment, or a new claim of one, adds its four cases to CASES; without them the test fails.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest
from invented import Events, invent, memory_events, rounds_events, speed_events, table_events, trained

from reformer_lab.experiments import depth, hash_rounds, images, memory, reversible, shared_qk, speed
from reformer_lab.experiments.claim import OUTCOMES, Arm, ExperimentResults, Outcome, Sampling, Scale
from reformer_lab.experiments.registry import EXPERIMENTS

MakeEvents = Callable[[Arm], Events | None]
Case = tuple[Scale, MakeEvents]
"""The scale, and the events of each arm; None: no result."""


def bits(base: Mapping[str, float], change: Mapping[str, tuple[float, float, float]] | None = None) -> MakeEvents:
    """Trainings that end with these bits, by arm; `change`: what is added for each of three seeds, and again for more."""
    return lambda arm: trained(base.get(arm.name, 2.0) + ((change or {}).get(arm.name) or (0.0, 0.0, 0.0))[arm.seed % 3])


def harm(name: str) -> dict[Outcome, Case]:
    """A model that must not be worse by 0.05 than the others: by the whole interval of three seeds."""
    return {
        "supported": ("small", bits({}, {name: (0.01, 0.02, 0.015)})),
        "contradicted": ("small", bits({}, {name: (0.1, 0.11, 0.12)})),
        "inconclusive": ("small", bits({}, {name: (0.0, 0.09, 0.02)})),  # the mean alone would support it
        "not run": ("small", lambda arm: None if arm.name == name else trained(2.0)),
    }


OTHERS = {hash_rounds.LOCAL_NAME: 2.5, images.REGULAR: 2.0, images.SHARED_NAME: 2.0, images.REVERSIBLE_NAME: 2.0,
          images.LONGER_REGULAR: 2.0, images.LONGER_SHARED: 2.0}
"""Arms beside those with rounds; local attention alone must be worse than full attention."""


def rounds(eight: float, raised: float) -> MakeEvents:
    """LSH attention that ends with so many bits at 8 rounds, and changes by `raised` with 8 at evaluation alone."""
    ends = {hash_rounds.FULL_NAME: 2.0, **OTHERS, "LSH-1": 2.3, "LSH-2": 2.2, "LSH-4": 2.1, "LSH-8": eight}
    return rounds_events(ends, raised)


def layers(change: tuple[float, float, float]) -> MakeEvents:
    """Bits that change by so much with each doubling of the depth, one number for each seed."""
    return lambda arm: trained(2.0 + math.log2(int(arm.name.split()[0])) * change[arm.seed % 3])


def one_seed_of_table2(changes: dict[tuple[str, str], float], seeds: tuple[int, ...]) -> MakeEvents:
    """The task solved, but for these seeds, which have other cells."""
    return lambda arm: table_events(changes if arm.seed in seeds else {})(arm)


def without(events: MakeEvents, *names: str) -> MakeEvents:
    """The same without the results of these arms."""
    return lambda arm: None if arm.name in names else events(arm)


def half_million(size: float | None) -> MakeEvents:
    """A training step of half a million tokens that takes so many bytes; None: out of memory."""
    def events(arm: Arm) -> Events:
        if arm.name != memory.HALF_MILLION:
            return memory_events(0.0)(arm)
        common: dict[str, Any] = {"event": "measurement", "length": 524_288, "model": {}}
        sizes = {"activation_bytes": size, "parameter_bytes": 1e7, "gradient_bytes": 1e7, "optimizer_bytes": 2e7}
        return [common | {"status": "finished"} | sizes if size is not None else common | {"status": "out of memory"}]
    return events


ROUNDS: dict[Outcome, Case] = {
    "supported": ("small", rounds(2.02, -0.1)),
    "contradicted": ("small", rounds(2.2, -0.1)),
    "inconclusive": ("small", rounds(2.02, 0.004)),  # no gain from rounds at evaluation alone
    "not run": ("small", without(rounds(2.02, -0.1), hash_rounds.FULL_NAME)),
}


def tuned_run(bits: float, steps: int) -> MakeEvents:
    """The tuned model, which ends with so many bits after so many steps."""
    return lambda arm: [event | {"step": steps} for event in trained(bits)]


LOST_AT_ONE = {("LSH-1", "LSH-1"): 0.7}
CASES: dict[tuple[str, str], dict[Outcome, Case]] = {
    ("images", "C4"): harm(images.SHARED_NAME),
    ("images", "C5"): harm(images.REVERSIBLE_NAME),
    ("images", "C6"): ROUNDS,
    ("tuned", "C10"): {
        "supported": ("paper", tuned_run(1.1, 20_000)),
        "contradicted": ("paper", tuned_run(1.5, 10**7)),
        "inconclusive": ("paper", tuned_run(1.5, 100)),  # too short to contradict
        "not run": ("paper", lambda arm: None),
    },
    ("table2", "C7"): {
        "supported": ("small", table_events({})),
        "contradicted": ("small", one_seed_of_table2(LOST_AT_ONE, (0, 1, 2))),
        "inconclusive": ("small", one_seed_of_table2(LOST_AT_ONE, (1,))),  # one seed of three fails
        "not run": ("small", without(table_events({}), "LSH-4")),
    },
    ("shared_qk", "C4"): harm(shared_qk.SHARED_NAME),
    ("reversible", "C5"): harm(reversible.REVERSIBLE),
    ("hash_rounds", "C6"): ROUNDS,
    ("depth", "C9"): {
        "supported": ("small", layers((-0.1, -0.11, -0.09))),
        "contradicted": ("small", layers((0.1, 0.11, 0.09))),
        "inconclusive": ("small", layers((-0.1, 0.05, -0.09))),
        "not run": ("small", without(layers((0.0, 0.0, 0.0)), depth.arm_name(depth.SETTINGS["small"].depths[-1]))),
    },
    ("speed", "C8"): {
        "supported": ("small", speed_events({"full": 0.8, "lsh": 0.02})),
        "contradicted": ("small", speed_events({"full": 0.8, "lsh": 0.5})),
        "inconclusive": ("small", speed_events({"full": 0.8, "lsh": 0.1}, spread=0.1)),
        "not run": ("small", without(speed_events({"full": 0.8, "lsh": 0.02}), speed.MEASUREMENT)),
    },
    ("speed", "C1"): {
        "supported": ("small", speed_events({"full": 0.8, "lsh": 0.02})),
        "contradicted": ("small", speed_events({"full": 0.1, "lsh": 0.02})),  # flat, but full attention is faster
        "inconclusive": ("small", speed_events({"full": 0.8, "lsh": 0.1}, spread=0.1)),
        "not run": ("small", without(speed_events({"full": 0.8, "lsh": 0.02}), speed.MEASUREMENT)),
    },
    ("memory", "C2"): {
        "supported": ("small", memory_events(0.1e6)),
        "contradicted": ("small", memory_events(5e6)),
        "inconclusive": ("small", memory_events(1.5e6)),
        "not run": ("small", without(memory_events(0.1e6), memory.DEPTH_STORED)),
    },
    ("memory", "C3"): {
        "supported": ("small", memory_events(0.0)),
        "contradicted": ("small", memory_events(0.0, loss=5.6)),
        "inconclusive": ("small", memory_events(0.0, chunked=1.0)),
        "not run": ("small", without(memory_events(0.0), memory.CHUNK)),
    },
    ("memory", "C13"): {
        "supported": ("gpu", half_million(3e9)),
        "contradicted": ("gpu", half_million(9e9)),
        "inconclusive": ("gpu", half_million(None)),
        "not run": ("small", memory_events(0.0)),
    },
}
SAMPLING: dict[str, Sampling] = {"speed": "repeats", "memory": "deterministic"}
"""Of the experiments that are not judged over seeds."""
PAIRS = [(name, claim.id) for name, experiment in EXPERIMENTS.items() for claim in experiment.claims]


def judged(name: str, claim: str, case: Case) -> Any:
    scale, events = case
    found = [one for one in EXPERIMENTS[name].verdicts(invent(EXPERIMENTS[name], scale, events)) if one.claim == claim]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("name", "claim"), PAIRS)
def test_each_criterion_gives_all_four_verdicts(name: str, claim: str) -> None:
    assert (name, claim) in CASES, "a criterion without made-up results: add four cases to CASES"
    cases = CASES[name, claim]
    assert set(cases) == set(OUTCOMES)
    for outcome, case in cases.items():
        found = judged(name, claim, case)
        assert found.outcome == outcome, found.summary
        assert found.summary
        assert "does not understand" not in found.summary  # a judge that fails, and no missing result
        if outcome != "not run":
            assert found.sampling == SAMPLING.get(name, "seeds")
            seeds = Counter(arm.name for arm in EXPERIMENTS[name].arms(case[0])).values()
            assert found.n in {"seeds": seeds, "repeats": (3,), "deterministic": (1,)}[found.sampling]
            assert found.indicative == (found.sampling == "seeds" and max(seeds) < 3)
            assert found.unit or found.value is None
            assert found.count in found.label


@pytest.mark.parametrize(("name", "claim"), PAIRS)
def test_nothing_at_all_is_not_run(name: str, claim: str) -> None:
    for scale in ("quick", "small"):
        results = invent(EXPERIMENTS[name], scale, lambda arm: None)
        for given in (results, ExperimentResults(scale=scale, arms=())):
            (found,) = (one for one in EXPERIMENTS[name].verdicts(given) if one.claim == claim)
            assert found.outcome == "not run"
            assert "does not understand" not in found.summary


@pytest.mark.parametrize(("name", "claim"), [pair for pair in PAIRS if pair[0] not in SAMPLING])
def test_with_one_seed_a_verdict_is_at_most_indicative(name: str, claim: str) -> None:
    for outcome in ("supported", "contradicted"):
        scale, events = CASES[name, claim][outcome]  # type: ignore[index]
        one = ExperimentResults(scale=scale, arms=tuple(arm.entry() for arm in EXPERIMENTS[name].arms(scale) if arm.seed == 0),
                                records=invent(EXPERIMENTS[name], scale, events).records)
        (found,) = (found for found in EXPERIMENTS[name].verdicts(one) if found.claim == claim)
        assert (found.outcome, found.n) == (outcome, 1)
        assert found.label.startswith(f"{outcome} (indicative, n = 1 seed")
        assert found.strength == f"{outcome} (indicative)"


def test_every_kind_of_sampling_is_made_up() -> None:
    assert set(SAMPLING.values()) | {"seeds"} == set(get_args(Sampling))
