"""Beam search: the continuations that a model finds most probable, among those that a beam of a given width meets."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from reformer_lab.layers.cache import DecodingCache
    from reformer_lab.models.language_model import ReformerLM


class Generation(NamedTuple):
    """A continuation. tokens: the new ones, with the end token where there is one; log_probability: their sum, in nats, under
    the model itself, whatever they were drawn with; ended: by the end token."""

    tokens: list[int]
    log_probability: float
    ended: bool


def score(generation: Generation, length_penalty: float) -> float:
    """Return log p / ((5 + length) / 6)^length_penalty (Wu et al., 2016, equation 14)."""
    return generation.log_probability / ((5 + len(generation.tokens)) / 6) ** length_penalty


def beam_search(
    model: "ReformerLM",
    tokens: Tensor,
    lengths: Tensor,
    *,
    length: int,
    num_beams: int,
    length_penalty: float = 0.0,
    end_token: int | None = None,
    computing: "Callable[[], AbstractContextManager[object]]",
) -> list[list[Generation]]:
    """Return for each prompt up to `num_beams` continuations of at most `length` tokens, the best score first.

    tokens (B, L), lengths (B,): as `model.start` takes them; the model must be in eval mode. `computing`: context of its calls.
    Beams of different prompts do not know of each other. A step copies the caches: its work grows with the text.
    """
    with computing():
        logits, cache = model.start(tokens, lengths)
    live = [[Generation([], 0.0, False)] for _ in range(len(tokens))]
    finished: list[list[Generation]] = [[] for _ in range(len(tokens))]
    for step in range(length):
        parents: list[int] = []
        first_row = 0
        totals = _totals(logits, [beam for beams in live for beam in beams])
        for prompt, beams in enumerate(live):
            rows = totals[first_row : first_row + len(beams)]
            chosen = _expand(beams, rows, finished[prompt], num_beams, end_token)
            if _settled(chosen, finished[prompt], num_beams, length, length_penalty):
                chosen = []
            live[prompt] = [beam for _, beam in chosen]
            parents += [first_row + row for row, _ in chosen]
            first_row += len(beams)
        if step + 1 == length or not parents:
            break
        logits = _step(model, cache, parents, [beam.tokens[-1] for beams in live for beam in beams], computing)
    for prompt, beams in enumerate(live):
        finished[prompt] += beams
    return [sorted(found, key=lambda beam: -score(beam, length_penalty))[:num_beams] for found in finished]


def _totals(logits: Tensor, beams: list[Generation]) -> Tensor:
    """Return the log probability (rows, V), fp64, of each beam with each token after it."""
    before = torch.tensor([beam.log_probability for beam in beams], dtype=torch.float64, device=logits.device)
    return before[:, None] + logits.double().log_softmax(-1)


def _expand(
    beams: list[Generation], totals: Tensor, finished: list[Generation], num_beams: int, end_token: int | None
) -> list[tuple[int, Generation]]:
    """Return the best beams that go on, each with the row of `totals` that it comes from; append those that end.

    Of 2 * num_beams candidates at most num_beams end, so as many are left to go on; an ending counts only among the best
    num_beams.
    """
    best = totals.flatten().topk(min(2 * num_beams, totals.numel()))
    going_on: list[tuple[int, Generation]] = []
    for rank, (total, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        row, token = divmod(index, totals.shape[1])
        beam = Generation([*beams[row].tokens, token], total, token == end_token)
        if not beam.ended and len(going_on) < num_beams:
            going_on.append((row, beam))
        elif beam.ended and rank < num_beams:
            finished.append(beam)
    return going_on


def _settled(
    chosen: list[tuple[int, Generation]], finished: list[Generation], num_beams: int, length: int, length_penalty: float
) -> bool:
    """Say that no beam that goes on can still be among the best `num_beams`: log probabilities only fall."""
    if len(finished) < num_beams or not chosen:
        return False
    worst = sorted((score(beam, length_penalty) for beam in finished), reverse=True)[num_beams - 1]
    best = max(beam.log_probability for _, beam in chosen)
    at_most = best / ((5 + length) / 6) ** max(length_penalty, 0.0)
    return at_most <= worst


def _step(
    model: "ReformerLM", cache: "DecodingCache", parents: list[int], tokens: list[int],
    computing: "Callable[[], AbstractContextManager[object]]",
) -> Tensor:  # fmt: skip
    device = cache.lengths.device
    if parents != list(range(len(cache.lengths))):
        cache.reorder(torch.tensor(parents, device=device))
    with computing():
        return model.step(torch.tensor(tokens, device=device), cache)
