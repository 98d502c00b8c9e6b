"""The declarations themselves: they can be listed at once, differ where they say, and share what they can."""

import subprocess
import sys

import pytest

from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.experiments import depth, hash_rounds, memory, reversible, shared_qk, speed, table2
from reformer_lab.experiments.claim import SCALES, Arm, MeasurementConfig, Scale
from reformer_lab.experiments.claims import CLAIMS
from reformer_lab.experiments.registry import EXPERIMENTS, MINUTES, get_experiments
from reformer_lab.training.config import RunConfig
from reformer_lab.training.run_folder import differences

WITHOUT_RUNS = {("images", "quick"), ("tuned", "quick"), ("tuned", "small"), ("yardstick", "quick"),  # quick has no time left
                ("autopsy", "quick"), ("autopsy", "paper")}


def run_of(arm: Arm) -> RunConfig:
    assert isinstance(arm.run, RunConfig)
    return arm.run


def first(arms: tuple[Arm, ...], name: str) -> RunConfig:
    return run_of(next(arm for arm in arms if arm.name == name))


def test_declarations_need_no_torch() -> None:
    code = ("import sys; from reformer_lab.experiments.registry import EXPERIMENTS; "
            "[one.arms(scale) for one in EXPERIMENTS.values() for scale in ('quick', 'paper')]; "
            "sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_scale_declares_whole_runs(name: str, scale: Scale) -> None:
    experiment = EXPERIMENTS[name]
    arms = experiment.arms(scale)
    assert bool(arms) == (scale in MINUTES[name])
    assert arms or (name, scale) in WITHOUT_RUNS
    assert len({(arm.name, arm.seed) for arm in arms}) == len(arms) == len({arm.id for arm in arms})
    assert experiment.cuts(scale)
    assert not arms or MINUTES[name][scale] > 0
    for arm in arms:
        again = type(arm.run).from_dict(arm.run.to_dict())
        assert again.digest() == arm.run.digest()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_small_has_three_seeds_of_every_training(name: str) -> None:
    arms = [arm for arm in EXPERIMENTS[name].arms("small") if arm.kind == "training"]
    assert all(sum(other.name == arm.name for other in arms) >= 3 for arm in arms)


def test_claims_are_known_and_each_experiment_states_a_criterion() -> None:
    for experiment in EXPERIMENTS.values():
        assert experiment.criterion
        assert all(claim in CLAIMS for claim in experiment.claims)
    tested = {claim.id for experiment in EXPERIMENTS.values() for claim in experiment.claims}
    assert tested >= {"C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10"}


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_what_is_tested_and_in_nothing_else(scale: Scale) -> None:
    pairs = {
        "model.shared_qk": (shared_qk.arms(scale), shared_qk.SEPARATE_NAME, shared_qk.SHARED_NAME),
        "model.reversible": (reversible.arms(scale), reversible.STORED, reversible.REVERSIBLE),
        "model.residual_streams": (reversible.arms(scale), reversible.REGULAR, reversible.STORED),
    }
    for field, (arms, one, other) in pairs.items():
        found = differences(first(arms, one).to_dict(), first(arms, other).to_dict(), limit=100)
        assert [line.split(" is ")[0] for line in found] == [field]
    lsh = [run_of(arm) for arm in hash_rounds.arms(scale) if arm.name.startswith("LSH") and arm.seed == 0]
    for run in lsh[1:]:
        found = differences(lsh[0].to_dict(), run.to_dict(), limit=100)
        assert [line.split(" is ")[0] for line in found] == ["model.num_hashes"]


@pytest.mark.parametrize("scale", SCALES)
def test_shared_arms_are_one_run(scale: Scale) -> None:
    regular = {arm.id for arm in shared_qk.arms(scale)} & {arm.id for arm in reversible.arms(scale)}
    seeds = {arm.seed for arm in shared_qk.arms(scale)}
    assert len(regular) == len(seeds)
    if scale != "paper":  # whose depths start at the ablation's 3 layers as well
        assert {arm.id for arm in depth.arms(scale)} & {arm.id for arm in hash_rounds.arms(scale)}


def test_the_papers_numbers() -> None:
    row = first(table2.arms("paper"), "LSH-4")
    assert isinstance(row.data, DuplicationConfig)
    assert (row.data.length, row.steps, row.batch_size) == (1024, 150_000, 32)
    assert (row.optimizer.name, row.optimizer.learning_rate, row.optimizer.schedule, row.optimizer.warmup_steps) == (
        "adafactor", 1.0, "warmup_rsqrt", 8000)
    assert (row.model.num_buckets, row.model.chunk_length, row.model.d_model, row.model.d_ff) == (64, 32, 256, 256)
    text = first(hash_rounds.arms("paper"), "LSH-2")
    assert isinstance(text.data, ByteCorpusConfig)
    assert (text.data.path, text.data.length, text.data.stride) == ("enwik8", 65_536, 16_384)
    assert (text.steps, text.batch_size, text.optimizer.learning_rate) == (60_000, 8, 2.0)
    assert (text.model.num_layers, text.model.d_model, text.model.chunk_length) == (3, 1024, 128)
    assert [arm.name for arm in hash_rounds.arms("paper")][1:] == ["LSH-2", "LSH-4", "LSH-8", "LSH-16"]
    (measurement,) = speed.arms("paper")
    assert isinstance(measurement.run, MeasurementConfig)
    points = measurement.run.parameters["points"]
    assert list(dict.fromkeys((point["length"], point["batch_size"]) for point in points)) == [
        (1024, 32), (2048, 16), (4096, 8), (8192, 4), (16_384, 2), (32_768, 1)]
    assert len(points) == 6 * len(speed.contenders("paper"))


@pytest.mark.parametrize("scale", SCALES)
def test_the_chunk_sweep_hashes_nothing(scale: Scale) -> None:
    for arm in memory.arms(scale):
        assert isinstance(arm.run, MeasurementConfig)
        if arm.name == memory.CHUNK:
            assert arm.run.parameters["model"]["attention"] == ["local"]
            assert arm.run.parameters["precision"] == "fp32"


def test_memory_reaches_the_lengths_that_the_paper_names() -> None:
    for scale in ("small", "gpu", "paper"):
        lengths = next(arm.run for arm in memory.arms(scale) if arm.name == memory.LENGTH_LSH)
        assert isinstance(lengths, MeasurementConfig)
        assert max(point["length"] for point in lengths.parameters["points"]) == 65_536


def test_table2_has_the_papers_rows_and_both_conventions() -> None:
    for scale in SCALES:
        for arm in table2.arms(scale):
            assert run_of(arm).final_split == "test"  # the validation split decides when a run stops
            names = [evaluation.name for evaluation in run_of(arm).evaluations]
            assert names == ["own", "full", "full, raw keys", "LSH-8", "LSH-4", "LSH-2", "LSH-1"]
    assert set(table2.PAPER) == set(table2.TRAINED)
    assert {column for row in table2.PAPER.values() for column in row} == set(table2.EVALUATED)


def test_get_experiments() -> None:
    assert [one.name for one in get_experiments()] == list(EXPERIMENTS)
    assert [one.name for one in get_experiments(["speed", "table2"])] == ["table2", "speed"]
    with pytest.raises(UserError, match=r"'tabel2': did you mean 'table2'"):
        get_experiments(["tabel2"])
    with pytest.raises(UserError, match="no experiment was named"):
        get_experiments([])
