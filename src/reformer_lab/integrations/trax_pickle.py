"""The pickle inside a checkpoint of trax, read without building anything but containers, numbers, text and arrays.

A pickle names what is to be called, and numpy's own functions are no safe answer: with the state of a dtype a pickle can
make numpy take bytes for addresses. So every name is on a list, and each stands for a class of this file.
"""

import gzip
import io
import math
import pickle
import pickletools
import re
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy

from reformer_lab.data.corpus_file import BLOCK, MOST_EXPANSION, most_unpacked
from reformer_lab.errors import UserError


def read_flat_weights(path: Path) -> list[numpy.ndarray]:
    """Return the arrays of `flat_weights`, in their order.

    Raises UserError for a file that is damaged, unpacks to far more than its size, names anything that no checkpoint of trax
    needs, or has no such list.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give the checkpoint that trax wrote, model.pkl.gz")
    try:
        content = _unpacked(path)
        _check_places(content)
        checkpoint = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # An unpickler that meets garbage may raise almost anything.
    except (EOFError, OSError, zlib.error, pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            OverflowError, MemoryError, RecursionError, ImportError) as error:  # fmt: skip
        raise UserError(f"{path} is damaged or no pickle ({error or type(error).__name__}): fetch it again") from None
    weights = checkpoint.get("flat_weights") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, (list, tuple)):
        kind = type(checkpoint).__name__
        if isinstance(checkpoint, dict):
            kind = f"a dict of {', '.join([name for name in checkpoint if isinstance(name, str)][:8]) or 'nothing'}"
        raise UserError(f"{path} holds {kind}, but no flat_weights: give a checkpoint that trax's training loop wrote")
    arrays = [weight.value if isinstance(weight, _Array) else None for weight in weights]
    for place, array in enumerate(arrays):
        if array is None:
            raise UserError(f"{path}: number {place} of flat_weights is no array of numbers: give a checkpoint that trax wrote")
    return [array for array in arrays if array is not None]


def _unpacked(path: Path) -> bytes:
    """Return the pickle, unpacked in pieces so that a bomb ends early."""
    packed = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return file.read()
    most = most_unpacked(packed)
    content = bytearray()
    with gzip.open(path) as stream:
        while piece := stream.read(BLOCK):
            content += piece
            if len(content) > most:
                raise UserError(f"it unpacks to more than {MOST_EXPANSION} times its {packed:,} bytes, which no weights do: "
                                "take it from its source again")
    return bytes(content)


def _check_places(content: bytes) -> None:
    """Refuse numbers of the unpickler's memory beyond what the pickle can fill: it would allocate up to the largest."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count + 255:
            raise UserError(f"the pickle asks for {argument:,} places of memory for its {count:,} parts: fetch it again")


class _Inert:
    """Stands for an object that is not needed (trax's history, shapes, single numbers): takes its state and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


class _DType:
    """Stands for numpy.dtype: a kind and size of numbers, and the order of their bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        order, *structure = state[1:5]
        if order not in ("<", ">", "=", "|") or any(structure):
            self._code = None
        self._order = order

    def plain(self) -> numpy.dtype[Any] | None:
        """Return the dtype if it is one of plain numbers, else None."""
        known = isinstance(self._code, str) and re.fullmatch(r"[fiu][1248]|b1", self._code) and self._code != "f1"
        return numpy.dtype(self._order + self._code) if known else None


class _Array:
    """Stands for numpy's reconstruction of an array; `value` is None for an array of anything but plain numbers."""

    def __init__(self, *_: Any) -> None:
        self.value: numpy.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, content = state
        plain = dtype.plain() if isinstance(dtype, _DType) else None
        if plain is None or not isinstance(content, (bytes, str)):
            return
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("an array whose sides are no whole numbers")
        raw = content.encode("latin1") if isinstance(content, str) else content
        if len(raw) != math.prod(shape) * plain.itemsize:
            raise ValueError(f"an array of shape {shape} with {len(raw):,} bytes")
        self.value = numpy.frombuffer(raw, plain).reshape(shape, order="F" if fortran_order else "C").copy()


class _Latin1:
    """Stands for _codecs.encode: the bytes of a string, as pickles of protocol 2 write bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise UserError(f"a string in the checkpoint is encoded in {encoding!r}: only latin1 is read")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        """Keep a pickle from setting attributes of the class."""


def _allowed() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Inert, ("numpy", "dtype"): _DType, ("collections", "defaultdict"): defaultdict,
        ("_codecs", "encode"): _Latin1,
    }  # fmt: skip
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed |= {(module, "_reconstruct"): _Array, (module, "scalar"): _Inert}
    for module in ("builtins", "__builtin__"):
        allowed |= {(module, kind.__name__): kind for kind in (list, dict, tuple, set)}
        # Not str itself: of a list that holds itself many times over it would write for ever.
        allowed |= dict.fromkeys(((module, name) for name in ("int", "float", "str", "bool")), _Inert)
    inert = (("trax.supervised.history", "History"), ("trax.history", "History"), ("trax.shapes", "ShapeDtype"),
             ("trax.supervised.trainer_lib", "OptState"))  # fmt: skip
    return allowed | dict.fromkeys(inert, _Inert)


class _Unpickler(pickle.Unpickler):
    """Knows the names on the list; refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _allowed()
        if (module, name) not in allowed:
            raise UserError(
                f"the checkpoint names {module}.{name}, which no checkpoint of trax needs: it is not opened. "
                "A pickle can run any code; take the file from its source again"
            )
        return allowed[module, name]
