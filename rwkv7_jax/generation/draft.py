"""A small model beside the large one, and a generation with both; see `rwkv7_jax.generation.speculative`."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from rwkv7_jax import bucketing
from rwkv7_jax.functional import Params
from rwkv7_jax.generation import speculative
from rwkv7_jax.generation.batch import Arguments, GenerationBatch, fit_state
from rwkv7_jax.generation.decode_loop import Decoding, pad_left
from rwkv7_jax.generation.speculative import Drafted, Models, Weights
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State

MOST = 64
"""Tokens proposed a round, at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """A smaller model that proposes tokens; it changes how fast tokens come, not what comes.

    `Draft(*lm.for_rows(n))` is that of a `LanguageModel` for n prompts.

    Raises:
      ValueError: `tokens` is out of its range.
    """

    model: RWKV7
    """The smaller model, its layers one by one."""
    params: Params
    """Its weights, as `for_decoding` returns them."""
    tokens: int = 4
    """Proposed a round."""
    state: State | None = None
    """Its initial state, unbatched or a row each; None is the zero state."""

    def __post_init__(self):
        if not 1 <= self.tokens <= MOST:
            raise ValueError(f"draft: the number of tokens must lie in 1..{MOST}, got {self.tokens!r:.60}")


class SpeculativeBatch(GenerationBatch):
    """Checked arguments of one generation with a draft, as arrays.

    Raises:
      ValueError: as `GenerationBatch`; the two models have different vocabularies.
    """

    def __init__(self, draft: Draft, given: Arguments):
        super().__init__(given)
        model, params = self.model, self.params
        sizes = [one.config.vocab_size for one in (draft.model, model)]
        if sizes[0] != sizes[1]:
            text = f"draft: its vocabulary has {sizes[0]} tokens, that of the model {sizes[1]}"
            raise ValueError(f"{text}; give a draft with the same tokenizer")
        self._models, self._weights = Models(model, draft.model), Weights(params, draft.params)
        self._start, self._width = fit_state(draft.model, draft.state, len(given.prompts)), draft.tokens
        self._most = jax.device_put(np.asarray(self.limit, np.int32))

    def prefill(self) -> Decoding:
        """Reads the prompts, but their last token."""
        window, penalised = self.rules(0).stops.shape[1], self.flags.penalised
        starts = (self.state, self._start)
        return speculative.prefill(
            self._models, self._weights, *self.prompt, starts, window=window, penalised=penalised
        )

    def decode(self, now: Decoding, limit: int, size: int) -> Decoding:
        """Generates until every row has `limit` <= size tokens, or a round more."""
        return speculative.decode(
            self._models, self._weights, now, self.keys, self.rules(limit), self._most,
            flags=self.flags, size=size, width=self._width,
        )  # fmt: skip

    def run(self) -> tuple[Decoding, Decoding]:
        """Returns the batch after the prompts, and after all tokens."""
        start = self.prefill()
        return start, self.decode(start, self.limit, bucketing.padded_prompt_length(self.limit))

    def settle(
        self, start: Decoding, end: Decoding, kept: list[list[int]], cut: Bool[np.ndarray, "B"]
    ) -> tuple[Float[Array, "B vocab"], State]:
        """Returns (logits, state) after the kept tokens; rows that were `cut`, or stopped, are read again.

        Raises:
          NonFiniteLogitsError: a row has logits that are not finite.
        """
        wrong, stopped, before, last = jax.device_get(
            (end.wrong, end.stop_length, start.ahead.pending, end.ahead.pending)
        )
        self.check(wrong)
        again = cut | (stopped > 0)
        rows = [
            [int(first), *ids] if replayed else [int(pending)]
            for replayed, first, pending, ids in zip(again, before, last, kept, strict=True)
        ]
        longest = max(map(len, rows))
        padded = pad_left(rows, 1 if longest == 1 else bucketing.padded_prompt_length(longest))
        tokens, valid, again = jax.device_put((*padded, again))
        logits, state, wrong = speculative.finish(self._models, self._weights, start, end, tokens, valid, again)
        self.check(jax.device_get(wrong))
        return logits, state

    def drafted(self, end: Decoding) -> Drafted | None:
        """Returns what speculation did."""
        passes, accepted = jax.device_get((end.ahead.passes, end.ahead.accepted))
        return Drafted(passes.tolist(), accepted.tolist())


def make_batch(draft: Draft | None, given: Arguments) -> GenerationBatch:
    """Returns the arguments of one generation, with a draft or without.

    Raises:
      ValueError: as `SpeculativeBatch`.
    """
    return GenerationBatch(given) if draft is None else SpeculativeBatch(draft, given)
