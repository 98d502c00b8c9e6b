"""The peers: the Reformers of transformers and of reformer-pytorch, at the sizes that the benchmarks ask for.

Neither is a dependency. They are imported in the worker processes alone, from an environment made for them.
"""

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from torch import Tensor, nn

from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig

DISTRIBUTIONS = {"transformers": "4.57.6", "reformer-pytorch": "1.4.4"}
"""Name of each peer and the version that the results were measured with."""


def why_not(name: str) -> str | None:
    """Return in one line why a peer cannot take part here and how to get it; None if it is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"not installed; `make bench-environment` makes an environment with {name} {DISTRIBUTIONS[name]}"
    return None


def version(name: str) -> str:
    """Return name and version of an installed peer."""
    return f"{name} {metadata.version(name)}"


def attention_layer(name: str, *, num_heads: int, d_head: int, num_hashes: int, chunk_length: int,
                    length: int) -> tuple[nn.Module, Callable[[], int | Sequence[int]]]:
    """Return a peer's causal LSH layer, (B, L, num_heads * d_head) to the same, and what tells its number of buckets.

    Everything that is not named here is as the peer has it by default.
    """
    width = num_heads * d_head
    if name == "transformers":
        from transformers.models.reformer.configuration_reformer import ReformerConfig as TheirConfig
        from transformers.models.reformer.modeling_reformer import LSHSelfAttention as TheirLayer

        config = TheirConfig(
            hidden_size=width, num_attention_heads=num_heads, attention_head_size=d_head, num_hashes=num_hashes,
            lsh_attn_chunk_length=chunk_length, lsh_attention_probs_dropout_prob=0.0, is_decoder=True,
            max_position_embeddings=length,
        )  # fmt: skip
        layer = _WithOutput(TheirLayer(config, layer_idx=0), width)
        return layer, lambda: config.num_buckets or 1
    from reformer_pytorch import LSHSelfAttention

    theirs = LSHSelfAttention(width, heads=num_heads, dim_head=d_head, bucket_size=chunk_length, n_hashes=num_hashes,
                              causal=True)
    return theirs, lambda: length // chunk_length


class _WithOutput(nn.Module):
    """transformers keeps the projection back in a module of its own."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention, self.output = attention, nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attention(x).hidden_states)


def language_model(name: str, config: ReformerConfig, length: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return a peer's language model of the size of `config`, in training mode, and its loss on tokens (B, length).

    reformer-pytorch has no local layers but local heads: the same part of its heads are local in every layer. Raises
    UserError for what a peer does not have.
    """
    kinds = config.layer_kinds()
    if not set(kinds) <= {"local", "lsh"} or config.positions != "axial" or not config.causal:
        raise UserError(f"{name} is measured with local and LSH layers, axial positions, causal; the model has other ones")
    assert config.axial_shape is not None
    assert config.axial_dims is not None
    model, loss = _transformers_model(config, length) if name == "transformers" else _reformer_pytorch_model(config, length)
    return model.train(), loss


def _transformers_model(config: ReformerConfig, length: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from transformers import ReformerConfig as TheirConfig
    from transformers import ReformerModelWithLMHead

    model = ReformerModelWithLMHead(TheirConfig(
        attention_head_size=config.d_head, attn_layers=list(config.layer_kinds()),
        axial_pos_shape=list(config.axial_shape or ()), axial_pos_embds_dim=list(config.axial_dims or ()),
        feed_forward_size=config.d_ff, hidden_act=config.activation, hidden_dropout_prob=config.dropout,
        hidden_size=config.d_model, is_decoder=True,
        local_attention_probs_dropout_prob=config.attention_dropout, lsh_attention_probs_dropout_prob=config.attention_dropout,
        local_attn_chunk_length=config.local_chunk_length, lsh_attn_chunk_length=config.chunk_length,
        max_position_embeddings=length, num_attention_heads=config.num_heads, num_hashes=config.num_hashes,
        num_buckets=list(config.num_buckets) if isinstance(config.num_buckets, tuple) else config.num_buckets,
        vocab_size=config.vocab_size, use_cache=False,
    ))  # fmt: skip

    def loss(tokens: Tensor) -> Tensor:
        result: Tensor = model(input_ids=tokens, labels=tokens).loss  # shifts inside
        return result

    return model, loss


def _reformer_pytorch_model(config: ReformerConfig, length: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from reformer_pytorch import ReformerLM as TheirModel

    kinds = config.layer_kinds()
    if config.d_ff % config.d_model:
        raise UserError(f"reformer-pytorch needs d_ff a multiple of d_model, not {config.d_ff} and {config.d_model}")
    activation: dict[str, Any] = {"relu": nn.ReLU, "gelu": nn.GELU}
    model = TheirModel(
        num_tokens=config.vocab_size, dim=config.d_model, depth=config.num_layers, max_seq_len=length, heads=config.num_heads,
        dim_head=config.d_head, bucket_size=config.chunk_length, n_hashes=config.num_hashes, causal=True,
        ff_mult=config.d_ff // config.d_model, ff_activation=activation[config.activation], ff_dropout=config.dropout,
        lsh_dropout=config.attention_dropout, axial_position_emb=True, axial_position_shape=config.axial_shape,
        n_local_attn_heads=config.num_heads * kinds.count("local") // len(kinds),
    )  # fmt: skip

    def loss(tokens: Tensor) -> Tensor:
        logits = model(tokens)
        return nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:])

    return model, loss
