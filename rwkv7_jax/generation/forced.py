"""Log-probabilities of given tokens as decoding computes them: after the same prefill, token by token, side by side.

A scoring pass reads many tokens at once and adds up in another order, so that it agrees to rounding. This agrees bit
for bit on a CPU, and takes as long as generating the tokens does.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.finite import NONE, not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.batch import Arguments, GenerationBatch
from rwkv7_jax.generation.decode_loop import Decoding, read
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State

__all__ = ["Forced", "log_probs"]


class Forced(NamedTuple):
    """What decoding says of given tokens, row by row."""

    log_probs: list[Float[np.ndarray, "N"]]
    """Of each token, natural, float32: before penalties, temperature and filters."""
    logits: Float[Array, "B vocab"]
    """For the token after the last one, float32."""


def log_probs(
    model: RWKV7,
    params: Params,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    state: State | None = None,
) -> Forced:
    """Computes the log-probability that each answer's tokens had when they were generated.

    On a CPU it is the same number, bit for bit, as `generate` computes with the same weights for these prompts side by
    side; on other devices equal programs may still be scheduled apart.

    Args:
      model: the model, as `for_decoding` returns it.
      params: its weights.
      prompts: token ids, rows of any lengths >= 1.
      answers: the tokens after each prompt, rows of any lengths; end tokens count like others.
      state: row i starts from row i; an unbatched state is every row's start; None is the zero state.

    Returns:
      The log-probabilities, and the logits after each answer.

    Raises:
      ValueError: an empty prompt, an id outside the vocabulary, a misfitting state, or not one answer for each prompt.
      NonFiniteLogitsError: a `ValueError`; logits that are not finite, with the row and the token after which.

    Example:
      >>> from rwkv7_jax import RWKV7, RWKV7Config
      >>> from rwkv7_jax.model import init_params
      >>> model = RWKV7(RWKV7Config(vocab_size=16, n_layer=1, n_embd=8, head_size=4, scan_layers=False))
      >>> params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
      >>> [row.shape for row in log_probs(model, params, [[1, 2], [3]], [[4], [5, 6, 7]]).log_probs]
      [(1,), (3,)]
    """
    if len(prompts) != len(answers):
        raise ValueError(f"log_probs: {len(answers)} answers for {len(prompts)} prompts")
    batch = GenerationBatch(Arguments(model, params, prompts, state, jax.random.key(0)))
    length = padded_prompt_length(max(map(len, answers)))
    tokens, counted = np.zeros((len(answers), length), np.int32), np.zeros((len(answers), length), bool)
    for row, ids in enumerate(answers):
        if ids and not 0 <= min(ids) <= max(ids) < model.config.vocab_size:
            raise ValueError(f"log_probs: answer {row} has ids outside 0..{model.config.vocab_size - 1}")
        tokens[row, : len(ids)], counted[row, : len(ids)] = ids, True
    limit = np.asarray(max(map(len, answers)), np.int32)
    found, logits, wrong = _force(model, params, batch.prefill(), *jax.device_put((tokens, counted, limit)))
    batch.check(jax.device_get(wrong))
    return Forced([row[: len(ids)] for row, ids in zip(jax.device_get(found), answers, strict=True)], logits)


def scores(
    model: RWKV7, params: Params, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], state: State, rows: int
) -> list[float]:
    """Computes log P(answer | prompt) of each pair as `log_probs`, `rows` of them side by side, in their order.

    Where rows are left over, the last pair fills them up, so that all are computed by one program.
    """
    found: list[float] = []
    for begin in range(0, len(pairs), rows):
        part = list(pairs[begin : begin + rows])
        prompts, answers = zip(*part, *[part[-1]] * (rows - len(part)), strict=True)
        sums = [float(row.sum(dtype=np.float64)) for row in log_probs(model, params, prompts, answers, state).log_probs]
        found += sums[: len(part)]
    return found


@partial(jax.jit, static_argnames="model")
def _force(
    model: RWKV7,
    params: Params,
    start: Decoding,
    tokens: Int[Array, "B N"],
    counted: Bool[Array, "B N"],
    limit: Int[Array, ""],
) -> tuple[Float[Array, "B N"], Float[Array, "B vocab"], Int[Array, "B"]]:
    """(log-probabilities of the first `limit` tokens, logits after the counted ones, `Decoding.wrong`).

    The loop is that of `decode_loop.decode` with the tokens given instead of chosen.
    """

    def body(column: Int[Array, ""], carry: tuple) -> tuple:
        logits, state, found, wrong = carry
        token, feed = tokens[:, column], counted[:, column]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        after, state = read(model, params, token[:, None], state, feed[:, None])
        wrong = jnp.where(feed & not_finite(after) & (wrong == NONE), column + 1, wrong)
        return jnp.where(feed[:, None], after, logits), state, found.at[:, column].set(chosen), wrong

    first = (start.logits, start.state, jnp.zeros(tokens.shape, jnp.float32), start.wrong)
    logits, _, found, wrong = jax.lax.fori_loop(0, limit, body, first)
    return found, logits, wrong
