"""ReformerLM: the shift, the mask, the loss, shared parameters, initialisation, bad input."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import KINDS, config_of, gradients, tokens_of
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.ops.random import Draws

STRICTLY_CAUSAL: dict[str, dict[str, Any]] = {
    "local": {"attention": ("local",)},
    "full": {"attention": ("full",)},
    "full-separate": {"attention": ("full",), "shared_qk": False},
    "full-as-the-authors": {"attention": ("full",), "self_attention": "allowed"},
    "whole-buckets": {"attention": ("lsh",), "coverage": "bucket"},
    "mixed": {"attention": ("local", "lsh", "full"), "coverage": "bucket"},
    "regular-transformer": {"attention": ("full",), "reversible": False, "residual_streams": 1, "shared_qk": False},
}


@pytest.mark.parametrize("options", STRICTLY_CAUSAL.values(), ids=STRICTLY_CAUSAL)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_logits_at_a_place_do_not_depend_on_its_token_nor_on_later_ones(training: bool, options: dict[str, Any]) -> None:
    model = ReformerLM(config_of(**options)).double().train(training)
    tokens = tokens_of()

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, generator=torch.Generator().manual_seed(1)).logits.detach()

    before = logits(tokens)
    for place in (0, 1, 7, 12, 22):
        other = tokens.clone()
        other[:, place:] = tokens_of(seed=9)[:, place:]
        after = logits(other)
        assert torch.allclose(after[:, : place + 1], before[:, : place + 1], rtol=0, atol=1e-12)
        if place + 1 < 23:
            assert (after[:, place + 1 :] - before[:, place + 1 :]).abs().max() > 1e-3


@settings(max_examples=15)
@given(length=st.integers(1, 40), other_length=st.integers(1, 40))
def test_a_prefix_gives_the_prefix(length: int, other_length: int) -> None:
    """With whole buckets and a given number of them, even shorter text gives the same logits: what decoding needs."""
    model = ReformerLM(config_of(attention=("local", "lsh", "full"), coverage="bucket")).double().eval()
    tokens, common = tokens_of(1, 40), min(length, other_length)
    one, two = (model(tokens[:, :n]).logits for n in (length, other_length))
    torch.testing.assert_close(one[:, :common], two[:, :common], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_cross_entropy_of_the_logits(kind: str) -> None:
    model, tokens = ReformerLM(config_of(attention=KINDS[kind])).eval(), tokens_of()
    targets = tokens.masked_fill(torch.arange(23) % 3 == 0, -100)
    out = model(tokens, targets=targets)
    assert out.loss.item() == pytest.approx(functional.cross_entropy(out.logits.flatten(0, 1), targets.flatten()).item())
    by_default = model(tokens)
    assert torch.equal(by_default.logits, out.logits)
    assert by_default.loss.item() == pytest.approx(functional.cross_entropy(out.logits.flatten(0, 1), tokens.flatten()).item())


def test_the_loss_in_pieces() -> None:
    tokens = tokens_of()
    whole = ReformerLM(config_of()).eval()
    pieces = whole.with_config(loss_chunk_length=5)
    out = pieces(tokens, targets=tokens)
    assert out.logits is None
    assert out.loss.item() == pytest.approx(whole(tokens).loss.item(), rel=1e-6)
    assert pieces(tokens).logits is not None


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "stored"])
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_tokens_under_the_mask_never_matter(causal: bool, kind: str, side: str, reversible: bool) -> None:
    model = ReformerLM(config_of(attention=KINDS[kind], causal=causal, reversible=reversible))
    place = torch.arange(23)
    mask = {"right": place >= 15, "left": place < 6, "both": (place < 3) | (place >= 18)}[side].expand(2, -1).clone()
    mask[1] = False
    tokens = tokens_of()
    other = torch.where(mask, tokens_of(seed=3), tokens)
    assert not torch.equal(other, tokens)
    targets = tokens.masked_fill(mask, -100)
    first, second = (gradients(model, t, targets=targets, key_padding_mask=mask) for t in (tokens, other))
    assert first[0] == second[0]
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), name  # type: ignore[arg-type]
    if causal:
        by_default = model(other, key_padding_mask=mask, generator=torch.Generator().manual_seed(5))
        assert by_default.loss.item() == pytest.approx(first[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_right_padding_gives_the_logits_of_the_text_alone(kind: str) -> None:
    model = ReformerLM(config_of(attention=KINDS[kind])).double().eval()
    tokens = tokens_of()
    mask = torch.arange(23).expand(2, -1) >= 15
    padded, alone = model(tokens, key_padding_mask=mask).logits, model(tokens[:, :15]).logits
    torch.testing.assert_close(padded[:, :15], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["lsh", "full"])
def test_left_padding_without_positions_gives_the_logits_of_the_text_alone(kind: str) -> None:
    """Positions count from the first place, so only a model without them can be asked for equality."""
    model = ReformerLM(config_of(attention=KINDS[kind], positions="none")).double().eval()
    tokens = tokens_of()
    mask = torch.arange(23).expand(2, -1) < 6
    padded, alone = model(tokens, key_padding_mask=mask).logits, model(tokens[:, 6:]).logits
    # The first place reads the start token in both: under the mask stands the start token too.
    torch.testing.assert_close(padded[:, 6:], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_does_not_depend_on_its_batch(kind: str) -> None:
    model = ReformerLM(config_of(attention=KINDS[kind])).double().eval()
    tokens = tokens_of(batch=3)
    whole = model(tokens).logits
    for row in range(3):
        torch.testing.assert_close(model(tokens[row : row + 1]).logits[0], whole[row], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("global_random_state")
def test_draws() -> None:
    config = config_of(attention=KINDS["mixed"], dropout=0.1, attention_dropout=0.1)
    model, tokens = ReformerLM(config), tokens_of()

    def loss(seed: int | None = None) -> float:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return model(tokens, generator=generator).loss.item()

    assert loss(1) == loss(1) != loss(2)
    in_training = [loss() for _ in range(3)]
    assert len(set(in_training)) == 3
    model = ReformerLM(config)
    assert [loss() for _ in range(3)] == in_training
    model.eval()
    assert loss() == loss()
    # One generator moves on from call to call.
    generator = torch.Generator().manual_seed(1)
    assert model(tokens, generator=generator).loss != model(tokens, generator=generator).loss


def test_layers_hash_with_rotations_of_their_own() -> None:
    """reformer_fastai: a given seed means the same rotations in every layer, head and step."""
    seen = []
    model, tokens = ReformerLM(config_of(num_layers=3, dropout=0.0)), tokens_of(batch=3)
    with pytest.MonkeyPatch.context() as patch:

        normal = Draws.normal

        def draw(*arguments: Any) -> torch.Tensor:
            seen.append(normal(*arguments))
            return seen[-1]

        patch.setattr(Draws, "normal", draw)
        for _ in range(2):
            model(tokens)
        shapes = {rotations.shape for rotations in seen}
        singles = [r for rotations in seen for example in rotations for r in example]
        assert shapes == {(3, 2, 5, 2, 2)}
        assert len({tuple(r.flatten().tolist()) for r in singles}) == 2 * 3 * 3 * 2
        seen.clear()
        model.eval()
        for _ in range(2):
            model(tokens)
        assert {rotations.shape for rotations in seen} == {(1, 2, 5, 2, 2)}
        assert torch.equal(torch.stack(seen[:3]), torch.stack(seen[3:]))


def test_buckets_follow_the_length_of_each_call() -> None:
    """transformers freezes `num_buckets` at the first, maybe short, input."""
    long, short = tokens_of(length=40), tokens_of(length=5)
    config = config_of(num_buckets=None, chunk_length=4)
    used, unused = ReformerLM(config).eval(), ReformerLM(config).eval()
    used(short)
    assert torch.equal(used(long).logits, unused(long).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 6, 7, 39, 40])
def test_any_length(length: int, kind: str) -> None:
    out = ReformerLM(config_of(attention=KINDS[kind]))(tokens_of(1, length))
    assert out.logits.shape == (1, length, 19)
    assert out.loss.isfinite()


def test_a_new_model_predicts_about_nothing() -> None:
    loss = ReformerLM(config_of(vocab_size=200, d_model=64))(tokens_of(vocab_size=200)).loss.item()
    assert loss == pytest.approx(math.log(200), abs=1.0)


class TestWithConfig:
    def test_shares_the_parameters(self) -> None:
        model, tokens = ReformerLM(config_of(attention=KINDS["mixed"], dropout=0.1)).eval(), tokens_of()
        other = model.with_config(num_hashes=8, reversible=False, dropout=0.0)
        assert other.config.num_hashes == 8
        assert [id(p) for p in other.parameters()] == [id(p) for p in model.parameters()]
        assert not other.training
        with torch.no_grad():
            next(model.parameters()).add_(1)
        assert torch.equal(model.with_config(num_hashes=8)(tokens).logits, other(tokens).logits)

    @pytest.mark.parametrize(("kind", "other"), [("lsh", "full"), ("full", "lsh")])
    def test_swaps_shared_attention(self, kind: str, other: str) -> None:
        """Table 2: a model trained with one kind is evaluated with the other; many rounds approach full attention."""
        model = ReformerLM(config_of(attention=(kind,), num_layers=1, positions="none")).double().eval()
        swapped, tokens = model.with_config(attention=(other,)), tokens_of()
        full = (model if kind == "full" else swapped)(tokens).logits
        errors = [
            (model.with_config(attention=("lsh",), num_hashes=rounds, chunks_before=3)(tokens).logits - full).norm().item()
            for rounds in (1, 30)
        ]
        assert errors[1] < 0.1 * errors[0]

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"attention": ("local",)}, "attention.function.key"),
            ({"d_ff": 15}, "dense_in"),
            ({"num_layers": 4}, "stack.layers.3"),
            ({"tie_embeddings": True}, "head"),
            ({"positions": "none"}, "positions"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
    )
    def test_says_which_parameter_is_missing(self, changes: dict[str, Any], named: str) -> None:
        with pytest.raises(UserError, match=named):
            ReformerLM(config_of()).with_config(**changes)


class TestInitialisation:
    @pytest.mark.parametrize(
        "changes",
        [
            {"reversible": False}, {"attention": ("full",)}, {"attention": ("local",)}, {"num_layers": 5}, {"num_hashes": 8},
            {"dropout": 0.5}, {"tie_embeddings": True}, {"positions": "none"}, {"reversible": False, "residual_streams": 1},
            {"shared_qk": False, "attention": ("full",)}, {"vocab_size": 19, "max_length": 39},
        ],
        ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
    )  # fmt: skip
    def test_parameters_of_one_name_and_shape_start_alike(self, changes: dict[str, Any]) -> None:
        """reformer_fastai: the arms of one comparison start differently."""
        ours, theirs = (dict(ReformerLM(config_of(**c)).named_parameters()) for c in ({}, changes))
        common = {n for n in ours.keys() & theirs.keys() if ours[n].shape == theirs[n].shape}
        assert len(common) > 5
        for name in common:
            assert torch.equal(ours[name], theirs[name]), name

    def test_no_two_parameters_are_the_same_draw(self) -> None:
        parameters = [p for p in ReformerLM(config_of()).parameters() if p.dim() > 1]
        firsts = {round((p.flatten() / p.abs().max())[0].item(), 6) for p in parameters}
        assert len(firsts) == len(parameters)

    def test_another_seed_gives_other_values(self) -> None:
        one, two = (ReformerLM(config_of(), seed=seed).embedding.weight for seed in (0, 1))
        assert not torch.equal(one, two)

    @pytest.mark.usefixtures("global_random_state")
    def test_building_leaves_the_global_random_state_alone(self) -> None:
        ReformerLM(config_of())

    def test_values_are_the_authors(self) -> None:
        """Glorot uniform for each head, standard normal embeddings and positions, zero biases, unit norms."""
        model = ReformerLM(config_of(d_model=64, d_ff=96, num_heads=4, d_head=32, vocab_size=300, max_length=300, num_layers=1))
        for name, p in model.named_parameters():
            if p.dim() == 1:
                assert (p == (1 if name.endswith("norm.weight") else 0)).all(), name
            elif name.startswith(("embedding", "positions")):
                assert p.std().item() == pytest.approx(1, abs=0.02), name
            else:
                fans = 64 + 32 if ".function." in name and "dense" not in name else sum(p.shape)
                bound = math.sqrt(6 / fans)
                assert p.abs().max().item() == pytest.approx(bound, rel=0.01), name
                assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name


@pytest.mark.parametrize(
    ("named", "call"),
    [
        (r"\(2, 0\)", {"tokens": torch.zeros(2, 0, dtype=torch.long)}),
        (r"\(0, 5\)", {"tokens": torch.zeros(0, 5, dtype=torch.long)}),
        (r"\(2, 41\).*max_length=40", {"tokens": torch.zeros(2, 41, dtype=torch.long)}),
        (r"\(5,\)", {"tokens": torch.zeros(5, dtype=torch.long)}),
        (r"token 999 is not in 0\.\.", {"tokens": torch.tensor([[1, 999]])}),
        (r"token -1 is not in 0\.\.", {"tokens": torch.tensor([[-1, 1]])}),
        (r"targets of shape \(2, 4\)", {"targets": torch.zeros(2, 4, dtype=torch.long)}),
        (r"key_padding_mask of shape \(2, 6\)", {"key_padding_mask": torch.zeros(2, 6, dtype=torch.bool)}),
        (r"key_padding_mask of torch.int64.*mask == 0", {"key_padding_mask": torch.ones(2, 5, dtype=torch.long)}),
        (r"tokens of torch.int32: expected torch.int64", {"tokens": torch.ones(2, 5, dtype=torch.int32)}),
        (r"targets of torch.float32", {"targets": torch.ones(2, 5)}),
        (r"target -1 is not in 0.*-100: not counted", {"targets": torch.full((2, 5), -1)}),
        (r"target 999 is not in 0", {"targets": torch.full((2, 5), 999)}),
    ],
)
def test_errors_name_the_value(named: str, call: dict[str, Any]) -> None:
    call = {"tokens": torch.ones(2, 5, dtype=torch.long)} | call
    with pytest.raises(UserError, match=named):
        ReformerLM(config_of())(**call)


def test_an_unknown_backend_is_named_when_it_is_used() -> None:
    with pytest.raises(UserError, match="backend='abacus'"):
        ReformerLM(config_of(lsh_backend="abacus"))(tokens_of())


def test_shifted_targets_are_shifted_inputs_without_the_start() -> None:
    """shift="targets" sees one token more: over [0, tokens] it computes what shift="inputs" does over tokens."""
    model = ReformerLM(config_of(attention=("full",))).eval()
    other = model.with_config(shift="targets")
    tokens = tokens_of(length=20)
    begun = functional.pad(tokens, (1, 0), value=0)
    expected, found = model(tokens), other(begun)
    assert expected.logits is not None
    assert found.logits is not None
    torch.testing.assert_close(found.logits[:, :-1], expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.loss, expected.loss)
    chunked = other.with_config(loss_chunk_length=6)(begun, targets=begun)
    torch.testing.assert_close(chunked.loss, expected.loss)
    assert other.align(begun)[:, :-1].equal(tokens)


def test_a_default_device_changes_no_parameter() -> None:
    """As of `torch.set_default_device("cuda")`: values are drawn on the host, by generators of the host."""
    usual = ReformerLM(config_of(), seed=3)
    with torch.device("meta"):
        other = ReformerLM(config_of(), seed=3)
    for name, value in usual.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
