"""Continue texts with a trained model: greedy, at random, or by beams; all at once, or token by token as they come.

Work per token does not grow with the text in local layers and in LSH layers of coverage "chunk"; see `layers.cache`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.evaluation.beams import Generation, beam_search
from reformer_lab.evaluation.evaluate import autocast
from reformer_lab.evaluation.sampling import Sampling
from reformer_lab.seeds import derive_seed

if TYPE_CHECKING:
    from reformer_lab.models.language_model import ReformerLM


def generate(
    model: "ReformerLM",
    prompts: Sequence[Sequence[int]],
    *,
    length: int,
    greedy: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    length_penalty: float = 0.0,
    num_hashes: int | None = None,
    seed: int = 0,
    end_token: int | None = None,
    precision: str = "fp32",
) -> list[Generation]:
    """Return for each prompt up to `length` new tokens, their log probability and whether they ended.

    Args:
        prompts: token ids, at least one each; they may differ in length. What a prompt gets does not depend on the others.
        greedy: take the most probable token. Otherwise tokens are drawn, by the options of `Sampling`, unless there are beams.
        num_beams: more than 1: beam search of that width, with `length_penalty` of Wu et al. (2016).
        num_hashes: hash rounds of LSH attention, for example more than in training. None: the model's.
        seed: of the draws, which follow from it, from the prompt and from how many equal prompts stand before.
        end_token: a text ends after it. None: at `length` alone.
        precision: "fp32", or "bf16" for autocast.

    Whatever the model's mode, it computes as in evaluation, and its mode stays as it is.

    >>> from reformer_lab.models.language_model import ReformerLM
    >>> from reformer_lab.models.presets import get_preset
    >>> model = ReformerLM(get_preset("cpu_tiny"))
    >>> results = generate(model, [[70, 71, 72], [80]], length=5, temperature=0.8, top_k=40)
    >>> [len(result.tokens) for result in results]
    [5, 5]

    Raises:
        UserError: names a prompt or an option that cannot be used, and the remedy.
    """
    if num_beams < 1 or (num_beams > 1 and (greedy or (temperature, top_k, top_p) != (None, None, None))):
        raise UserError(
            f"num_beams={num_beams}: must be at least 1, and more go with neither greedy, temperature, top_k nor top_p, as "
            "beams search and do not draw: leave these out"
        )
    if num_beams > 1:
        ready = _ready(model, prompts, length, num_hashes, end_token)
        found = beam_search(
            ready.model, ready.tokens, ready.lengths, length=length, num_beams=num_beams, length_penalty=length_penalty,
            end_token=end_token, computing=partial(autocast, ready.tokens.device, precision),
        )  # fmt: skip
        return [best for best, *_ in found]
    tokens: list[list[int]] = [[] for _ in prompts]
    log_probabilities = [0.0 for _ in prompts]
    sampling = _sampling(greedy, temperature, top_k, top_p)
    steps = _steps(_ready(model, prompts, length, num_hashes, end_token), length, sampling, seed, end_token, precision)
    for chosen in steps:
        for row, token, log_probability in chosen:
            tokens[row].append(token)
            log_probabilities[row] += log_probability
    return [
        Generation(new, log_probability, new[-1] == end_token)
        for new, log_probability in zip(tokens, log_probabilities, strict=True)
    ]


def stream(
    model: "ReformerLM",
    prompts: Sequence[Sequence[int]],
    *,
    length: int,
    greedy: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    num_hashes: int | None = None,
    seed: int = 0,
    end_token: int | None = None,
    precision: str = "fp32",
) -> Iterator[list[int | None]]:
    """Return an iterator over the same tokens as `generate` gives: at each step one for each prompt, None where it has ended.

    >>> from reformer_lab.models.language_model import ReformerLM
    >>> from reformer_lab.models.presets import get_preset
    >>> [len(step) for step in stream(ReformerLM(get_preset("cpu_tiny")), [[70, 71], [80]], length=3, greedy=True)]
    [2, 2, 2]
    """
    sampling = _sampling(greedy, temperature, top_k, top_p)
    steps = _steps(_ready(model, prompts, length, num_hashes, end_token), length, sampling, seed, end_token, precision)
    return (_spread(chosen, len(prompts)) for chosen in steps)


class _Ready(NamedTuple):
    """A model in eval mode, and prompts as it takes them: tokens (B, L), lengths (B,)."""

    model: "ReformerLM"
    prompts: list[tuple[int, ...]]
    tokens: Tensor
    lengths: Tensor


def _steps(
    ready: _Ready, length: int, sampling: Sampling | None, seed: int, end_token: int | None, precision: str
) -> Iterator[list[tuple[int, int, float]]]:
    """Yield at each step (row, token, log probability) of the texts that go on."""
    model, prompts, tokens, lengths = ready
    generators = _generators(prompts, seed)
    rows = list(range(len(prompts)))
    with autocast(tokens.device, precision):
        logits, cache = model.start(tokens, lengths)
    for step in range(length):
        chosen = logits.argmax(-1) if sampling is None else sampling.draw(logits, [generators[row] for row in rows])
        log_probabilities = logits.double().log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        numbers = chosen.tolist()
        yield list(zip(rows, numbers, log_probabilities.tolist(), strict=True))
        going_on = [index for index, token in enumerate(numbers) if token != end_token]
        if step + 1 == length or not going_on:
            return
        if len(going_on) < len(rows):
            kept = torch.tensor(going_on, device=tokens.device)
            cache.reorder(kept)
            chosen = chosen[kept]
            rows = [rows[index] for index in going_on]
        with autocast(tokens.device, precision):
            logits = model.step(chosen, cache)


def _spread(chosen: list[tuple[int, int, float]], number: int) -> list[int | None]:
    tokens: list[int | None] = [None] * number
    for row, token, _ in chosen:
        tokens[row] = token
    return tokens


def _generators(prompts: list[tuple[int, ...]], seed: int) -> list[torch.Generator]:
    """Return one generator a prompt: a prompt draws the same alone and in a batch, and equal prompts draw differently."""
    seen: dict[tuple[int, ...], int] = {}
    generators = []
    for prompt in prompts:
        seen[prompt] = seen.get(prompt, -1) + 1
        generators.append(torch.Generator().manual_seed(derive_seed(seed, "sample", seen[prompt], *prompt)))
    return generators


def _sampling(greedy: bool, temperature: float | None, top_k: int | None, top_p: float | None) -> Sampling | None:
    if not greedy:
        return Sampling(temperature=1.0 if temperature is None else temperature, top_k=top_k, top_p=top_p)
    for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
        if value is not None:
            raise UserError(f"{name}={value} beside greedy: the most probable token needs no draw; leave one of the two out")
    return None


def _ready(
    model: "ReformerLM", given: Sequence[Sequence[int]], length: int, num_hashes: int | None, end_token: int | None
) -> _Ready:
    """Return the model in eval mode and the prompts as tensors, after every check."""
    vocab_size, max_length = model.config.vocab_size, model.config.max_length
    if length < 1:
        raise UserError(f"length={length}: must be at least 1, the number of new tokens")
    if end_token is not None and not 0 <= end_token < vocab_size:
        raise UserError(f"end_token={end_token}: must be a token of the model, 0..{vocab_size - 1}, or None")
    try:
        prompts = [tuple(int(token) for token in prompt) for prompt in given]
    except (TypeError, ValueError):
        raise UserError(f"prompts {str(given)[:60]!r}: expected a list of prompts, each of them tokens, such as [[74, 118]]; "
                        "of a text: [[byte + 2 for byte in text.encode()]]") from None
    if not prompts:
        raise UserError("no prompt: give at least one")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {number} is empty: give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UserError(f"token {wrong} of prompt {number} is not in the model's vocabulary, 0..{vocab_size - 1}")
        if len(prompt) + length > max_length:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, which with {length} new ones exceed max_length={max_length}: "
                + (f"ask for at most {max_length - len(prompt)}" if len(prompt) < max_length
                   else f"give its last {max_length - length} tokens or fewer")
            )  # fmt: skip
    changes = {}
    if num_hashes is not None:
        if "lsh" not in model.config.layer_kinds():
            raise UserError(f"num_hashes={num_hashes}: the model has no LSH attention; leave it out")
        changes["num_hashes"] = num_hashes
    device = model.embedding.weight.device
    tokens = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.as_tensor(prompt)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    # Another module over the same parameters: the mode of the given one is its owner's.
    return _Ready(model.with_config(**changes).eval(), prompts, tokens.to(device), lengths)
