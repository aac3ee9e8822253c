"""A model's own verified solutions: samples of training problems whose answer a checker accepts.

Tuning on a few of them is the protocol of S0 Tuning (arXiv 2604.01168).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.config.overrides import UsageError
from experiments.evaluation.problems import Item
from rwkv7_jax import State
from rwkv7_jax.generation.generate import SamplingParams, TextResult, generate_text
from rwkv7_jax.language_model import LanguageModel


class Sampling(NamedTuple):
    """How problems are tried."""

    wanted: int = 48
    """Solutions; at most one of each problem."""
    samples: int = 8
    """Of each problem at most."""
    batch_size: int = 32
    temperature: float = 1.0
    max_new_tokens: int = 96
    seed: int = 0


class Solution(NamedTuple):
    """An accepted sample."""

    problem: int
    """Number of the problem."""
    prompt: str
    """Without the solved examples before it."""
    completion: str
    sample: int
    """Which of the samples of its problem it is, from 0."""


class Round(NamedTuple):
    """What a pass over the open problems gave."""

    solutions: list[Solution]
    sampled: int
    accepted: int
    cut: int
    """Samples that did not end by themselves, which are not accepted."""


Tick = Callable[[int, int], None]
"""(samples just drawn, solutions so far); may raise to stop."""


def solve(
    lm: LanguageModel,
    state: State,
    items: Sequence[Item],
    sampling: Sampling,
    before: Sequence[str] = (),
    tick: Tick = lambda drawn, solved: None,
) -> Round:
    """Samples problems until enough are solved.

    All problems are tried once, then those that are open again, so that easy ones do not use up the samples. A sample
    depends on the seed, its problem and its number alone.

    Args:
      lm: the model.
      state: where it starts, unbatched.
      items: problems that are answered by a text.
      sampling: how.
      before: text before each problem's prompt while it is sampled, as solved examples; none: nothing.
      tick: called after each batch.

    Returns:
      The solutions in the order of problems, and the counts.

    Raises:
      UsageError: problems have given choices, whose likelihood would be asked for instead of a text.
    """
    if any(item.problem.choices for item in items):
        raise UsageError("these problems are answered by likelihoods: add --data.chain NAME, which asks for a text")
    found: dict[int, Solution] = {}
    sampled = accepted = cut = 0
    for number in range(sampling.samples):
        open_ones = [index for index in range(len(items)) if index not in found]
        for chosen in _batches(open_ones, sampling.batch_size):
            drawn = _sample(lm, state, items, chosen, number, sampling, before)
            for index, text, ended in zip(chosen, drawn.texts, drawn.finished, strict=False):
                sampled, cut = sampled + 1, cut + (not ended)
                right = ended and bool(text.strip()) and items[index].correct([text]) == 1.0
                accepted += right
                if right and len(found) < sampling.wanted:
                    found[index] = Solution(index, items[index].problem.prompt, text.rstrip(), number)
            tick(len(chosen), len(found))
            if len(found) == sampling.wanted:
                return Round([found[index] for index in sorted(found)], sampled, accepted, cut)
    return Round([found[index] for index in sorted(found)], sampled, accepted, cut)


def _batches(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    for begin in range(0, len(indices), size):
        yield list(indices[begin : begin + size])


def _sample(
    lm: LanguageModel,
    state: State,
    items: Sequence[Item],
    chosen: Sequence[int],
    number: int,
    sampling: Sampling,
    before: Sequence[str],
) -> TextResult:
    """One sample of each problem; a batch that is not full repeats its last one, so that all have one shape."""
    rows = [*chosen, *[chosen[-1]] * (sampling.batch_size - len(chosen))]
    key = jax.random.fold_in(jax.random.key(sampling.seed), number)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(np.asarray(rows, np.uint32))
    prompts = [f"{before[row] if before else ''}{items[row].problem.prompt}" for row in rows]
    settings = SamplingParams(temperature=sampling.temperature, max_new_tokens=sampling.max_new_tokens)
    model, params = lm.for_decoding
    stop = items[chosen[0]].problem.stop
    return generate_text(model, params, lm.tokenizer, prompts, state, keys, settings, stop=stop)
