"""Where the attention operators put what they return."""

from torch import Tensor


def empty_rows(x: Tensor, width: int) -> Tensor:
    """Return a tensor (B, H, L, width) of any values, with type and device of x (B, H, L, D).

    In memory the heads of a position are neighbours, so that joining them, (B, L, H * width), is a view.
    """
    batch, heads, length, _ = x.shape
    return x.new_empty((batch, length, heads, width)).transpose(1, 2)
