"""Tensors as the kernel reads and writes them."""

import ctypes

import torch
from torch import Tensor

# The codes of `Precision` in tensor.h; 0 is the precision of the calculation.
_HALVES = {torch.bfloat16: 1, torch.float16: 2}
DTYPES = (torch.float32, torch.float64, *_HALVES)


class Tensor4(ctypes.Structure):
    """The `Tensor4` of tensor.h, field by field."""

    _fields_ = [("data", ctypes.c_void_p), ("precision", ctypes.c_int64), ("strides", ctypes.c_int64 * 4)]


def view(x: Tensor) -> Tensor4:
    """Return the kernel's view of a tensor of four dimensions, any strides, valid as long as the tensor lives."""
    return Tensor4(x.data_ptr(), _HALVES.get(x.dtype, 0), (ctypes.c_int64 * 4)(*x.stride()))
