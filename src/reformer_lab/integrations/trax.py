"""Checkpoints of trax, the authors' library: read without trax, and without running what a pickle names.

A checkpoint is a gzip of a pickle: a dict whose `flat_weights` lists the arrays in the order of the layers. It holds no
configuration: shapes tell the sizes, and what they cannot tell (lengths of chunks, hash rounds, ...) is an argument.
d width of the model, H heads, D width of a head, F width of the feed-forward layer, V vocabulary.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.integrations.trax_pickle import read_flat_weights
from reformer_lab.models.config import NUMERICS, ReformerConfig
from reformer_lab.models.language_model import ReformerLM

Arrays = dict[str, tuple[int, ...]]
"""Names of a trax model's arrays in the order of the checkpoint, with their shapes."""


def from_trax(
    path: str | Path,
    *,
    attention: Sequence[str] | str | None = None,
    max_length: int | None = None,
    activation: str = "fast_gelu",
    numerics: str = "trax_v2",
    **options: Any,
) -> ReformerLM:
    """Return the language model that a trax checkpoint (`model.pkl.gz`, `.pkl`) holds, with the authors' numerics.

    Args:
        path: the checkpoint of a `trax.models.ReformerLM`.
        attention: kinds of attention, repeated over the layers. None: three matrices in a layer are LSH, four local attention.
        max_length: longest sequence. None: as many as the checkpoint has places for.
        activation: trax's `ff_activation`; its default is FastGelu.
        numerics: a name in `models.config.NUMERICS`: the generation of the authors' code that trained it.
        options: what shapes do not tell, as `ReformerConfig` names it: num_hashes, chunk_length, local_chunk_length,
            num_buckets, dropout, ... The defaults here are the authors' configurations' (chunks of 64, one before).

    Raises:
        UserError: a file that is damaged, or that names anything but arrays and containers; arrays that are no ReformerLM.
    """
    arrays = read_flat_weights(Path(path))
    if numerics not in NUMERICS:
        raise UserError(f"numerics={numerics!r}: must be one of {', '.join(NUMERICS)}")
    fields = _sizes(arrays, path) | {"activation": activation} | NUMERICS[numerics] | options
    if attention is not None:
        fields["attention"] = (attention,) if isinstance(attention, str) else tuple(attention)
    if max_length is not None:
        fields["max_length"] = max_length
    config = ReformerConfig(**fields)
    return load_trax_arrays(config, arrays, source=str(path))


def trax_arrays(config: ReformerConfig) -> Arrays:
    """Return the arrays of the trax model of that configuration: our parameters' names, trax's shapes, in trax's order."""
    d, heads, d_head, d_ff = config.d_model, config.num_heads, config.d_head, config.d_ff
    for name, wanted in {"residual_streams": 2, "tie_embeddings": False}.items():
        if getattr(config, name) != wanted:
            raise UserError(f"{name}={getattr(config, name)!r}: trax's ReformerLM has {wanted!r}")
    arrays: Arrays = {"embedding.weight": (config.vocab_size, d)}
    if config.positions == "learned":
        arrays["positions.table"] = (1, config.max_length, d)
    elif config.positions == "axial":
        assert config.axial_shape is not None
        assert config.axial_dims is not None
        for axis, (side, width) in enumerate(zip(config.axial_shape, config.axial_dims, strict=True)):
            along = [1] * len(config.axial_shape)
            along[axis] = side
            arrays[f"positions.tables.{axis}"] = (1, *along, width)
    else:
        raise UserError(f"positions={config.positions!r}: checkpoints of trax have learned or axial positions")
    for index, kind in enumerate(config.layer_kinds()):
        layer = f"stack.layers.{index}"
        shared = kind == "lsh" or (kind == "full" and config.shared_qk)
        arrays |= {f"{layer}.attention.norm.{part}": (d,) for part in ("weight", "bias")}
        names = ("query_key", "value") if shared else ("query", "key", "value")
        arrays |= {f"{layer}.attention.function.{name}.weight": (heads, d, d_head) for name in names}
        arrays[f"{layer}.attention.function.output.weight"] = (heads, d_head, d)
        arrays |= {f"{layer}.feed_forward.norm.{part}": (d,) for part in ("weight", "bias")}
        for name, shape in (("dense_in", (d, d_ff)), ("dense_out", (d_ff, d))):
            arrays[f"{layer}.feed_forward.function.{name}.weight"] = shape
            arrays[f"{layer}.feed_forward.function.{name}.bias"] = shape[1:]
    arrays |= {f"norm.{part}": (2 * d,) for part in ("weight", "bias")}
    arrays |= {"head.weight": (2 * d, config.vocab_size), "head.bias": (config.vocab_size,)}
    return arrays


def load_trax_arrays(config: ReformerConfig, arrays: Sequence[numpy.ndarray], source: str = "the checkpoint") -> ReformerLM:
    """Return the model of `config` with the values of trax's `flat_weights`. A UserError names an array that does not fit."""
    expected = trax_arrays(config)
    if len(arrays) != len(expected):
        raise UserError(
            f"{source} holds {len(arrays)} arrays, a ReformerLM of {config.num_layers} layers {config.layer_kinds()} with "
            f"{config.positions} positions has {len(expected)}: give the attention of its layers, or another checkpoint"
        )
    weights = {}
    for (name, shape), array in zip(expected.items(), arrays, strict=True):
        if array.shape != shape or array.dtype.kind != "f":
            raise UserError(
                f"{source}: {name} is {array.dtype} of shape {array.shape}, expected floating-point numbers of shape {shape}: "
                "the checkpoint is of another model or configuration"
            )
        weights[name] = _from_trax_layout(name, torch.tensor(array, dtype=torch.float32))
    model = ReformerLM(config, seed=None)
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_()


def to_trax_arrays(model: ReformerLM) -> list[numpy.ndarray]:
    """Return the parameters as trax's `flat_weights` holds them: the reverse of `load_trax_arrays`."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    arrays = []
    for name, shape in trax_arrays(model.config).items():
        tensor = weights[name]
        if _is_projection_in(name):
            tensor = tensor.view(shape[0], shape[2], shape[1]).transpose(1, 2)
        elif _is_matrix(name):
            tensor = tensor.T
        arrays.append(tensor.reshape(shape).numpy().copy())
    return arrays


def _from_trax_layout(name: str, array: Tensor) -> Tensor:
    """Return trax's array in the shape of the parameter: its matrices are (in, out), one for each head."""
    if _is_projection_in(name):
        return array.transpose(1, 2).flatten(0, 1).contiguous()
    if name.endswith("function.output.weight"):
        return array.flatten(0, 1).T.contiguous()
    if _is_matrix(name):
        return array.T.contiguous()
    if name == "positions.table":
        return array[0]
    return array.reshape(-1, array.shape[-1]) if name.startswith("positions.tables") else array


def _is_projection_in(name: str) -> bool:
    return name.endswith(("query.weight", "key.weight", "query_key.weight", "value.weight"))


def _is_matrix(name: str) -> bool:
    return name.endswith(("output.weight", "dense_in.weight", "dense_out.weight", "head.weight"))


def _sizes(arrays: Sequence[numpy.ndarray], source: str | Path) -> dict[str, Any]:
    """Return the configuration fields that the shapes tell."""
    wrong = UserError(
        f"{source} holds arrays of shapes {', '.join(str(a.shape) for a in arrays[:8])}, ...: no ReformerLM with axial or "
        "learned positions. Give the checkpoint of a trax.models.ReformerLM"
    )
    if len(arrays) < 3 or arrays[0].ndim != 2:
        raise wrong
    vocab_size, d_model = arrays[0].shape
    tables = [array for array in arrays[1:] if array.ndim > 2]
    positions = tables[: next((i for i, array in enumerate(tables) if array.shape[0] != 1), len(tables))]
    fields: dict[str, Any] = {"vocab_size": int(vocab_size), "d_model": int(d_model)}
    if len(positions) == 1 and positions[0].ndim == 3:
        fields |= {"positions": "learned", "max_length": positions[0].shape[1]}
    else:
        sides = tuple(max(table.shape[1:-1]) for table in positions)
        fields |= {"positions": "axial", "axial_shape": sides, "axial_dims": tuple(table.shape[-1] for table in positions),
                   "max_length": math.prod(sides)}  # fmt: skip
    body = arrays[1 + len(positions) :]
    kinds: list[str] = []
    while len(body) > 4:  # what is left in the end: the last norm and the output layer
        projections = next((i for i, array in enumerate(body[2:]) if array.ndim != 3), len(body))
        if projections not in (3, 4) or len(body) < projections + 8:
            raise wrong
        kinds.append("lsh" if projections == 3 else "local")
        fields |= {"num_heads": body[2].shape[0], "d_head": body[2].shape[2], "d_ff": body[projections + 4].shape[-1]}
        body = body[projections + 8 :]
    if not positions or not kinds:
        raise wrong
    return fields | {"num_layers": len(kinds), "attention": tuple(kinds)}
