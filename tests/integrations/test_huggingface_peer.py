"""A converted model computes what transformers computes: logits and all gradients, given the same rotations.

In double precision; in single precision transformers loses the logarithm of its constant -1e5 in rows that see nothing else.
Needs transformers (`make test-hf`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: `make test-hf` runs this")

from transformers import ReformerConfig as TheirConfig
from transformers import ReformerForMaskedLM, ReformerModel, ReformerModelWithLMHead

from reformer_lab.integrations.huggingface import from_huggingface, settled_num_buckets, to_huggingface
from reformer_lab.layers import attention as attention_layers
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.ops.random import Draws

EXACT, SINGLE = 1e-9, 1e-5
SMALL: dict[str, Any] = {
    "attention_head_size": 6, "axial_pos_shape": (4, 8), "axial_pos_embds_dim": (4, 12), "feed_forward_size": 20,
    "hidden_size": 16, "is_decoder": True, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
    "max_position_embeddings": 32, "num_attention_heads": 2, "num_buckets": 4, "vocab_size": 23, "initializer_range": 0.4,
}  # fmt: skip
BOTH_WAYS = {"is_decoder": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 1}
MODELS: dict[str, dict[str, Any]] = {
    "lsh, 1 round": {"attn_layers": ["lsh", "lsh"]},
    "lsh, 8 rounds, factors": {"attn_layers": ["lsh"], "num_hashes": 8, "num_buckets": (2, 4)},
    "local": {"attn_layers": ["local", "local"]},
    "mixed, 4 rounds": {"attn_layers": ["local", "lsh", "lsh", "local"], "num_hashes": 4},
    "mixed, 2 rounds, chunks of two lengths": {
        "attn_layers": ["local", "lsh"], "num_hashes": 2, "lsh_attn_chunk_length": 8, "lsh_num_chunks_before": 2,
    },
    "own number of buckets": {"attn_layers": ["lsh"], "num_hashes": 2, "num_buckets": None},
    "plain positions, gelu": {"attn_layers": ["lsh", "local"], "axial_pos_embds": False, "hidden_act": "gelu_new"},
    "bidirectional, 3 rounds": {"attn_layers": ["lsh", "local"], "num_hashes": 3, "num_buckets": (4, 2), **BOTH_WAYS},
    "bidirectional, back alone": {"attn_layers": ["local", "lsh"], "is_decoder": False},
    "bidirectional, windows around the circle": {
        "attn_layers": ["lsh", "local"], **BOTH_WAYS, "lsh_num_chunks_before": 6, "local_num_chunks_before": 8,
    },
}  # fmt: skip
# The published checkpoints' sizes, at a length (and of enwik8's twelve layers, two) that a test has the time for.
ENWIK8: dict[str, Any] = {
    "attention_head_size": 128, "attn_layers": ["local", "lsh"], "axial_pos_shape": (16, 32),
    "axial_pos_embds_dim": (256, 768), "feed_forward_size": 4096, "hidden_size": 1024, "is_decoder": True,
    "local_attn_chunk_length": 128, "lsh_attn_chunk_length": 256, "max_position_embeddings": 512, "num_attention_heads": 8,
    "num_buckets": 512, "num_hashes": 4, "vocab_size": 258,
}  # fmt: skip
CRIME: dict[str, Any] = {
    "attention_head_size": 64, "attn_layers": ["local", "lsh"] * 3, "axial_pos_shape": (16, 32),
    "axial_pos_embds_dim": (64, 192), "feed_forward_size": 512, "hidden_size": 256, "is_decoder": True,
    "local_attn_chunk_length": 64, "lsh_attn_chunk_length": 64, "max_position_embeddings": 512, "num_attention_heads": 2,
    "num_buckets": (64, 128), "num_hashes": 1, "vocab_size": 320,
}  # fmt: skip


def their_model(bare: bool = False, **fields: Any) -> nn.Module:
    """Return a random model of theirs in double precision, without dropout, in training mode."""
    torch.manual_seed(len(str(fields)))
    config = TheirConfig(
        **fields, hidden_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
        use_cache=False,
    )  # fmt: skip
    kind = ReformerModel if bare else ReformerModelWithLMHead if config.is_decoder else ReformerForMaskedLM
    model = kind(config).double()
    with torch.no_grad():  # biases and norms that matter
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.train()


@pytest.fixture
def same_rotations(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Run their forward pass, and give each LSH layer of the next forward pass of ours the rotations drawn there."""
    drawn: list[Tensor] = []
    draw, draw_ours = torch.randn, Draws.normal

    def recorded(*arguments: Any, **named: Any) -> Tensor:
        drawn.append(draw(*arguments, **named))
        return drawn[-1]

    def run(theirs: Callable[[], Any]) -> Any:
        drawn.clear()
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randn", recorded)
            result = theirs()
        queue = [rotations[None] for rotations in drawn]

        def normal(self: Draws, name: str, *shape: int) -> Tensor:
            # They hash nothing where a sequence fits into one chunk; then no bucket matters.
            return queue.pop(0).expand(shape) if queue else draw_ours(self, name, *shape)

        monkeypatch.setattr(Draws, "normal", normal)
        return result

    return run


def inputs(config: Any, length: int, padded: bool, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return tokens and an attention mask (batch, length), 1 = there."""
    tokens = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(batch, length, dtype=torch.long)
    if padded:
        mask[0, length - length // 3 :] = 0
        mask[1, : length // 4] = 0
    return tokens, mask


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max())


def assert_same_gradients(theirs: nn.Module, ours: ReformerLM) -> None:
    converted = from_huggingface(theirs).state_dict()
    # The gradients in the place of the parameters: the conversion maps them too.
    with torch.no_grad():
        for parameter in theirs.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    expected = from_huggingface(theirs).state_dict()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert not torch.equal(expected[name], converted[name])
        error = float((parameter.grad - expected[name]).abs().max())
        scale = max(float(expected[name].abs().max()), 1e-3 * largest)
        assert error <= EXACT * scale, f"{name}: {error / scale:.3g}"


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "stored"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name: str, padded: bool, reversible: bool, same_rotations: Any) -> None:
    theirs = their_model(**SMALL | MODELS[name])
    tokens, mask = inputs(theirs.config, 32, padded)
    expected = same_rotations(lambda: theirs(tokens, attention_mask=mask).logits)
    ours = from_huggingface(theirs, reversible=reversible).train()
    logits = ours(tokens, key_padding_mask=mask == 0).logits
    there = mask == 1
    assert difference(logits[there], expected[there]) < EXACT
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * there[..., None]
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 13, 27, 31, 32])
@pytest.mark.parametrize("name", ["lsh, 1 round", "mixed, 4 rounds", "local", "bidirectional, 3 rounds"])
def test_any_length_in_evaluation(name: str, length: int, same_rotations: Any) -> None:
    """transformers pads to a multiple of the chunk and masks; nothing of it is seen here."""
    theirs = their_model(**SMALL | MODELS[name]).eval()
    tokens, _ = inputs(theirs.config, length, False)
    expected = same_rotations(lambda: theirs(tokens).logits)
    found = from_huggingface(theirs).eval()(tokens).logits
    assert difference(found, expected) < EXACT


@pytest.mark.parametrize("name", ["mixed, 4 rounds", "bidirectional, 3 rounds"])
def test_the_bare_model(name: str, same_rotations: Any) -> None:
    theirs = their_model(bare=True, **SMALL | MODELS[name]).eval()
    tokens, mask = inputs(theirs.config, 32, True)
    expected = same_rotations(lambda: theirs(tokens, attention_mask=mask).last_hidden_state)
    found = from_huggingface(theirs).eval().hidden_states(tokens, key_padding_mask=mask == 0)
    assert difference(found[mask == 1], expected[mask == 1]) < EXACT


def test_the_loss(same_rotations: Any) -> None:
    theirs = their_model(**SMALL | MODELS["mixed, 4 rounds"])
    tokens, mask = inputs(theirs.config, 32, True)
    labels = tokens.masked_fill(mask == 0, -100)
    labels[1, 8] = -100  # padding comes before it, whose rows are no one's
    expected = same_rotations(lambda: theirs(tokens, attention_mask=mask, labels=labels).loss)
    ours = from_huggingface(theirs)
    found = ours(tokens, targets=labels, key_padding_mask=mask == 0).loss
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)  # they compute it in fp32


@pytest.mark.slow
@pytest.mark.parametrize("fields", [ENWIK8, CRIME], ids=["enwik8", "crime-and-punishment"])
def test_published_sizes(fields: dict[str, Any], same_rotations: Any) -> None:
    theirs = their_model(**fields)
    tokens, mask = inputs(theirs.config, 512, False, batch=1)
    expected = same_rotations(lambda: theirs(tokens, attention_mask=mask).logits)
    ours = from_huggingface(theirs).train()
    logits = ours(tokens).logits
    assert difference(logits, expected) < EXACT
    logits.square().mean().backward()
    expected.square().mean().backward()
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("fields", [CRIME, SMALL | MODELS["mixed, 4 rounds"]], ids=["crime-and-punishment", "4 rounds"])
def test_single_precision(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against theirs in double precision, with their buckets: a vector between two buckets may round to either."""
    theirs = their_model(**fields).eval()
    length = theirs.config.max_position_embeddings
    tokens, _ = inputs(theirs.config, length, False)
    buckets: list[Tensor] = []
    for layer in theirs.modules():
        if type(layer).__name__ == "LSHSelfAttention":
            layer.register_forward_hook(lambda module, inputs, output: buckets.append(output.buckets))
    expected = theirs(tokens).logits
    rounds = torch.arange(theirs.config.num_hashes)[:, None]
    count = int(torch.tensor(theirs.config.num_buckets).prod())
    monkeypatch.setattr(attention_layers, "lsh_buckets", lambda *_, **__: buckets.pop(0) - rounds * count)
    found = from_huggingface(theirs).float().eval()(tokens).logits
    assert difference(found, expected) < SINGLE


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["head", "bare"])
def test_folders_there_and_back(name: str, kind: str, tmp_path: Path) -> None:
    theirs = their_model(bare=kind == "bare", **SMALL | MODELS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_huggingface(tmp_path / "theirs")
    to_huggingface(ours, tmp_path / "again", head=kind == "head")
    again = type(theirs).from_pretrained(tmp_path / "again", torch_dtype=torch.float64)
    for (one_name, one), (other_name, other) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
        assert one_name == other_name
        assert torch.equal(one, other), one_name
    theirs_fields, fields = theirs.config.to_dict(), again.config.to_dict()
    unlike = {field for field in theirs_fields if theirs_fields[field] != fields.get(field)}
    if not theirs.config.axial_pos_embds:
        unlike -= {"axial_pos_shape", "axial_pos_embds_dim"}
    assert unlike <= {"_name_or_path", "initializer_range", "bos_token_id", "eos_token_id", "num_buckets", "use_cache",
                      "transformers_version", "architectures", "dtype", "torch_dtype"}  # fmt: skip


@pytest.mark.parametrize("file", ["safetensors", "bin", "shards", "shards of bin"])
def test_every_kind_of_file(file: str, tmp_path: Path) -> None:
    theirs = their_model(**SMALL | MODELS["mixed, 4 rounds"])
    safe = not file.endswith("bin")
    theirs.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size="8KB" if "shards" in file else "1GB")
    assert (len(list(tmp_path.glob("*.index.json"))) == 1) == ("shards" in file)
    for name, tensor in from_huggingface(tmp_path).state_dict().items():
        assert torch.equal(tensor, from_huggingface(theirs).state_dict()[name]), name


@pytest.mark.parametrize("chunk_length", [4, 64])
@pytest.mark.parametrize("places", [64, 4096, 524288])
def test_settled_number_of_buckets(chunk_length: int, places: int) -> None:
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    for length in (chunk_length + 1, 64, 1000, 4096, 524288):
        if chunk_length < length <= places:
            layer = LSHSelfAttention(TheirConfig(**SMALL | {
                "lsh_attn_chunk_length": chunk_length, "max_position_embeddings": places, "num_buckets": None,
            }))  # fmt: skip
            layer._set_num_buckets(length)
            found = settled_num_buckets(length, chunk_length, places)
            assert found == (tuple(layer.num_buckets) if isinstance(layer.num_buckets, list) else layer.num_buckets)
