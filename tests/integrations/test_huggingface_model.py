"""Our models as transformers' own: Auto classes, generate, Trainer. Needs transformers (`make test-hf`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: `make test-hf` runs this")

from huggingface_hub import RepoUrl
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.utils import hub

from reformer_lab.errors import UserError
from reformer_lab.integrations.huggingface_model import ReformerLabConfig, ReformerLabForCausalLM, as_huggingface
from reformer_lab.integrations.huggingface_tokenizers import byte_tokenizer
from reformer_lab.models.config import NUMERICS, ReformerConfig
from reformer_lab.models.language_model import ReformerLM

SMALL: dict[str, Any] = {
    "vocab_size": 13, "d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2, "d_head": 8, "max_length": 40,
    "attention": ("local", "lsh"), "num_hashes": 2, "num_buckets": 4, "chunk_length": 8, "local_chunk_length": 8,
}  # fmt: skip
SHIFTS: dict[str, dict[str, Any]] = {"inputs": {}, "targets": NUMERICS["huggingface"]}


def model_of(shift: str = "inputs", **changes: Any) -> ReformerLM:
    return ReformerLM(ReformerConfig(**SMALL | SHIFTS[shift] | changes), seed=6).eval()


def tokens_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(2, 13, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_auto_classes(shift: str, tmp_path: Path) -> None:
    ours = model_of(shift)
    as_huggingface(ours).save_pretrained(tmp_path)
    assert "reformer_lab.integrations" in (tmp_path / "README.md").read_text()
    assert AutoConfig.from_pretrained(tmp_path).reformer == ours.config
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(model, ReformerLabForCausalLM)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(model.reformer.state_dict()[name], tensor), name
    tokens = tokens_of(2, 20)
    assert torch.equal(model(tokens).logits, as_huggingface(ours)(tokens).logits)


def test_a_new_model_has_our_initial_values() -> None:
    model = AutoModelForCausalLM.from_config(ReformerLabConfig(model=SMALL))
    assert torch.equal(model.reformer.embedding.weight, ReformerLM(ReformerConfig(**SMALL)).embedding.weight)


@pytest.mark.parametrize("shift", SHIFTS)
def test_logits_predict_the_next_token(shift: str) -> None:
    ours = model_of(shift, attention=("full",)) if shift == "inputs" else model_of(shift)
    tokens = tokens_of(2, 20)
    found = as_huggingface(ours)(tokens).logits
    assert found.shape == (2, 20, 13)
    expected = ours(tokens).logits
    assert expected is not None
    if shift == "inputs":
        torch.testing.assert_close(found[:, :-1], expected[:, 1:], rtol=0, atol=1e-5)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["full", "local", "lsh"])
def test_padding_on_either_side(kind: str, side: str, shift: str) -> None:
    """Each text gets the logits that it has alone. Not around the corner: there the chunks follow the longest text."""
    model = as_huggingface(model_of(shift, **{"attention": (kind,), "wrap_around": False, "chunk_length": 2}))
    tokens, mask = tokens_of(2, 12), torch.ones(2, 12, dtype=torch.long)
    there = slice(5, None) if side == "left" else slice(None, 7)
    mask[0] = 0
    mask[0, there] = 1
    found, loss = (getattr(model(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)), name)
                   for name in ("logits", "loss"))  # fmt: skip
    alone = [model(tokens[:1, there], labels=tokens[:1, there]), model(tokens[1:], labels=tokens[1:])]
    torch.testing.assert_close(found[:1, there], alone[0].logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1:], alone[1].logits, rtol=0, atol=1e-5)
    counts = (7, 12) if shift == "inputs" else (6, 11)
    expected = (alone[0].loss * counts[0] + alone[1].loss * counts[1]) / sum(counts)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_full_length() -> None:
    model = as_huggingface(model_of())
    tokens = tokens_of(1, 40)
    out = model(tokens, labels=tokens)
    assert out.logits.shape == (1, 40, 13)
    assert torch.equal(out.loss, model.reformer(tokens).loss)
    with pytest.raises(UserError, match="max_length=40"):
        model(tokens)
    assert isinstance(model(tokens[:, :9], return_dict=False), tuple)


@pytest.mark.parametrize("shift", SHIFTS)
def test_greedy_generation_is_greedy(shift: str) -> None:
    model = as_huggingface(model_of(shift))
    model.generation_config.eos_token_id = None
    tokens = tokens_of(1, 5)
    found = model.generate(tokens, max_new_tokens=8, do_sample=False)
    for _ in range(8):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, tokens)
    sampled = model.generate(tokens_of(2, 5), max_new_tokens=4, do_sample=True, num_beams=2)
    assert sampled.shape == (2, 9)


def test_the_trainer(tmp_path: Path) -> None:
    """It learns to count, and its checkpoint is a folder that the Auto classes read."""
    data = [{"input_ids": (torch.arange(24) + n) % 10 + 2, "labels": (torch.arange(24) + n) % 10 + 2} for n in range(80)]
    model = as_huggingface(model_of(dropout=0.05).train())
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=60, per_device_train_batch_size=8, learning_rate=2e-2, report_to=[],
        save_strategy="no", logging_steps=10, use_cpu=True, seed=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:8])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert before > 2
    assert after < 0.5
    trainer.save_model(str(tmp_path / "model"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    found = again.generate(torch.arange(2, 10)[None], max_new_tokens=4, do_sample=False, eos_token_id=12)
    assert found[0, 8:].tolist() == [10, 11, 2, 3]


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What `push_to_hub` sends to a repository that is new: the content of each file."""
    files: dict[str, bytes] = {}

    def commit(repo_id: str, operations: list[Any], **_: Any) -> None:
        assert repo_id == "someone/novels"
        for operation in operations:
            with operation.as_file() as file:
                files[operation.path_in_repo] = file.read()

    def load(*_: Any, **__: Any) -> Any:
        if "README.md" not in files:
            raise EntryNotFoundError("there is no README.md")
        return hub.ModelCard(files["README.md"].decode())

    monkeypatch.setattr(hub, "create_repo", lambda repo_id, **_: RepoUrl(f"https://huggingface.co/{repo_id}"))
    monkeypatch.setattr(hub, "create_commit", commit)
    monkeypatch.setattr(hub.ModelCard, "load", load)
    return files


@pytest.mark.parametrize("model_first", [True, False])
def test_push_to_hub(
    model_first: bool, pushed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it looks for a folder of the repository's name
    ours = model_of(vocab_size=258)
    parts = [(as_huggingface(ours), {"tags": ["novels"]}), (byte_tokenizer(model_max_length=39), {})]
    for part, options in parts if model_first else reversed(parts):
        part.push_to_hub("someone/novels", **options)
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "special_tokens_map.json"} == set(pushed)  # fmt: skip
    config = json.loads(pushed["config.json"])
    assert (config["model_type"], config["architectures"]) == ("reformer_lab", ["ReformerLabForCausalLM"])
    assert "auto_map" not in config  # the code comes with this package, not with the weights
    card = pushed["README.md"].decode()
    for named in ("import reformer_lab.integrations.huggingface_model", 'from_pretrained("someone/novels")', "- novels",
                  "library_name: transformers"):  # fmt: skip
        assert named in card, card
    for name, content in pushed.items():
        (tmp_path / name).write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model.reformer.head.weight, ours.head.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("Reformer")["input_ids"]) == "Reformer"


def test_a_card_that_is_on_the_hub_stays(pushed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pushed["README.md"] = b"---\ntags: [mine]\n---\n# Written by hand"
    as_huggingface(model_of()).push_to_hub("someone/novels")
    assert "# Written by hand" in pushed["README.md"].decode()


@pytest.mark.parametrize("damage", ["missing", "more", "shape"])
def test_weights_that_do_not_fit(damage: str, tmp_path: Path) -> None:
    as_huggingface(model_of()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "reformer.stack.layers.1.attention.norm.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "more":
        weights[name := "reformer.more"] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(5)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=str(tmp_path)):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_only_language_models() -> None:
    with pytest.raises(UserError, match="causal=False"):
        as_huggingface(model_of(causal=False))
