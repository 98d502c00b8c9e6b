"""Named configurations, each with its source. Free of torch.

`get_preset("reformer_enwik8")`; on the command line `reformer-lab train --preset cpu_small`.
"""

import difflib
from collections.abc import Callable

from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig


def duplication() -> ReformerConfig:
    """Duplication task of table 2: one layer, length 1024, chunk 32, 64 buckets (paper, section 5; the authors' notebook).

    The paper reports 100 % with LSH-4 (150 K steps, one accelerator); positions are not described there, learned here.
    """
    return ReformerConfig(
        vocab_size=128, d_model=256, d_ff=256, num_layers=1, num_heads=4, d_head=64, max_length=1024,
        num_hashes=4, num_buckets=64, chunk_length=32,
    )  # fmt: skip


def duplication_cpu() -> ReformerConfig:
    """The duplication task at length 64 for a CPU: minutes to over 99 %, not from the paper. Chunk 16, 8 buckets: twice as many
    buckets as chunks, as in the paper."""
    return duplication().replace(max_length=64, num_buckets=8, chunk_length=16)


def ablation_enwik8() -> ReformerConfig:
    """Ablations on enwik8, figures 3 and 4: 3 layers, length 65,536, LSH everywhere (paper, section 5).

    Chunk 128, 1024 buckets, 2 rounds (sweep 2, 4, 8, 16). The paper shows curves alone. Axial positions as in the tuned
    model; the ablation's own are not recorded.
    """
    return ReformerConfig(
        d_model=1024, d_ff=4096, num_layers=3, num_heads=8, d_head=128, max_length=65536, num_hashes=2,
        num_buckets=(32, 32), chunk_length=128, positions="axial", axial_shape=(128, 512), axial_dims=(256, 768),
        dropout=0.1, ff_chunk_length=4096, loss_chunk_length=4096,
    )  # fmt: skip


def imagenet64() -> ReformerConfig:
    """imagenet64 as 12,288 tokens: the ablations' model, 192 buckets, vocabulary 256, dropout 0 (paper, section 5)."""
    return ablation_enwik8().replace(
        vocab_size=256, max_length=12288, num_buckets=(16, 12), axial_shape=(64, 64, 3), axial_dims=(384, 384, 256),
        dropout=0.0,
    )  # fmt: skip


def reformer_enwik8() -> ReformerConfig:
    """The authors' published `reformer_enwik8.gin`: 12 layers [local, local, LSH, local] x 3, d_model 768.

    Length 65,536; their run trains 100 K steps of 8 sequences. Attention dropout 0.2. Sets of the window (cross-bucket).
    """
    return tuned_enwik8().replace(
        d_model=768, d_ff=2048, d_head=64, axial_dims=(256, 512), attention_dropout=0.2,
    )  # fmt: skip


def tuned_enwik8() -> ReformerConfig:
    """The tuned 12-layer enwik8 model, very probably the paper's 1.05 bits per dimension (section 5).

    [local, local, LSH, local] x 3, d_model 1024, 8 heads x 128, local chunk 128, LSH chunk 256, 512 buckets, 2 rounds. The
    authors' code of that time saw the whole window (cross-bucket), with duplicates corrected.
    """
    return ReformerConfig(
        d_model=1024, d_ff=4096, num_layers=12, num_heads=8, d_head=128, max_length=65536,
        attention=("local", "local", "lsh", "local"), num_hashes=2, num_buckets=(32, 16), chunk_length=256,
        local_chunk_length=128, cross_bucket=True, positions="axial", axial_shape=(128, 512), axial_dims=(256, 768),
        dropout=0.2, ff_chunk_length=4096, loss_chunk_length=4096,
    )  # fmt: skip


def crime_and_punishment() -> ReformerConfig:
    """Half a million tokens at once: the notebooks of Hugging Face and trax on Crime and Punishment.

    6 layers [local, LSH] x 3, d_model 256, 2 heads x 64, buckets (64, 128), one round, BPE vocabulary of 320; "under 8 GB".
    """
    return ReformerConfig(
        vocab_size=320, d_model=256, d_ff=512, num_layers=6, num_heads=2, d_head=64, max_length=524288,
        attention=("local", "lsh"), num_hashes=1, num_buckets=(64, 128), chunk_length=64, local_chunk_length=64,
        positions="axial", axial_shape=(512, 1024), axial_dims=(64, 192), dropout=0.05, ff_chunk_length=2048,
        projection_chunk_length=2048, heads_at_once=1, loss_chunk_length=2048,
    )  # fmt: skip


def cpu_small() -> ReformerConfig:
    """Bytes on a CPU: 3 layers [local, LSH, local], length 2048, 2.5 M parameters; not from the paper.

    `reformer-lab train --corpus FILE` uses it by default.
    """
    return ReformerConfig(
        d_model=256, d_ff=1024, num_layers=3, num_heads=4, d_head=64, max_length=2048, attention=("local", "lsh", "local"),
        num_hashes=2, chunk_length=64, local_chunk_length=64, positions="axial", axial_shape=(32, 64),
        axial_dims=(64, 192),
    )  # fmt: skip


def cpu_tiny() -> ReformerConfig:
    """For tests: 2 layers [local, LSH], d_model 32, length 128; seconds on a CPU; not from the paper."""
    return ReformerConfig(
        d_model=32, d_ff=64, num_layers=2, num_heads=2, d_head=16, max_length=128, attention=("local", "lsh"),
        num_hashes=2, chunk_length=16, local_chunk_length=16, positions="axial", axial_shape=(8, 16), axial_dims=(8, 24),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], ReformerConfig]] = {
    preset.__name__: preset
    for preset in (
        duplication, duplication_cpu, ablation_enwik8, imagenet64, reformer_enwik8, tuned_enwik8, crime_and_punishment,
        cpu_small, cpu_tiny,
    )
}  # fmt: skip


def get_preset(name: str) -> ReformerConfig:
    """Return the configuration of that name; a UserError lists the names."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"unknown preset {name!r}.{hint} Known: {', '.join(PRESETS)}")
    return PRESETS[name]()
