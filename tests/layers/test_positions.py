"""Position embeddings: slices, values, gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reformer_lab.errors import UserError
from reformer_lab.layers.positions import AxialPositions, LearnedPositions, SinusoidalPositions


def axial(shape: tuple[int, ...], dims: tuple[int, ...]) -> AxialPositions:
    layer = AxialPositions(shape, dims)
    with torch.no_grad():
        for index, table in enumerate(layer.tables):
            table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(index)))
    return layer


@pytest.mark.parametrize("shape", [(4, 6), (1, 24), (24, 1), (2, 3, 4), (24,)], ids=str)
def test_axial_rows_are_those_of_the_place_in_the_grid(shape: tuple[int, ...]) -> None:
    layer = axial(shape, tuple(range(2, 2 + len(shape))))
    found = layer(24)
    for position in range(24):
        rest, place = position, []
        for side in reversed(shape):  # the last axis runs fastest
            place.insert(0, rest % side)
            rest //= side
        expected = torch.cat([table[row] for table, row in zip(layer.tables, place, strict=True)])
        assert torch.equal(found[position], expected)


@given(length=st.integers(1, 24))
def test_a_shorter_length_takes_the_first_places(length: int) -> None:
    for layer in (axial((4, 6), (3, 2)), LearnedPositions(24, 5), SinusoidalPositions(5)):
        assert layer(length).shape == (length, 5)
        assert torch.equal(layer(length), layer(24)[:length])


@given(places=st.lists(st.integers(0, 23), min_size=1))
def test_rows_of_some_positions(places: list[int]) -> None:
    for layer in (axial((4, 6), (3, 2)), axial((2, 3, 4), (2, 1, 2)), LearnedPositions(24, 5), SinusoidalPositions(5)):
        assert torch.equal(layer.at(torch.tensor(places)), layer(24)[places])


def test_axial_gradients_add_up_over_the_places_of_a_row() -> None:
    layer = axial((4, 6), (3, 2))
    layer(24).sum().backward()
    for table, uses in zip(layer.tables, (6, 4), strict=True):
        assert (table.grad == uses).all()


def test_axial_is_an_error_without_a_width_for_each_axis() -> None:
    with pytest.raises(UserError, match="equally long"):
        AxialPositions((4, 6), (3, 2, 1))


@pytest.mark.parametrize("layer", [axial((4, 6), (3, 2)), LearnedPositions(24, 5)], ids=["axial", "learned"])
def test_too_long_is_named(layer: torch.nn.Module) -> None:
    with pytest.raises(UserError, match=r"length 25 .*24 places"):
        layer(25)


@pytest.mark.parametrize("d_model", [1, 7, 8])
def test_sinusoidal_values(d_model: int) -> None:
    found = SinusoidalPositions(d_model)(300)
    for position in (0, 1, 17, 299):
        for column in range(d_model):
            angle = position / 10000 ** (column // 2 * 2 / d_model)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert found[position, column].item() == pytest.approx(expected, abs=3e-5)
    assert not list(SinusoidalPositions(d_model).parameters())


def test_the_gradient_of_axial_positions_is_a_plain_sum() -> None:
    """No index in the graph: torch lists its backward pass among the nondeterministic ones."""
    output = AxialPositions((32, 64), (64, 192))(2000)
    names, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting += [earlier for earlier, _ in node.next_functions]
    assert "ExpandBackward0" in names
    assert not [name for name in names if name.startswith(("Index", "Gather", "Embedding"))]
