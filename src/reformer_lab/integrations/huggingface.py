"""Reformer checkpoints of Hugging Face's transformers, both ways, without transformers.

Theirs is the `reformer` model type: ReformerModelWithLMHead (causal), ReformerForMaskedLM (bidirectional), and the bare
ReformerModel. The arithmetic of such a model is `NUMERICS["huggingface"]`.
"""

import math
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reformer_lab.errors import UserError
from reformer_lab.integrations.huggingface_files import read_config, read_weights
from reformer_lab.models.config import NUMERICS, ReformerConfig
from reformer_lab.models.language_model import ReformerLM, write_model
from reformer_lab.ops.hashing import default_num_buckets

BARE = "ReformerModel"
CAUSAL = "ReformerModelWithLMHead"
BIDIRECTIONAL = "ReformerForMaskedLM"
PREFIX = "reformer."
ACTIVATIONS = {"relu": "relu", "gelu": "gelu"} | dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "fast_gelu")
DEFAULTS: dict[str, Any] = {
    "attention_head_size": 64, "attn_layers": ["local", "lsh"] * 3, "axial_pos_embds": True, "axial_pos_shape": [64, 64],
    "axial_pos_embds_dim": [64, 192], "chunk_size_feed_forward": 0, "feed_forward_size": 512, "hidden_act": "relu",
    "hidden_dropout_prob": 0.05, "hidden_size": 256, "is_decoder": False, "layer_norm_eps": 1e-12,
    "local_attention_probs_dropout_prob": 0.05, "local_attn_chunk_length": 64, "local_num_chunks_before": 1,
    "local_num_chunks_after": 0, "lsh_attention_probs_dropout_prob": 0.0, "lsh_attn_chunk_length": 64,
    "lsh_num_chunks_before": 1, "lsh_num_chunks_after": 0, "max_position_embeddings": 4096, "num_attention_heads": 12,
    "num_buckets": None, "num_hashes": 1, "vocab_size": 320,
}  # fmt: skip
"""What transformers 4.57 takes for a field that config.json leaves out."""
SAME_FIELDS = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "d_ff": "feed_forward_size", "num_heads": "num_attention_heads",
    "d_head": "attention_head_size", "causal": "is_decoder", "num_hashes": "num_hashes",
    "chunk_length": "lsh_attn_chunk_length", "chunks_before": "lsh_num_chunks_before", "chunks_after": "lsh_num_chunks_after",
    "local_chunk_length": "local_attn_chunk_length", "local_chunks_before": "local_num_chunks_before",
    "local_chunks_after": "local_num_chunks_after", "dropout": "hidden_dropout_prob",
    "attention_dropout": "lsh_attention_probs_dropout_prob", "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
"""Our fields that have a counterpart of the same meaning."""


def from_huggingface(source: str | Path | nn.Module, **changes: Any) -> ReformerLM:
    """Return our model with the weights and the arithmetic of a Reformer of transformers.

    Given the same rotations, logits and gradients are theirs as they are in double precision; in single precision a row that
    sees nothing but itself, such as the first one, comes out there with weights that add up to 1 only roughly.
    logits[:, t] predict tokens[:, t + 1], as there (`shift="targets"`). Lengths that transformers pads itself, to a multiple
    of the chunks of both kinds, give the same results where the number of LSH chunks does not change by it.
    The bare ReformerModel has no output layer: it becomes a model with tied embeddings, whose `hidden_states` are what it
    computes.

    Args:
        source: a folder with config.json and model.safetensors or pytorch_model.bin, in shards or not; or a model of theirs.
        changes: fields of `ReformerConfig` to change, such as reversible=False or numerics of the paper.

    num_buckets=None, which transformers settles at the first input, is settled here for the longest one. A `hash_seed` is not
    taken over: rotations are drawn as everywhere here.

    Raises:
        UserError: another architecture, a damaged file, tensors that are missing, too many or of another shape.
    """
    if isinstance(source, nn.Module):
        name = type(source).__name__
        fields, weights = source.config.to_dict(), dict(source.state_dict())  # type: ignore[operator,union-attr]
    else:
        name = str(source)
        fields, weights = read_config(Path(source)), read_weights(Path(source))
    weights = _without_leftovers(weights, name)
    bare = not any(key.startswith("lm_head.") for key in weights)
    if any(key.startswith(PREFIX) for key in weights):
        weights = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    config = our_config(fields).replace(tie_embeddings=bare)
    names = _names(config)
    _check_names(set(names.values()), set(weights), name)
    model = ReformerLM(config, seed=None)
    state = {}
    for ours, expected in model.state_dict().items():
        tensor = weights[names[ours]]
        if ours.startswith("positions.tables"):
            tensor = tensor.flatten(0, -2)
        if tensor.shape != expected.shape:
            raise UserError(
                f"{name}: {names[ours]} has shape {tuple(weights[names[ours]].shape)}, but its configuration asks for "
                f"{tuple(expected.shape)} ({_remedy(names[ours])})"
            )
        state[ours] = tensor.detach().clone()
    model.load_state_dict(state, assign=True)
    model.requires_grad_()
    return model.with_config(**changes) if changes else model


def to_huggingface(model: ReformerLM, folder: str | Path, *, head: bool = True) -> None:
    """Write a folder that transformers' Reformer classes read. The tensors are those of the model, bit for bit.

    Tied embeddings are written as the output matrix that they stand for; `head` False leaves the output layer out
    (ReformerModel). A UserWarning names the options of the model with which transformers computes something else; a UserError
    those for which it has no place.

    A causal model with shift="inputs" reads token 0 before the text: give transformers texts that begin with it.
    """
    config, weights = to_huggingface_state(model, head=head)
    write_model(Path(folder), config, weights)


def to_huggingface_state(model: ReformerLM, *, head: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json's fields and the state dict that `to_huggingface` writes."""
    config = model.config
    fields = their_config(config, head=head)
    different = [
        f"{field}={getattr(config, field)!r} (transformers: {value!r})"
        for field, value in _their_arithmetic(config).items() if getattr(config, field) != value
    ]  # fmt: skip
    if different:
        warnings.warn(
            f"transformers computes another attention with these weights: {', '.join(different)}. A model that is trained with "
            'config.replace(**NUMERICS["huggingface"]) gives the same results there', UserWarning, stacklevel=3,
        )  # fmt: skip
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if config.tie_embeddings and head:
        ours["head.weight"] = model.embedding.weight.detach().cpu().repeat(1, 2) * config.d_model**-0.5
        ours["head.bias"] = ours["head.weight"].new_zeros(config.vocab_size)
    weights = {}
    for name, theirs in _names(config.replace(tie_embeddings=not head)).items():
        tensor = ours[name]
        if name.startswith("positions.tables"):
            assert config.axial_shape is not None
            along = [1] * len(config.axial_shape)
            along[int(name.rpartition(".")[2])] = tensor.shape[0]
            tensor = tensor.view(*along, -1)
        weights[theirs if theirs.startswith("lm_head") or not head else PREFIX + theirs] = tensor
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    return fields | {"torch_dtype": dtype}, weights


def our_config(fields: dict[str, Any]) -> ReformerConfig:
    """Return the configuration of our model for the fields of their config.json."""
    kind = fields.get("model_type")
    if kind != "reformer":
        architecture = ", ".join(fields.get("architectures") or ["no architecture"])
        raise UserError(f"model_type={kind!r} ({architecture}): only checkpoints of the type 'reformer' can be converted")
    fields = DEFAULTS | {name: value for name, value in fields.items() if name in DEFAULTS}
    activation = fields["hidden_act"]
    if activation not in ACTIVATIONS:
        raise UserError(f"hidden_act={activation!r}: only {', '.join(ACTIVATIONS)} can be converted")
    places = fields["max_position_embeddings"]
    positions: dict[str, Any] = {"positions": "learned", "max_length": places}
    if fields["axial_pos_embds"]:
        shape = tuple(fields["axial_pos_shape"])
        positions = {"positions": "axial", "axial_shape": shape, "axial_dims": tuple(fields["axial_pos_embds_dim"]),
                     "max_length": min(places, math.prod(shape))}  # fmt: skip
    num_buckets = fields["num_buckets"]
    if num_buckets is None:
        num_buckets = settled_num_buckets(positions["max_length"], fields["lsh_attn_chunk_length"], places)
    if isinstance(num_buckets, (list, tuple)):
        num_buckets = tuple(num_buckets) if len(num_buckets) > 1 else num_buckets[0]
    local_dropout = fields["local_attention_probs_dropout_prob"]
    return ReformerConfig(**NUMERICS["huggingface"] | {ours: fields[theirs] for ours, theirs in SAME_FIELDS.items()} | {
        **positions, "num_buckets": num_buckets, "activation": ACTIVATIONS[activation],
        "attention": tuple(fields["attn_layers"]), "num_layers": len(fields["attn_layers"]),
        "local_attention_dropout": None if local_dropout == fields["lsh_attention_probs_dropout_prob"] else local_dropout,
        "ff_chunk_length": fields["chunk_size_feed_forward"] or None,
    })  # fmt: skip


def their_config(config: ReformerConfig, *, head: bool = True) -> dict[str, Any]:
    """Return the fields of their config.json. A UserError names an option for which transformers has no place."""
    if "full" in config.layer_kinds():
        raise UserError(f"attention={config.attention}: transformers' Reformer has local and LSH layers only")
    if config.residual_streams != 2:
        raise UserError(f"residual_streams={config.residual_streams}: transformers' Reformer has 2")
    if config.positions not in ("axial", "learned"):
        raise UserError(f"positions={config.positions!r}: transformers' Reformer has axial or learned positions")
    if config.causal and (config.chunks_after or config.local_chunks_after):
        raise UserError("chunks_after and local_chunks_after must be 0 in a causal model of transformers: train it so")
    num_buckets = config.num_buckets or default_num_buckets(config.max_length, config.chunk_length)
    local_dropout = config.local_attention_dropout
    axial = config.positions == "axial"
    return {
        "architectures": [BARE if not head else CAUSAL if config.causal else BIDIRECTIONAL],
        "model_type": "reformer",
        **{theirs: getattr(config, ours) for ours, theirs in SAME_FIELDS.items()},
        "attn_layers": list(config.layer_kinds()), "num_hidden_layers": config.num_layers,
        "hidden_act": {"fast_gelu": "gelu_new"}.get(config.activation, config.activation),
        "local_attention_probs_dropout_prob": config.attention_dropout if local_dropout is None else local_dropout,
        "num_buckets": list(num_buckets) if isinstance(num_buckets, tuple) else num_buckets,
        "max_position_embeddings": config.max_length, "axial_pos_embds": axial,
        "axial_pos_shape": list(config.axial_shape or ()) if axial else DEFAULTS["axial_pos_shape"],
        "axial_pos_embds_dim": list(config.axial_dims or ()) if axial else DEFAULTS["axial_pos_embds_dim"],
        "chunk_size_feed_forward": config.ff_chunk_length or 0, "chunk_size_lm_head": 0, "hash_seed": None,
        "axial_norm_std": 1.0, "initializer_range": 0.02, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
        "tie_word_embeddings": False, "use_cache": True,
    }  # fmt: skip


def settled_num_buckets(length: int, chunk_length: int, places: int) -> int | tuple[int, int]:
    """Return the buckets that transformers settles on at an input of `length`: a power of 2, in two factors if it is large.

    `places`: max_position_embeddings, on which the limit depends.

    >>> settled_num_buckets(524288, 64, 524288)
    (128, 128)
    """
    exponent = max(2, 2 * (length // chunk_length)).bit_length() - 1
    limit = 2 * max(math.isqrt(places // chunk_length), chunk_length)
    return 2**exponent if 2**exponent <= limit else (2 ** (exponent // 2), 2 ** (exponent - exponent // 2))


def _their_arithmetic(config: ReformerConfig) -> dict[str, Any]:
    """Return our fields, with the values that give transformers' results, as far as they matter to this model."""
    numerics = NUMERICS["huggingface"]
    if "lsh" in config.layer_kinds():
        wanted = {name: numerics[name] for name in ("cross_bucket", "correct_duplicates", "wrap_around", "key_epsilon")}
        return wanted | {"coverage": "chunk", "key_scale": "unit"}
    return {} if config.causal else {"wrap_around": True}


def _names(config: ReformerConfig) -> dict[str, str]:
    """Return their name, without the prefix, of each of our parameters."""
    names = {"embedding.weight": "embeddings.word_embeddings.weight"}
    if config.positions == "axial":
        axes = range(len(config.axial_shape or ()))
        names |= {f"positions.tables.{axis}": f"embeddings.position_embeddings.weights.{axis}" for axis in axes}
    else:
        names["positions.table"] = "embeddings.position_embeddings.embedding.weight"
    for index, kind in enumerate(config.layer_kinds()):
        ours, theirs = f"stack.layers.{index}", f"encoder.layers.{index}"
        for part in ("weight", "bias"):
            names[f"{ours}.attention.norm.{part}"] = f"{theirs}.attention.layer_norm.{part}"
            names[f"{ours}.feed_forward.norm.{part}"] = f"{theirs}.feed_forward.layer_norm.{part}"
            names[f"{ours}.feed_forward.function.dense_in.{part}"] = f"{theirs}.feed_forward.dense.dense.{part}"
            names[f"{ours}.feed_forward.function.dense_out.{part}"] = f"{theirs}.feed_forward.output.dense.{part}"
        for name in ("query_key", "value") if kind == "lsh" else ("query", "key", "value"):
            names[f"{ours}.attention.function.{name}.weight"] = f"{theirs}.attention.self_attention.{name}.weight"
        names[f"{ours}.attention.function.output.weight"] = f"{theirs}.attention.output.dense.weight"
    names |= {f"norm.{part}": f"encoder.layer_norm.{part}" for part in ("weight", "bias")}
    if not config.tie_embeddings:
        names |= {"head.weight": "lm_head.decoder.weight", "head.bias": "lm_head.bias"}
    return names


def _without_leftovers(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Drop the constants that old versions saved, and the second name of the output layer's bias."""
    kept = {name: tensor for name, tensor in weights.items() if "mask_value_float" not in name}
    second = kept.pop("lm_head.decoder.bias", None)
    if second is not None and not second.equal(kept.setdefault("lm_head.bias", second)):
        raise UserError(f"{source}: lm_head.bias and lm_head.decoder.bias are one parameter, but differ: which one is meant?")
    return kept


def _check_names(expected: set[str], found: set[str], source: str) -> None:
    for wrong, word in ((expected - found, "lacks"), (found - expected, "also holds")):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UserError(
                f"{source} {word} {min(wrong)}{more}: give a language model, a masked language model or the bare model of "
                "transformers' Reformer, whole and with its own config.json"
            )


def _remedy(name: str) -> str:
    if "word_embeddings" in name or name.startswith("lm_head"):
        return "vocab_size or hidden_size of config.json does not fit the weights"
    return "config.json is of another model"
