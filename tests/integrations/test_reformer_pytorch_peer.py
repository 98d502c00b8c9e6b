"""What docs/migrating.md says of reformer-pytorch: its attention is an option here, and none of its arguments is left out."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from reformer_lab.ops import lsh_attention

peer = pytest.importorskip("reformer_pytorch.reformer_pytorch", reason="reformer-pytorch is not installed (make test-hf)")

BATCH, LENGTH, D, ROUNDS, CHUNK = 3, 64, 16, 4, 8


@pytest.mark.parametrize(
    ("across", "duplicates"), [(True, True), (False, True), (False, False)], ids=["defaults", "own bucket", "own bucket, once"]
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_the_attention_is_an_option(causal: bool, across: bool, duplicates: bool) -> None:
    torch.manual_seed(0)
    layer = peer.LSHAttention(bucket_size=CHUNK, n_hashes=ROUNDS, causal=causal, attend_across_buckets=across,
                              allow_duplicate_attention=duplicates).eval().double()  # fmt: skip
    qk, v = (torch.randn(BATCH, LENGTH, D, dtype=torch.float64) for _ in range(2))
    expected, _, buckets = layer(qk, v)
    num_buckets = LENGTH // CHUNK
    own = buckets.view(BATCH, ROUNDS, LENGTH) - (torch.arange(ROUNDS) * num_buckets)[None, :, None]
    found = lsh_attention(
        qk[:, None], v[:, None], num_hashes=ROUNDS, num_buckets=num_buckets, chunk_length=CHUNK, causal=causal,
        buckets=own[:, None], cross_bucket=across, correct_duplicates=not duplicates, wrap_rounds=across,
        key_scale="unit_over_sqrt_d",
    ).output[:, 0]  # fmt: skip
    # Where pairs are counted, they add 1e-9 to the count.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 if duplicates else 1e-7)


def test_every_argument_stands_in_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text(encoding="utf-8")
    section = page.split("## From reformer-pytorch")[1].split("## From trax")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|([^|\n]+)\|", section, re.M))))
    asked = {*inspect.signature(peer.ReformerLM).parameters, *inspect.signature(peer.Reformer).parameters}
    assert asked <= named
