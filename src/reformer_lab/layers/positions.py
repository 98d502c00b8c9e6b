"""Position embeddings: tables of (length, d_model) that are added to the token embeddings."""

import math

import torch
from torch import Tensor, nn

from reformer_lab.errors import UserError


class AxialPositions(nn.Module):
    """One table for each axis of a grid that the positions fill row by row; their rows are concatenated.

    A grid (512, 1024) with dims (64, 192) gives 524,288 positions from 1,536 rows. Shorter sequences take the first places.

    >>> positions = AxialPositions(shape=(4, 8), dims=(2, 6))
    >>> embedded = torch.nn.Embedding(100, 8)(torch.zeros(3, 20, dtype=torch.long))
    >>> (embedded + positions(20)).shape
    torch.Size([3, 20, 8])
    """

    def __init__(self, shape: tuple[int, ...], dims: tuple[int, ...]):
        super().__init__()
        if len(shape) != len(dims):
            raise UserError(f"axial shape {shape} and dims {dims} must be equally long")
        self.shape = tuple(shape)
        self.tables = nn.ParameterList(torch.randn(side, dim) for side, dim in zip(shape, dims, strict=True))

    def forward(self, length: int) -> Tensor:
        """Return (length, sum of dims); a UserError names a length above the number of places."""
        _check_length(length, math.prod(self.shape))
        # The grid down to the last row that is needed. Spread, not indexed: torch lists the backward pass of an index among
        # its nondeterministic operations, and that of a spread table is a plain sum.
        sides = (-(-length // math.prod(self.shape[1:])), *self.shape[1:])
        columns = []
        for axis, table in enumerate(self.tables):
            along = [1] * len(sides)
            along[axis] = sides[axis]
            columns.append(table[: sides[axis]].view(*along, -1).expand(*sides, -1))
        return torch.cat(columns, dim=-1).flatten(0, -2)[:length]

    def at(self, position: Tensor) -> Tensor:
        """Return the rows (B, sum of dims) of some positions (B,)."""
        columns: list[Tensor] = []
        rest = position
        for table in reversed(list(self.tables)):  # the last axis runs fastest
            columns.insert(0, table[rest % table.shape[0]])
            rest = rest // table.shape[0]
        return torch.cat(columns, dim=-1)


class LearnedPositions(nn.Module):
    """A row for each position."""

    def __init__(self, max_length: int, d_model: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(max_length, d_model))

    def forward(self, length: int) -> Tensor:
        """Return (length, d_model); a UserError names a length above max_length."""
        _check_length(length, self.table.shape[0])
        return self.table[:length]

    def at(self, position: Tensor) -> Tensor:
        """Return the rows (B, d_model) of some positions (B,)."""
        return self.table[position]


class SinusoidalPositions(nn.Module):
    """Sines and cosines of geometric wavelengths (Vaswani et al., 2017, section 3.5); no parameters."""

    def __init__(self, d_model: int):
        super().__init__()
        self.d_model = d_model

    def forward(self, length: int) -> Tensor:
        """Return (length, d_model): sines in the even columns, cosines in the odd ones. For any length."""
        return self.at(torch.arange(length))

    def at(self, position: Tensor) -> Tensor:
        """Return the rows (B, d_model), fp32, of some positions (B,)."""
        position = position.to(torch.float32)[:, None]
        frequency = torch.exp(torch.arange(0, self.d_model, 2, device=position.device) * (-math.log(10000.0) / self.d_model))
        table = torch.stack([(position * frequency).sin(), (position * frequency).cos()], dim=-1).flatten(1)
        return table[:, : self.d_model]


def _check_length(length: int, places: int) -> None:
    if length > places:
        raise UserError(f"length {length} exceeds the {places} places of the position table: enlarge it or cut the sequence")
