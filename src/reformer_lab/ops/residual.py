"""Residual functions, each in a form that can be undone: what was added is taken away again, and its gradients are taken.

B batch, L length, H heads. Streams are (B, L, d). A form knows three things: `__call__` gives the function's value for plain
autograd; `add` and `undo` change streams in place, with memory for the activations of the function, or of one piece of it.
All randomness comes from the `Draws` that are passed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from reformer_lab.ops.chunking import recompute
from reformer_lab.ops.memory import return_freed_memory
from reformer_lab.ops.random import Draws

Function = Callable[[Tensor, Draws], Tensor]
StreamGradients = tuple[Tensor, Tensor]


class Gradients:
    """The recomputing half of a backward pass: takes gradients and sums up those of the parameters, by the parameter's id."""

    def __init__(self, autocast: dict[str, Any], sums: dict[int, Tensor] | None = None):
        self.autocast = autocast
        self.sums = {} if sums is None else sums
        self._ours = set(self.sums)

    def run(self, function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, list[Tensor]]:
        """Return the function's value, with its graph, and the new leaves that stand for the inputs."""
        # The function alone runs as in the forward pass: under autocast the gradients would be computed in half precision.
        with torch.enable_grad(), torch.autocast(**self.autocast):
            leaves = [x.detach().requires_grad_() for x in inputs]
            return function(*leaves), leaves

    def take(
        self, function: Callable[..., Any], inputs: Sequence[Tensor], parameters: Sequence[Tensor], d_outputs: Sequence[Tensor]
    ) -> tuple[Any, list[Tensor]]:
        """Return the function's value without its graph, and the gradients of its inputs; add those of the parameters."""
        value, leaves = self.run(function, *inputs)
        d_inputs = self.back(value, leaves, parameters, d_outputs)
        return value.detach() if isinstance(value, Tensor) else None, d_inputs

    def back(
        self, value: Tensor | Sequence[Tensor], leaves: Sequence[Tensor], parameters: Sequence[Tensor],
        d_outputs: Sequence[Tensor],
    ) -> list[Tensor]:  # fmt: skip
        """Return the gradients of the leaves of what `run` returned; add those of the parameters."""
        outputs = (value,) if isinstance(value, Tensor) else value
        d_outputs = [d.to(output.dtype) for d, output in zip(d_outputs, outputs, strict=True)]
        trainable = list({id(parameter): parameter for parameter in parameters if parameter.requires_grad}.values())
        # allow_unused: a layer may leave a parameter, or its input, out in some call.
        found = torch.autograd.grad(outputs, [*leaves, *trainable], d_outputs, allow_unused=True)
        for parameter, gradient in zip(trainable, found[len(leaves) :], strict=True):
            if gradient is not None:
                self._add(id(parameter), gradient)
        return [torch.zeros_like(x) if d is None else d for x, d in zip(leaves, found, strict=False)]

    def _add(self, key: int, gradient: Tensor) -> None:
        if key not in self.sums:
            self.sums[key] = gradient
        elif key in self._ours:
            self.sums[key] += gradient
        else:  # the first one came from autograd, which may have given it to others too
            self.sums[key] = self.sums[key] + gradient
            self._ours.add(key)


class Residual:
    """x -> function(x, draws), at once. All that needs gradients besides x must be in `parameters`."""

    def __init__(self, function: Function, parameters: Sequence[Tensor] = ()):
        self.function = function
        self.parameters = tuple(parameters)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        return self.function(x, draws)

    def add(self, read: Tensor, written: Tensor, draws: Draws) -> None:
        """written += function(read), without a graph."""
        written += self(read, draws)

    def undo(
        self, gradients: Gradients, draws: Draws, read: Tensor, written: Tensor, d_read: Tensor, d_written: Tensor
    ) -> None:
        """written -= function(read), and d_read += the gradient of the function at d_written."""
        change, (gradient,) = gradients.take(lambda x: self(x, draws), (read,), self.parameters, (d_written,))
        written -= change
        d_read += gradient

    def between(
        self, gradients: Gradients, draws: Draws, read: Tensor, written: Tensor, inner: Callable[[Tensor], StreamGradients]
    ) -> StreamGradients:
        """Return inner(written + function(read)), the gradients of `read` and of that sum, taken back to `read` and `written`.

        The function is computed once, where `add` and `undo` compute it twice; its activations stay for the time of `inner`.
        The gradients that `inner` returns are changed in place, the streams are not.
        """
        value, leaves = gradients.run(lambda x: self(x, draws), read)
        d_read, d_written = inner(written + value.detach())
        (gradient,) = gradients.back(value, leaves, self.parameters, (d_written,))
        d_read += gradient
        return d_read, d_written


    def is_whole(self, read: Tensor) -> bool:
        """Whether the function of this stream is computed at once, with memory for all of its activations."""
        return True


class ResidualInPieces(Residual):
    """The same for a function that treats each position alone: on pieces of the sequence, each with draws of its own.

    Undoing recomputes a piece and takes its gradient at once, so that a piece is computed twice in all.
    """

    def __init__(self, function: Function, parameters: Sequence[Tensor], chunk_length: int | None):
        super().__init__(function, parameters)
        self.chunk_length = chunk_length

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        pieces = _split(x, self.chunk_length, 1)
        if len(pieces) == 1:
            return self.function(x, draws.part(0))
        return torch.cat([recompute(self.piece(draws, i), piece) for i, piece in enumerate(pieces)], dim=1)

    def add(self, read: Tensor, written: Tensor, draws: Draws) -> None:
        """written += function(read), without a graph."""
        for i, (read_piece, written_piece) in enumerate(_pieces(self.chunk_length, read, written)):
            written_piece += self.piece(draws, i)(read_piece)

    def undo(
        self, gradients: Gradients, draws: Draws, read: Tensor, written: Tensor, d_read: Tensor, d_written: Tensor
    ) -> None:
        """written -= function(read), and d_read += the gradient of the function at d_written."""
        for i, (*streams, d_out) in enumerate(_pieces(self.chunk_length, read, written, d_read, d_written)):
            change, (gradient,) = gradients.take(self.piece(draws, i), streams[:1], self.parameters, (d_out,))
            streams[1] -= change
            streams[2] += gradient

    def piece(self, draws: Draws, index: int) -> Callable[[Tensor], Tensor]:
        """Return the function of one piece."""
        return lambda x: self.function(x, draws.part(index))


class Stages(NamedTuple):
    """after(mix(*before(x))): of a function that mixes positions in its middle alone, as attention does.

    before: (B, l, d) -> tensors (B, H, l, D), each position by itself; mix: those of the whole sequence -> (B, H, L, D_v);
    after: (B, H, l, D_v) -> (B, l, d), again each position by itself.
    """

    before: Callable[[Tensor], tuple[Tensor, ...]]
    mix: Callable[..., Tensor]
    """(*tensors, draws); has no parameters."""
    after: Callable[[Tensor, Draws], Tensor]


class ResidualInStages(Residual):
    """The sum of some functions in stages, such as groups of heads: one after another, each outside its middle in pieces.

    What is ever in memory besides the streams is one group's middle, and one piece of its other stages. The price: in the
    backward pass `before` is computed once more.
    """

    def __init__(self, groups: Sequence[Stages], parameters: Sequence[Tensor], chunk_length: int | None):
        super().__init__(self._sum, parameters)
        self.groups = tuple(groups)
        self.chunk_length = chunk_length

    def _sum(self, x: Tensor, draws: Draws) -> Tensor:
        total = None
        for index, group in enumerate(self.groups):
            mixed = self._mixed(index, x, draws)
            parts = [group.after(piece, draws.part(i)) for i, piece in enumerate(_split(mixed, self.chunk_length, 2))]
            change = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            total = change if total is None else total + change
        assert total is not None
        return total

    def add(self, read: Tensor, written: Tensor, draws: Draws) -> None:
        """written += function(read), without a graph."""
        for index, group in enumerate(self.groups):
            self._make_room(read)
            mixed = self._mixed(index, read, draws)
            pieces = zip(_split(mixed, self.chunk_length, 2), _split(written, self.chunk_length, 1), strict=True)
            for i, (mixed_piece, written_piece) in enumerate(pieces):
                written_piece += group.after(mixed_piece, draws.part(i))

    def undo(
        self, gradients: Gradients, draws: Draws, read: Tensor, written: Tensor, d_read: Tensor, d_written: Tensor
    ) -> None:
        """written -= function(read), and d_read += the gradient of the function at d_written."""
        if self.is_whole(read):
            super().undo(gradients, draws, read, written, d_read, d_written)
            return
        for index in range(len(self.groups)):
            self._make_room(read)
            d_middle = self._undo_from_the_middle(index, gradients, draws, read, written, d_written)
            before = self.groups[index].before
            rows = zip(*(_split(d, self.chunk_length, 2) for d in d_middle), strict=True)
            del d_middle
            for (read_piece, d_read_piece), d_pieces in zip(_pieces(self.chunk_length, read, d_read), rows, strict=True):
                _, (gradient,) = gradients.take(before, (read_piece,), self.parameters, d_pieces)
                d_read_piece += gradient
            del rows, d_pieces  # they hold the middle's gradients, which the next group has no room for

    def is_whole(self, read: Tensor) -> bool:
        """Whether the function of this stream is computed at once, with memory for all of its activations."""
        return len(self.groups) == 1 and len(_split(read, self.chunk_length, 1)) == 1

    def _make_room(self, stream: Tensor) -> None:
        """Return what the pieces before have left, before tensors as long as the sequence are made."""
        if stream.device.type == "cpu" and not self.is_whole(stream):
            return_freed_memory()

    def _undo_from_the_middle(
        self, index: int, gradients: Gradients, draws: Draws, read: Tensor, written: Tensor, d_written: Tensor
    ) -> tuple[Tensor, ...]:
        """Take one group's part away from `written`; return the gradients of what its `mix` was given."""
        group = self.groups[index]
        with torch.no_grad(), torch.autocast(**gradients.autocast):
            middle = self._middle(group, read)
        mixed, leaves = gradients.run(_with(group.mix, self._own(draws, index)), *middle)
        # The end of the graph without the tensor: its memory is free once the pieces are through.
        end, d_mixed = get_gradient_edge(mixed), torch.empty_like(mixed)
        rows = list(zip(*(_split(x, self.chunk_length, 2) for x in (mixed.detach(), d_mixed)), strict=True))
        del mixed
        rows.reverse()
        for i, (written_piece, d_out) in enumerate(_pieces(self.chunk_length, written, d_written)):
            mixed_piece, d_piece = rows.pop()
            after = _with(group.after, draws.part(i))
            change, (gradient,) = gradients.take(after, (mixed_piece,), self.parameters, (d_out,))
            written_piece -= change
            d_piece.copy_(gradient)
        del mixed_piece, d_piece
        return torch.autograd.grad((end,), leaves, (d_mixed,))

    def _mixed(self, index: int, x: Tensor, draws: Draws) -> Tensor:
        group = self.groups[index]
        return group.mix(*self._middle(group, x), self._own(draws, index))

    def _own(self, draws: Draws, index: int) -> Draws:
        """Return the draws of a group's middle: those of the function itself where there is one group."""
        return draws if len(self.groups) == 1 else draws.part(index)

    def _middle(self, group: Stages, x: Tensor) -> tuple[Tensor, ...]:
        pieces = _split(x, self.chunk_length, 1)
        if len(pieces) == 1:
            return group.before(x)
        if torch.is_grad_enabled():
            return tuple(torch.cat(parts, dim=2) for parts in zip(*(group.before(piece) for piece in pieces), strict=True))
        # Copied at once where they belong: kept until all are there, the pieces would take the same memory again.
        whole: tuple[Tensor, ...] = ()
        end = 0
        for piece in pieces:
            parts = group.before(piece)
            whole = whole or tuple(part.new_empty((*part.shape[:2], x.shape[1], part.shape[3])) for part in parts)
            start, end = end, end + piece.shape[1]
            for tensor, part in zip(whole, parts, strict=True):
                tensor[:, :, start:end] = part
        return whole


class LossInPieces:
    """A sum of losses over positions: function(index of the piece, y1, y2) -> scalar, for pieces of the streams (B, L, d)."""

    def __init__(
        self, function: Callable[[int, Tensor, Tensor], Tensor], parameters: Sequence[Tensor], chunk_length: int | None
    ):
        self.function = function
        self.parameters = tuple(parameters)
        self.chunk_length = chunk_length

    def __call__(self, y1: Tensor, y2: Tensor) -> Tensor:
        pieces = list(_pieces(self.chunk_length, y1, y2))
        if len(pieces) == 1:
            return self.function(0, y1, y2)
        return torch.stack([recompute(_with_first(self.function, i), *piece) for i, piece in enumerate(pieces)]).sum()

    def after(self, function: Residual, draws: Draws) -> "LossInPieces | None":
        """Return this as a function of y1 and of y2 before `function(y1)` is added to it; None if its pieces are others."""
        if not isinstance(function, ResidualInPieces) or function.chunk_length != self.chunk_length:
            return None
        return LossInPieces(
            lambda i, y1, x2: self.function(i, y1, x2 + function.piece(draws, i)(y1)),
            (*self.parameters, *function.parameters),
            self.chunk_length,
        )

    def gradient(
        self, gradients: Gradients, y1: Tensor, y2: Tensor, d_loss: Tensor | None = None
    ) -> tuple[Tensor, StreamGradients]:
        """Return the loss and the gradients of the streams, new tensors; `d_loss`: None for 1."""
        d_y1, d_y2 = torch.empty_like(y1), torch.empty_like(y2)
        losses = []
        for i, (one, two, *d_pieces) in enumerate(_pieces(self.chunk_length, y1, y2, d_y1, d_y2)):
            value, leaves = gradients.run(_with_first(self.function, i), one, two)
            seed = torch.ones_like(value) if d_loss is None else d_loss
            for d_piece, gradient in zip(d_pieces, gradients.back(value, leaves, self.parameters, (seed,)), strict=True):
                d_piece.copy_(gradient)
            losses.append(value.detach())
        return torch.stack(losses).sum(), (d_y1, d_y2)


def _split(x: Tensor, chunk_length: int | None, dim: int) -> tuple[Tensor, ...]:
    return (x,) if chunk_length is None or x.shape[dim] <= chunk_length else x.split(chunk_length, dim)


def _pieces(chunk_length: int | None, *streams: Tensor) -> Any:
    return zip(*(_split(x, chunk_length, 1) for x in streams), strict=True)


def _with(function: Callable[..., Tensor], draws: Draws) -> Callable[..., Tensor]:
    return lambda *inputs: function(*inputs, draws)


def _with_first(function: Callable[..., Tensor], index: int) -> Callable[..., Tensor]:
    return lambda *inputs: function(index, *inputs)


