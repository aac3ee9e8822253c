"""One text that grows, and is read as it grows: a chat, of which each turn costs its new tokens alone.

What was read is always tokens of the whole text, as the tokenizer cuts it. Where more text changes the last tokens of
what was read (World has one token for a Chinese full stop with its line end), or where the model wrote its answer in
other tokens than the tokenizer would, reading goes back to the last kept state before that place.
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, Key

from rwkv7_jax import bucketing
from rwkv7_jax.functional import Params
from rwkv7_jax.generation import decode_loop
from rwkv7_jax.generation.batch import Arguments, GenerationBatch
from rwkv7_jax.generation.generate import uncounted_ids
from rwkv7_jax.generation.sampling import SamplingParams
from rwkv7_jax.generation.stop_strings import StopText
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.tokenizer import Tokenizer

PIECE = 256
"""Tokens read at once."""
CHUNK = 8
"""Tokens generated between two looks at their text; after an answer at most so many are read again."""
KEPT = 16
"""Beginnings of earlier answers to which reading can go back, beside the beginning of the text."""


class Mark(NamedTuple):
    """A place in the text and the state there."""

    length: int
    """Tokens before it."""
    state: State | None
    """Of one row [L, 1, ...], but at the beginning of the text: as it was given."""
    kept: bool = False
    """Whether it is kept once the text goes on."""


class Answer(NamedTuple):
    """What was generated."""

    text: str
    tokens: list[int]
    """As the model chose them, those of a stop string at the end included."""
    finished: bool
    """True: ended by itself (end token, stop string). False: cut by the longest length, or by the caller."""


class TextReader:
    """A model that reads one growing text; `read` and `answer` take the whole text, and read what is new.

    Args:
      model: the model; fastest as `for_decoding` returns it.
      params: its weights.
      tokenizer: its tokenizer.
      start: the state before the text, unbatched; None is the zero state.
    """

    def __init__(self, model: RWKV7, params: Params, tokenizer: Tokenizer, start: State | None = None):
        self.ids: list[int] = []
        """The tokens read: of the text, and after it what was generated."""
        self.fed = 0
        """Tokens computed so far, prompts and answers together."""
        self._model, self._params, self._tokenizer = model, params, tokenizer
        self._encoder = Encoder(tokenizer)
        self._marks = [Mark(0, start, kept=True)]

    def read(self, text: str) -> State:
        """Reads up to the end of a text, and returns the unbatched state there.

        Raises:
          NonFiniteLogitsError: a `ValueError`; logits that are not finite.
        """
        ids = self._encoder.encode(text)
        self._go_back(ids)
        self._feed(ids)
        length, state, _ = self._marks[-1]
        if length:
            return jax.tree.map(lambda leaf: leaf[:, 0], state)
        return zero_state(self._model.config, None) if state is None else state

    def answer(
        self,
        text: str,
        key: Key[Array, ""],
        config: SamplingParams,
        *,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generator[str, None, Answer]:
        """Yields the continuation of a text in pieces, as `generate.stream` does.

        Args:
          text: the whole text so far.
          key: a random key.
          config: how tokens are chosen, and how many at most.
          stop: texts that end the continuation and are left out of it.
          cancelled: asked between pieces; True ends the continuation there.

        Yields:
          Pieces of text. The generator returns the `Answer`.

        Raises:
          ValueError: the text has no token, or an empty stop string.
          NonFiniteLogitsError: a `ValueError`; logits that are not finite.
        """
        found, ids = StopText(self._tokenizer, stop), self._encoder.encode(text)
        if not ids:
            raise ValueError("the text to continue has no token")
        self._go_back(ids[:-1])
        self._feed(ids[:-1])
        *earlier, last = self._marks
        self._marks = [mark for mark in earlier if mark.kept] + [last._replace(kept=True)]
        del self._marks[1:-KEPT]
        chunks, tokens, ended = self._generated(ids, key, config), [], False
        while not (found.hit or cancelled()):
            new = next(chunks, None)
            if new is None:
                ended = len(tokens) < config.max_new_tokens
                break
            tokens += new
            if piece := found.push(new):
                yield piece
        if piece := found.finish():
            yield piece
        return Answer(found.text, tokens, ended or found.hit)

    def _generated(
        self, ids: Sequence[int], key: Key[Array, ""], config: SamplingParams
    ) -> Generator[list[int], None, None]:
        """Yields generated tokens chunk after chunk; the last of `ids` is not yet read."""
        penalised = config.presence_penalty != 0 or config.frequency_penalty != 0
        uncounted = uncounted_ids(self._tokenizer) if penalised else ()
        batch = self._batch([ids[-1]], key, config, uncounted)
        now = decode_loop.prefill(
            self._model, self._params, *batch.prompt, batch.state, batch.rules(0), penalised=batch.flags.penalised
        )
        self._read_to(ids, now)
        left, size, active, chunks = config.max_new_tokens, bucketing.padded_prompt_length(CHUNK), True, 0
        while left > 0 and active:
            limit = min(CHUNK, left)
            rules = batch.rules(limit)
            now = decode_loop.decode(self._model, self._params, now, batch.keys, rules, flags=batch.flags, size=size)
            new, length, still, wrong = jax.device_get((now.tokens, now.length, now.active, now.wrong))
            batch.check(wrong)
            left, active, chunks = left - limit, bool(still[0]), chunks + 1
            tokens: list[int] = new[0, : length[0]].tolist()
            self._read_to([*self.ids, *tokens], now)
            if chunks > 2:
                del self._marks[-3]
            yield tokens

    def _go_back(self, ids: Sequence[int]) -> None:
        """Forgets what does not begin the tokens."""
        pairs = zip(self.ids, ids, strict=False)
        same = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(self.ids), len(ids)))
        self._marks = [mark for mark in self._marks if mark.length <= same]
        self.ids = self.ids[: self._marks[-1].length]

    def _feed(self, ids: Sequence[int]) -> None:
        """Reads on to the end of the tokens, and keeps the state there."""
        begin = len(self.ids)
        for at in range(begin, len(ids), PIECE):
            batch = self._batch(ids[at : at + PIECE], jax.random.key(0), SamplingParams(), ())
            now = decode_loop.prefill(
                self._model, self._params, *batch.prompt, batch.state, batch.rules(0), penalised=False
            )
            batch.check(jax.device_get(now.wrong))
            self._read_to(ids[: at + PIECE], now)
            if at > begin:
                del self._marks[-2]

    def _batch(
        self, ids: Sequence[int], key: Key[Array, ""], config: SamplingParams, uncounted: Sequence[int]
    ) -> GenerationBatch:
        """The next tokens after the last mark."""
        state, eos = self._marks[-1].state, self._tokenizer.eos_id
        return GenerationBatch(Arguments(self._model, self._params, [ids], state, key, config, (), eos, uncounted))

    def _read_to(self, ids: Sequence[int], now: decode_loop.Decoding) -> None:
        self.fed += len(ids) - len(self.ids)
        self.ids = list(ids)
        self._marks.append(Mark(len(ids), decode_loop.join(now.state)))
