"""Configurations of runs: checked, told apart, free of torch."""

import json

import pytest
from tiny_runs import tiny_model, tiny_run

from reformer_lab.data.config import ByteCorpusConfig, ImagesConfig
from reformer_lab.errors import UserError
from reformer_lab.training.config import Evaluation, OptimizerConfig, RunConfig


def full_run() -> RunConfig:
    return tiny_run(evaluations=(Evaluation(), Evaluation(name="full", model={"attention": ("full",)})),
                    stop_at_accuracy=0.5, precision="bf16", optimizer=OptimizerConfig(name="adafactor", betas=(0, 0.9)))


@pytest.mark.parametrize("run", [tiny_run(), full_run(), tiny_run(data=ByteCorpusConfig(path="x")),
                                 tiny_run(data=ImagesConfig())])
def test_json_round_trip_keeps_the_identity(run: RunConfig) -> None:
    again = RunConfig.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again.digest() == run.digest()
    assert again.to_dict() == run.to_dict()


def test_digest_tells_every_field_apart() -> None:
    changes = [{}, {"steps": 9}, {"batch_size": 8}, {"seed": 1}, {"accumulation": 2}, {"precision": "bf16"},
               {"eval_every": 5}, {"eval_limit": 4}, {"eval_batch_size": 2}, {"log_every": 1}, {"checkpoint_every": 1},
               {"threads": 2}, {"final_split": "test"}, {"stop_at_accuracy": 0.9}, {"data": ByteCorpusConfig()},
               {"model": tiny_model(num_hashes=3)}, {"optimizer": OptimizerConfig()},
               {"evaluations": (Evaluation(name="own", model={"num_hashes": 8}),)}]
    changed = {name for change in changes for name in change}
    assert changed == set(RunConfig.__dataclass_fields__)
    assert len({tiny_run(**change).digest() for change in changes}) == len(changes)


@pytest.mark.parametrize(("changes", "words"), [
    ({"steps": 0}, "steps=0"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"accumulation": 3}, "accumulation=3: must divide batch_size=4"),
    ({"precision": "fp8"}, "precision='fp8'"),
    ({"checkpoint_every": 0}, "checkpoint_every=0"),
    ({"final_split": "train"}, "final_split='train'"),
    ({"stop_at_accuracy": 1.5}, "stop_at_accuracy=1.5"),
    ({"stop_at_accuracy": 0.5, "eval_every": None}, "needs eval_every"),
    ({"stop_at_accuracy": 0.5, "model": tiny_model(loss_chunk_length=4)}, "needs a model with loss_chunk_length=None"),
    ({"steps": 1000 / 3}, "steps=333.33.*whole number"),
    ({"eval_every": 2.0}, "eval_every=2.0.*whole number"),
    ({"evaluations": (Evaluation(), Evaluation())}, "once"),
    ({"evaluations": (Evaluation(model={"num_hash": 8}),)}, "unknown model field 'num_hash'"),
    ({"evaluations": (Evaluation(model={"num_hashes": 0}),)}, "num_hashes=0"),
])
def test_wrong_runs_are_named(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_run(**changes)


@pytest.mark.parametrize("changes", [
    {"name": "sgd"}, {"learning_rate": 0.0}, {"schedule": "linear"}, {"warmup_steps": -1}, {"betas": (0.9,)},
    {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -1.0}, {"clip_norm": 0.0},
])
def test_wrong_optimizers_are_named(changes: dict) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        OptimizerConfig(**changes)


@pytest.mark.parametrize("part", [None, "model", "optimizer", "data"])
def test_unknown_fields_are_named(part: str | None) -> None:
    values = tiny_run().to_dict()
    (values if part is None else values[part])["misspelt"] = 1
    with pytest.raises(UserError, match=r"unknown .*misspelt"):
        RunConfig.from_dict(values)
