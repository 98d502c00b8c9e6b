"""What a suite runs: each arm once, the longest first."""

import dataclasses
from pathlib import Path

import pytest

from reformer_lab.experiments.claim import Arm
from reformer_lab.experiments.registry import EXPERIMENTS, get_experiments
from reformer_lab.runner.plan import make_plan, on_one_gpu, training_cost
from reformer_lab.training.config import RunConfig
from reformer_lab.training.run_folder import differences


def test_shared_arms_are_planned_once() -> None:
    plan = make_plan(get_experiments(), "quick")
    declared = [arm for experiment in EXPERIMENTS.values() for arm in experiment.arms("quick")]
    assert set(plan.arms) == {arm.id for arm in declared}
    assert len(plan.arms) < len(declared)
    assert len(plan.trainings) + len(plan.measurements) == len(plan.arms)
    assert [len(entries) for entries in plan.entries.values()] == [len(one.arms("quick")) for one in EXPERIMENTS.values()]
    assert len(set(plan.labels.values())) == len(plan.arms)


def test_labels_name_the_seed_where_there_are_several() -> None:
    assert "table2 LSH-4 seed 2" in make_plan(get_experiments(["table2"]), "small").labels.values()
    assert "table2 LSH-4" in make_plan(get_experiments(["table2"]), "quick").labels.values()


def test_longest_first() -> None:
    plan = make_plan(get_experiments(["table2", "hash_rounds", "depth"]), "quick")
    costs = [training_cost(arm.run) for arm in plan.trainings]
    assert costs == sorted(costs, reverse=True)
    names = [plan.labels[arm.id] for arm in plan.trainings]
    assert names.index("hash_rounds LSH-8") < names.index("hash_rounds LSH-1")
    assert names.index("depth 6 layers") < names.index("depth 1 layer")


def test_cost_grows_with_what_a_run_does() -> None:
    (arm, *_) = EXPERIMENTS["hash_rounds"].arms("quick")
    assert isinstance(arm, Arm)
    run = arm.run
    assert isinstance(run, RunConfig)
    assert training_cost(dataclasses.replace(run, steps=2 * run.steps)) == 2 * training_cost(run)
    assert training_cost(EXPERIMENTS["speed"].arms("quick")[0].run) == 0


def test_small_steps_share_one_gpu_and_large_ones_have_it_alone() -> None:
    plan = make_plan(get_experiments(), "gpu")
    (small, at_once), (large, alone) = on_one_gpu(plan.trainings)
    assert (at_once, alone) == (4, 1)
    names = {plan.labels[arm.id] for arm in small}
    copying = {name for name in names if name.startswith("autopsy copying with ")}
    assert names - copying == {f"table2 {row}" for row in ("full", "LSH-4", "LSH-2", "LSH-1")}
    assert copying
    assert len(small) + len(large) == len(plan.trainings)
    costs = [training_cost(arm.run) for arm in large]
    assert costs == sorted(costs, reverse=True)


def test_another_corpus_is_read_by_what_reads_a_text_and_by_nothing_else() -> None:
    experiments = get_experiments(["table2", "shared_qk", "memory"])
    own, other = make_plan(experiments, "small"), make_plan(experiments, "small", "texts/novel.txt")
    assert (own.corpus, other.corpus) == ("", "texts/novel.txt")
    for name in ("table2", "memory"):
        assert own.entries[name] == other.entries[name]
    assert not {arm.id for arm in own.entries["shared_qk"]} & {arm.id for arm in other.entries["shared_qk"]}
    for before, after in zip(own.entries["shared_qk"], other.entries["shared_qk"], strict=True):
        runs = own.arms[before.id].run, other.arms[after.id].run
        assert isinstance(runs[0], RunConfig)
        assert isinstance(runs[1], RunConfig)
        assert [line.split(" is ")[0] for line in differences(runs[0].to_dict(), runs[1].to_dict())] == ["data.path"]
        assert (before.name, before.seed) == (after.name, after.seed)
    assert set(other.missing_data) == {"texts/novel.txt"}


def test_data_that_are_not_here_are_named_with_who_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFORMER_LAB_DATA", str(tmp_path / "texts"))
    plan = make_plan(get_experiments(["table2", "shared_qk", "depth", "memory"]), "small")
    assert plan.missing_data == {"books.zip": ("shared_qk", "depth")}
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "books.zip").touch()
    assert plan.missing_data == {}
    assert make_plan(get_experiments(["depth"]), "gpu").missing_data == {"enwik8": ("depth",)}
    images = make_plan(get_experiments(["images"]), "small")
    assert images.missing_data == {"images/imagenet64-sample.zip": ("images",)}
    (tmp_path / "texts" / "images").mkdir()
    (tmp_path / "texts" / "images" / "imagenet64-sample.zip").touch()
    assert images.missing_data == {}
    (tmp_path / "cache" / "enwik8").mkdir(parents=True)
    (tmp_path / "cache" / "enwik8" / "enwik8.zip").touch()
    assert make_plan(get_experiments(["depth"]), "gpu").missing_data == {}
