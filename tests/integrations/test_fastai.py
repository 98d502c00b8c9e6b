"""Our models and byte corpora in fastai. Needs fastai (`make test-fastai`)."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastai", reason="fastai is not installed: `make test-fastai` runs this")

from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD

from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.byte_text import decode, encode
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.errors import UserError
from reformer_lab.evaluation.evaluate import evaluate
from reformer_lab.evaluation.generate import generate
from reformer_lab.integrations.fastai import LearnerModel, byte_dataloaders, generate_text, language_learner, parameter_groups
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM

ROOT = Path(__file__).parent.parent.parent
SMALL: dict[str, Any] = {
    "d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2, "d_head": 8, "max_length": 40, "attention": ("local", "lsh"),
    "num_hashes": 2, "num_buckets": 4, "chunk_length": 8, "local_chunk_length": 8,
}  # fmt: skip
LOSSES = pytest.mark.parametrize("loss_chunk_length", [None, 16], ids=["logits", "loss in pieces"])
SENTENCE = "The old man went to the sea, and the sea came to the old man. "


@pytest.fixture
def corpus(tmp_path: Path) -> ByteCorpusConfig:
    """Validation 90 and test 50 bytes, so that the last windows of 40 are short."""
    (tmp_path / "novel.txt").write_text("".join(f"{i}. {SENTENCE}" for i in range(20)), encoding="utf-8")
    return ByteCorpusConfig(path=str(tmp_path / "novel.txt"), length=40, valid=90, test=50)


def config_of(**changes: Any) -> ReformerConfig:
    return ReformerConfig(**SMALL | changes)


def learner_of(corpus: ByteCorpusConfig, model: ReformerConfig | ReformerLM, **options: Any) -> Learner:
    dls = byte_dataloaders(corpus, batch_size=options.pop("batch_size", 4), device="cpu", path=Path(str(corpus.path)).parent)
    return language_learner(model, dls, **options)


def without_recorder(learn: Learner) -> Learner:
    """fastai's Recorder takes no losses in fp64."""
    return learn.remove_cbs([learn.recorder, learn.progress])


def first_windows(learn: Learner) -> tuple[torch.Tensor, torch.Tensor]:
    """Let an epoch be the first 4 windows in their order; return them."""
    windows = [learn.dls.train_ds[number] for number in range(4)]
    learn.dls.train.dataset, learn.dls.train.n, learn.dls.train.shuffle = windows, 4, False
    tokens, targets = (torch.stack(parts) for parts in zip(*windows, strict=True))
    return tokens, targets


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], within: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=within, atol=within)


def test_windows_are_those_of_the_data_set(corpus: ByteCorpusConfig) -> None:
    dls, data = byte_dataloaders(corpus, batch_size=3, device="cpu"), ByteCorpusDataset(corpus, seed=1)
    assert len(dls.train_ds) == data.windows_per_epoch
    ours = data.train_batch(0, data.windows_per_epoch).tokens.tolist()
    theirs = [dls.train_ds[number][0].tolist() for number in range(len(dls.train_ds))]
    assert sorted(ours) == sorted(theirs)
    for number, split in ((1, "validation"), (2, "test")):
        batches = list(data.eval_batches(split, 3))
        for (tokens, targets), batch in zip(dls[number], batches, strict=True):
            assert torch.equal(tokens, batch.tokens)
            assert torch.equal(targets, batch.targets)
    assert {tuple(row) for tokens, _ in dls.train for row in tokens.tolist()} <= {tuple(row) for row in theirs}


def test_epochs_are_shuffled(corpus: ByteCorpusConfig) -> None:
    dls = byte_dataloaders(corpus, batch_size=30, device="cpu")
    assert not torch.equal(dls.train.one_batch()[0], dls.train.one_batch()[0])
    assert torch.equal(dls.valid.one_batch()[0], dls.valid.one_batch()[0])


def test_fewer_windows_to_evaluate(corpus: ByteCorpusConfig) -> None:
    dls = byte_dataloaders(corpus, eval_limit=2, device="cpu")
    data = ByteCorpusDataset(corpus, seed=0)
    assert torch.equal(next(iter(dls.valid))[0], next(data.eval_batches("validation", 8, limit=2)).tokens)


@LOSSES
def test_scores_are_those_of_evaluate(corpus: ByteCorpusConfig, loss_chunk_length: int | None) -> None:
    """To the last byte: short windows, padding and all."""
    model = ReformerLM(config_of(loss_chunk_length=loss_chunk_length), seed=3)
    learn, data = learner_of(corpus, model, batch_size=2), ByteCorpusDataset(corpus, seed=0)
    for number, split in ((1, "validation"), (2, "test")):
        found = learn.validate(ds_idx=number)
        expected = evaluate(model, data, split, batch_size=2)
        assert found[1] == pytest.approx(expected.bits, rel=1e-6)
        assert [metric.name for metric in learn.metrics] == ["bits_per_byte", "accuracy"][: len(found) - 1]
        assert (found[2] if len(found) > 2 else None) == expected.accuracy


@LOSSES
@pytest.mark.parametrize("shift", ["inputs", "targets"])
@pytest.mark.parametrize("reversible", [True, False])
def test_gradients_are_the_models_own(
    corpus: ByteCorpusConfig, loss_chunk_length: int | None, shift: str, reversible: bool
) -> None:
    """After one batch of a Learner, with dropout and drawn rotations, in fp64."""
    config = config_of(loss_chunk_length=loss_chunk_length, shift=shift, reversible=reversible, dropout=0.2)
    learn = without_recorder(learner_of(corpus, ReformerLM(config, seed=3).double(), opt_func=SGD))
    tokens, targets = first_windows(learn)
    targets[0, :7] = -100
    learn.dls.train.dataset = list(zip(tokens, targets, strict=True))
    learn.create_opt()
    learn.opt.zero_grad = lambda: None
    learn.fit(1, 0.0, wd=0.0)
    ours = ReformerLM(config, seed=3).double().train()
    loss = ours(tokens, targets=targets).loss
    assert loss is not None
    loss.backward()
    close(gradients(learn.model.reformer), gradients(ours), 1e-10)


def test_no_logits_of_the_whole_sequence(corpus: ByteCorpusConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    original = ReformerLM.logits

    def logits(self: ReformerLM, hidden: torch.Tensor) -> torch.Tensor:
        shapes.append(hidden.shape)
        return original(self, hidden)

    monkeypatch.setattr(ReformerLM, "logits", logits)
    learner_of(corpus, config_of(loss_chunk_length=8)).fit(1, 1e-3)
    assert shapes
    assert {shape[1] for shape in shapes} == {8}


@LOSSES
def test_predictions_are_probabilities(corpus: ByteCorpusConfig, loss_chunk_length: int | None) -> None:
    model = ReformerLM(config_of(loss_chunk_length=loss_chunk_length), seed=3).eval()
    learn = learner_of(corpus, model, batch_size=3)
    probabilities, targets, losses = learn.get_preds(with_loss=True)
    assert probabilities.shape == (3, 40, 258)
    tokens = learn.dls.valid_ds[0][0][None]
    whole = ReformerLM(config_of(), seed=3).eval()(tokens)
    torch.testing.assert_close(probabilities[:1], whole.logits.softmax(-1))
    assert float(losses[0]) == pytest.approx(float(whole.loss), rel=1e-5)
    counted = (targets != -100).sum(1)
    assert counted.tolist() == [40, 40, 10]
    bits = float((losses * counted).sum() / counted.sum()) / math.log(2)
    assert learn.metrics[0].value == pytest.approx(bits, rel=1e-5)
    assert learn.validate()[1] == pytest.approx(bits, rel=1e-5)


@LOSSES
def test_gradient_accumulation(corpus: ByteCorpusConfig, loss_chunk_length: int | None) -> None:
    """Two batches of 2 take one step, that of a batch of 4; the loss that is shown is the batch's own."""
    config = config_of(loss_chunk_length=loss_chunk_length, attention=("full", "local"))
    models = []
    for size in (4, 2):
        callbacks = GradientAccumulation(4) if size == 2 else None
        learn = learner_of(corpus, ReformerLM(config, seed=3).double(), opt_func=SGD, batch_size=size, cbs=callbacks)
        without_recorder(learn)
        first_windows(learn)
        learn.fit(1, 0.5, wd=0.0)
        models.append(dict(learn.model.reformer.state_dict()))
    assert not torch.equal(models[0]["norm.weight"], ReformerLM(config, seed=3).double().norm.weight)
    close(models[1], models[0], 1e-12)


@LOSSES
def test_the_loss_falls_and_weights_come_back(corpus: ByteCorpusConfig, tmp_path: Path, loss_chunk_length: int | None) -> None:
    learn = learner_of(corpus, config_of(loss_chunk_length=loss_chunk_length))
    before = learn.validate()[1]
    learn.fit_one_cycle(2, 1e-2)
    after = learn.validate()[1]
    assert after < before - 1
    learn.save("novel")
    other = learner_of(corpus, config_of(loss_chunk_length=loss_chunk_length), seed=5)
    other.create_opt()
    other.load("novel")
    assert other.validate()[1] == after
    step = next(iter(learn.opt.state.values()))["step"]
    assert next(iter(other.opt.state.values()))["step"] == step > 0
    learn.model.reformer.save_pretrained(tmp_path / "model")
    again = ReformerLM.from_pretrained(tmp_path / "model")
    assert learner_of(corpus, again).validate()[1] == after
    learn.export("whole.pkl")
    loaded = load_learner(tmp_path / "whole.pkl")
    assert generate_text(loaded, "The ", length=6) == generate_text(learn, "The ", length=6)


def test_lr_find_leaves_the_weights(corpus: ByteCorpusConfig) -> None:
    learn = learner_of(corpus, config_of(loss_chunk_length=16))
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    found = learn.lr_find(num_it=12, show_plot=False)
    assert 1e-8 < found.valley < 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in learn.model.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"positions": "sinusoidal"}], ids=str)
def test_parameter_groups(changes: dict[str, Any]) -> None:
    model = LearnerModel(ReformerLM(config_of(**changes)))
    groups = parameter_groups(model)
    assert len(groups) == 2 + 2
    assert sorted(id(parameter) for group in groups for parameter in group) == sorted(map(id, model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = (r"embedding|positions", r"stack\.layers\.0\.", r"stack\.layers\.1\.", r"norm|head")
    for group, prefix in zip(groups, parts, strict=True):
        assert group
        assert all(re.match(rf"reformer\.({prefix})", names[id(parameter)]) for parameter in group)


def test_discriminative_rates_and_freezing(corpus: ByteCorpusConfig) -> None:
    learn = learner_of(corpus, config_of(loss_chunk_length=16), train_bn=False)
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    learn.freeze_to(-2)
    learn.fit(1, slice(1e-4, 1e-1))
    assert [hyper["lr"] for hyper in learn.opt.hypers] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    changed = {name for name, tensor in learn.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    trained = ("reformer.stack.layers.1.", "reformer.norm", "reformer.head")
    assert [name for name in changed if not name.startswith(trained)] == []
    learn.unfreeze()
    learn.fit(1, 1e-2)
    assert not torch.equal(learn.model.reformer.embedding.weight, before["reformer.embedding.weight"])


@LOSSES
def test_bf16(corpus: ByteCorpusConfig, loss_chunk_length: int | None) -> None:
    """Ours computes in bf16 on a CPU too, and the parameters stay fp32. fastai's own autocast is for NVIDIA GPUs alone."""
    model = ReformerLM(config_of(loss_chunk_length=loss_chunk_length), seed=3)
    learn, data = learner_of(corpus, model, precision="bf16", batch_size=2), ByteCorpusDataset(corpus, seed=0)
    found = learn.validate()[1]
    assert found == pytest.approx(evaluate(model, data, "validation", batch_size=2, precision="bf16").bits, rel=1e-5)
    assert found != pytest.approx(evaluate(model, data, "validation", batch_size=2).bits, rel=1e-7)
    learn.fit_one_cycle(2, 1e-2)
    assert learn.validate()[1] < found - 1
    assert {parameter.dtype for parameter in learn.model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")  # fastai's and torch's, that there is no GPU
@pytest.mark.parametrize("name", ["to_bf16", "to_fp16"])
@LOSSES
def test_fastais_mixed_precision(corpus: ByteCorpusConfig, loss_chunk_length: int | None, name: str) -> None:
    """It trains where it has no effect, on a CPU, and the adapter lets an autocast from outside in."""
    learn = getattr(learner_of(corpus, config_of(loss_chunk_length=loss_chunk_length)), name)()
    before = learn.validate()[1]
    learn.fit(1, 1e-2)
    assert learn.validate()[1] < before - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        assert learn.model(torch.full((1, 8), 70)).dtype == torch.bfloat16


def test_text(corpus: ByteCorpusConfig) -> None:
    learn = learner_of(corpus, config_of())
    learn.fit(1, 1e-2)
    expected = generate(learn.model.reformer, [encode("The old")], length=12, temperature=0.7, seed=4)
    assert generate_text(learn, "The old", length=12, temperature=0.7, seed=4) == decode(expected[0].tokens)


def test_a_model_of_data_in_which_0_is_a_symbol() -> None:
    tokens = torch.tensor([[0, 5, 7, 0, 5, 7]])
    model = ReformerLM(config_of(attention=("full",)), seed=3).eval()
    plain = model(tokens).logits
    assert torch.equal(LearnerModel(model, padding_token=None)(tokens), plain)
    assert not torch.equal(LearnerModel(model)(tokens), plain)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 10_000}, "not one whole batch"),
        ({"eval_limit": 0}, "eval_limit=0"),
        ({"valid": 0}, "validation split"),
        ({"causal": False}, "causal=False"),
        ({"max_length": 39}, "max_length=39"),
        ({"vocab_size": 100}, "vocab_size=100"),
        ({"precision": "fp16"}, "precision='fp16'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_user_can_get_wrong(corpus: ByteCorpusConfig, wrong: dict[str, Any], message: str) -> None:
    loader = {name: value for name, value in wrong.items() if name in ("batch_size", "eval_limit")}
    data = corpus.replace(valid=0) if "valid" in wrong else corpus
    model = {name: value for name, value in wrong.items() if name in SMALL or name in ("causal", "vocab_size")}
    options = {name: value for name, value in wrong.items() if name == "precision"}
    with pytest.raises(UserError, match=re.escape(message)):
        language_learner(config_of(**model), byte_dataloaders(data, device="cpu", **loader), **options)


def test_the_worked_example(corpus: ByteCorpusConfig) -> None:
    options = {"length": 64, "width": 16, "batch-size": 4, "accumulate": 4, "epochs": 2, "rate": 0.02, "new": 30}
    command = [sys.executable, str(ROOT / "examples" / "fastai_crime.py"), str(corpus.path)]
    command += [f"--{name}={value}" for name, value in options.items()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    scores = re.search(r"validation split: ([\d.]+) before, ([\d.]+) after\nIt was (.+)", result.stdout, re.S)
    assert scores is not None, result.stdout
    assert float(scores[2]) < float(scores[1]) - 1
    assert len(scores[3].encode("utf-8")) > 20


def test_the_page(corpus: ByteCorpusConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The install lines are those of the Makefile, and the example runs."""
    text = (ROOT / "docs" / "fastai.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    python (-m pip install .*)$", text, re.M)
    assert len(lines) == 2
    recipes = re.findall(r"^\t.*\$\(FASTAI_VENV\)/bin/python (-m pip install .*)$", (ROOT / "Makefile").read_text(), re.M)
    assert lines == recipes
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(Path(str(corpus.path)).parent)
    (Path("novel.txt")).write_text(SENTENCE * 200, encoding="utf-8")
    exec(compile(block, "fastai.md", "exec"), {})
