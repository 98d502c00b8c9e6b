"""One attention side by side."""

import pytest
import torch

from reformer_lab.benchmarks import attention, peers
from reformer_lab.benchmarks.attention import (
    COLUMNS,
    KINDS,
    LAYERS,
    MACHINE_COLUMNS,
    OPERATORS,
    SCALING_COLUMNS,
    LayerShape,
    bench_attention,
    bench_scaling,
    build,
    choose_contenders,
)
from reformer_lab.errors import UserError
from reformer_lab.ops.lsh_attention import unusable

SHAPE = LayerShape(num_heads=2, d_head=16, num_hashes=2, chunk_length=16)
CPU = torch.device("cpu")
HERE = [name for name in LAYERS if attention.why_not(name, CPU, "fp32") is None]


@pytest.mark.slow
def test_rows() -> None:
    rows = list(bench_attention([256, 128], ["exact", "lsh-torch"], shape=SHAPE, repeats=2))
    assert [(row["length"], row["contender"]) for row in rows] == [
        (length, name) for length in (128, 256) for name in ("exact", "lsh-torch")]
    for row in rows:
        assert set(row) | set(MACHINE_COLUMNS) | {"error", "buckets"} == set(COLUMNS)
        assert (row["what"], row["pass"], row["status"], row["repeats"]) == ("layer", "forward+backward", "finished", 2)
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["contender"] != "exact" or row["times_faster"] == 1
        assert row["peak_bytes"] > row["above_baseline_bytes"] >= 0
    assert [row.get("buckets") for row in rows] == [None, "16", None, "32"]


@pytest.mark.slow
def test_scaling() -> None:
    rows = list(bench_scaling([4096, 2048], "lsh-torch", shape=SHAPE, repeats=2))
    assert [row["length"] for row in rows] == [2048, 4096]
    for row in rows:
        assert set(row) | set(MACHINE_COLUMNS) | {"error"} == set(SCALING_COLUMNS)
        assert row["seconds_per_token"] == row["median"] / row["length"]
    assert (rows[0]["relative_time"], rows[0]["relative_memory"]) == (1, 1)
    assert rows[1]["relative_time"] == pytest.approx(rows[1]["median"] / rows[0]["median"] / 2)
    assert rows[1]["relative_memory"] == pytest.approx(rows[1]["above_baseline_bytes"] / rows[0]["above_baseline_bytes"] / 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize(("what", "name"), [(what, name) for what in KINDS for name in KINDS[what] if name in HERE])
def test_every_contender_computes(what: str, name: str, direction: str, precision: str) -> None:
    work = build({"kind": "attention", "contender": name, "length": 128, "what": what, "pass": direction, "device": "cpu",
                  "precision": precision, "shape": {"num_heads": 2, "d_head": 16, "chunk_length": 16}})
    for _ in range(2):
        work.run()
    assert "version" in work.facts


@pytest.mark.parametrize("name", HERE)
def test_layers_are_causal(name: str) -> None:
    """And of the same width. Where buckets depend on a draw, the first token sees itself alone in any case."""
    torch.manual_seed(0)
    problem = LAYERS[name](SHAPE, 64)
    x = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0))
    later = x.clone()
    later[:, 40:] += 1
    one, other = problem.function(x), problem.function(later)
    assert one.shape == x.shape
    torch.testing.assert_close(one[:, 0], other[:, 0], atol=0.02, rtol=0)  # a peer loses digits where only itself is seen
    assert not torch.allclose(one[:, 50], other[:, 50])
    weights = sum(parameter.numel() for parameter in problem.parameters)
    assert weights - 32 * 32 * (4 if name == "exact" else 3) in (0, 32)  # reformer-pytorch has a bias


def test_exact_operator_is_exact() -> None:
    problem = OPERATORS["exact"](SHAPE, 5)
    q, k, v = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(problem.function(q, k, v), scores.softmax(-1) @ v)


def test_who_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(peers, "why_not", lambda name: "not installed; `make bench-environment` ...")
    chosen = choose_contenders("layer", CPU, "fp32", say=said.append)
    ours = [name for name in ("lsh-native", "lsh-torch") if unusable(name.removeprefix("lsh-")) is None]
    assert chosen == ["exact", *ours]
    assert "without transformers: not installed; `make bench-environment` ..." in said
    assert not any("triton" in line for line in said)
    assert choose_contenders("layer", CPU, "fp32", ["lsh-torch"]) == ["lsh-torch"]
    assert choose_contenders("operator", CPU, "fp32", ["transformers", "exact"]) == ["exact"]
    with pytest.raises(UserError, match="'flash' does not exist; choose from exact, lsh-native"):
        choose_contenders("layer", CPU, "fp32", ["flash"])
    with pytest.raises(UserError, match="'transformers' cannot run: not installed"):
        choose_contenders("layer", CPU, "fp32", ["transformers"])
    with pytest.raises(UserError, match="--what step: choose operator or layer"):
        choose_contenders("step", CPU, "fp32")


def test_what_a_missing_peer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.DISTRIBUTIONS, "no-such-package", "1.0")
    assert "`make bench-environment` makes an environment with no-such-package 1.0" in (peers.why_not("no-such-package") or "")
