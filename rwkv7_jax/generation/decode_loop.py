"""The compiled part of generation: prefill, then a `lax.while_loop` of choose, match, feed. Weights are arguments.

Everything that varies from call to call (prompts, states, keys, sampling numbers, stop sequences) is an argument too;
a new program is compiled only for a new model, `SamplingFlags`, batch size, or length bucket.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rwkv7_jax import functional, streamed
from rwkv7_jax.bucketing import next_power_of_two
from rwkv7_jax.finite import NONE, not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.sampling import Occurrences, SamplingArrays, SamplingFlags, choose
from rwkv7_jax.model import RWKV7, join_layers, split_layers
from rwkv7_jax.state import State

NO_TOKEN = -1
"""Never chosen: what `recent` holds before the first token."""
ANY_TOKEN = -2
"""In a stop sequence: matches everything (shorter sequences are filled up on the left with it)."""
NO_MATCH = -3
"""In a stop sequence: matches nothing (fills up the list of sequences)."""


class Rules(NamedTuple):
    """How tokens are chosen, and when a row ends."""

    arrays: SamplingArrays
    weight: Float[Array | np.ndarray, "#vocab"]
    """How much one occurrence of a token counts for the penalties; empty if there are none."""
    stops: Int[Array | np.ndarray, "N S"]
    eos_id: Int[Array | np.ndarray, ""]
    limit: Int[Array | np.ndarray, ""]
    """Tokens to generate at most in this call."""


class Decoding(NamedTuple):
    """A batch between two tokens. Chosen tokens lie in `tokens[:, :length]`, a matched stop sequence included."""

    logits: Float[Array, "B vocab"]
    state: State | list[State]
    """After the last token fed: the last chosen one, unless that completed a stop sequence. One a layer, if the model's
    layers stand one by one."""
    active: Bool[Array, "B"]
    recent: Int[Array, "B S"]
    occurrences: Occurrences
    step: Int[Array, ""]
    tokens: Int[Array, "B N"]
    length: Int[Array, "B"]
    stop_length: Int[Array, "B"]
    """Length of the stop sequence that ended the row, 0 if none did."""
    wrong: Int[Array, "B"]
    """Number of tokens chosen before the row's first logits that are not finite, which end it, or NONE."""
    ahead: PyTree = None
    """What speculation has beside, see `rwkv7_jax.generation.speculative.Ahead`."""


def read(
    model: RWKV7,
    params: Params,
    tokens: Int[Array, "B T"],
    state: State | list[State],
    valid: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B vocab"], State | list[State]]:
    """Returns (logits after each row's last valid token, state there); logits of rows without one are undefined."""
    if isinstance(state, list):
        return functional.step(model, params, tokens, state, valid=valid)
    logits, after = functional.forward(model, params, tokens, state, valid=valid, last_only=True)
    return logits[:, 0], after


def _prefill(
    model: RWKV7,
    params: Params,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: State,
    window: int,
    penalised: bool,
) -> Decoding:
    """Reads the prompts. window: tokens that the longest stop sequence has."""
    batch = tokens.shape[0]
    split = state if model.config.scan_layers else split_layers(state)
    logits, after = read(model, params, tokens, split, valid)
    wrong = not_finite(logits)
    counts = jnp.zeros(batch, jnp.int32)
    return Decoding(
        logits=logits,
        state=after,
        active=~wrong,
        recent=jnp.full((batch, window), NO_TOKEN, jnp.int32),
        occurrences=Occurrences.none(batch, logits.shape[-1] if penalised else 0),
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((batch, 0), jnp.int32),
        length=counts,
        stop_length=counts,
        wrong=jnp.where(wrong, jnp.zeros((), jnp.int32), NONE),
    )


def _decode(
    model: RWKV7, params: Params, start: Decoding, keys: Key[Array, "B"], rules: Rules, flags: SamplingFlags, size: int
) -> Decoding:
    """Generates up to `rules.limit` <= size tokens; ends early once no row is active."""
    batch = start.active.shape[0]
    end = start.step + rules.limit
    blank = start._replace(tokens=jnp.zeros((batch, size), jnp.int32), length=jnp.zeros(batch, jnp.int32))

    def unfinished(now: Decoding) -> Bool[Array, ""]:
        return (now.step < end) & now.active.any()

    def body(now: Decoding) -> Decoding:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, now.step)
        token = choose(now.logits, step_keys, rules.arrays, flags, now.occurrences)
        return _accept(model, params, now, token, now.step - start.step, rules, flags)

    return jax.lax.while_loop(unfinished, body, blank)


def _accept(
    model: RWKV7,
    params: Params,
    now: Decoding,
    token: Int[Array, "B"],
    column: Int[Array, ""],
    rules: Rules,
    flags: SamplingFlags,
) -> Decoding:
    """Notes the token of every active row, ends rows, and feeds the others'."""
    written = now.active & (token != rules.eos_id)
    recent = jnp.concatenate([now.recent, token[:, None]], axis=1)[:, 1:]
    stop_length = jnp.where(written, matched(recent, rules.stops), 0)
    feed = written & (stop_length == 0)
    reading = streamed.for_rows(params, feed)
    logits, state = read(model, reading, token[:, None], now.state, feed[:, None])
    wrong = feed & not_finite(logits)
    return Decoding(
        logits=jnp.where(feed[:, None], logits, now.logits),
        state=state,
        active=feed & ~wrong,
        recent=recent,
        occurrences=now.occurrences.add(token, jnp.asarray(rules.weight), rules.arrays.decay)
        if flags.penalised
        else now.occurrences,
        step=now.step + 1,
        tokens=now.tokens.at[:, column].set(jnp.where(written, token, 0)),
        length=now.length + written.astype(jnp.int32),
        stop_length=jnp.where(now.active, stop_length, now.stop_length),
        wrong=jnp.where(wrong, now.step + 1, now.wrong),
    )


def matched(recent: Int[Array, "B S"], stops: Int[Array | np.ndarray, "N S"]) -> Int[Array, "B"]:
    """Returns the length of the longest stop sequence that the recent tokens end with, 0 if there is none."""
    hit = ((recent[:, None] == stops[None]) | (stops[None] == ANY_TOKEN)).all(-1)
    length = (stops != ANY_TOKEN).sum(-1, dtype=jnp.int32)
    return jnp.where(hit, length[None], 0).max(-1)


@partial(jax.jit, static_argnames=("model", "penalised"))
def prefill(
    model: RWKV7,
    params: Params,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: State,
    rules: Rules,
    *,
    penalised: bool,
) -> Decoding:
    """Reads the prompts, in one program."""
    return _prefill(model, params, tokens, valid, state, rules.stops.shape[1], penalised)


@partial(jax.jit, static_argnames=("model", "flags", "size"))
def decode(
    model: RWKV7,
    params: Params,
    start: Decoding,
    keys: Key[Array, "B"],
    rules: Rules,
    *,
    flags: SamplingFlags,
    size: int,
) -> Decoding:
    """Generates up to `rules.limit` <= size tokens, in one program."""
    return _decode(model, params, start, keys, rules, flags, size)


@partial(jax.jit, static_argnames=("model", "flags", "size"))
def prefill_and_decode(
    model: RWKV7,
    params: Params,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    state: State,
    keys: Key[Array, "B"],
    rules: Rules,
    *,
    flags: SamplingFlags,
    size: int,
) -> tuple[Decoding, Decoding]:
    """Returns the batch after the prompts, and after the generated tokens, in one program."""
    start = _prefill(model, params, tokens, valid, state, rules.stops.shape[1], flags.penalised)
    return start, _decode(model, params, start, keys, rules, flags, size)


@jax.jit
def join(state: State | list[State]) -> State:
    """Returns the state [L, ...] of `Decoding.state`."""
    return join_layers(state) if isinstance(state, list) else state


@partial(jax.jit, static_argnames=("model",))
def replay(
    model: RWKV7,
    params: Params,
    start: Decoding,
    end: Decoding,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    rows: Bool[Array, "B"],
) -> tuple[Float[Array, "B vocab"], State, Int[Array, "B"]]:
    """Returns logits and state of `end`, but in `rows` those of `start` followed by the valid tokens, if any.

    The third result is `Decoding.wrong` of these logits.
    """
    logits, state = read(model, params, tokens, start.state, valid)
    logits = jnp.where(valid.any(1)[:, None], logits, start.logits)

    def pick(again: Array, before: Array) -> Array:
        return jnp.where(rows.reshape(1, -1, *(1,) * (again.ndim - 2)), again, before)

    chosen = jax.tree.map(pick, join(state), join(end.state))
    wrong = jnp.where(rows & not_finite(logits), valid.sum(1, dtype=jnp.int32), end.wrong)
    return jnp.where(rows[:, None], logits, end.logits), chosen, wrong


def pad_left(rows: list[list[int]], length: int) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Pads ragged rows on the left; returns (tokens, valid)."""
    tokens = np.zeros((len(rows), length), np.int32)
    valid = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        valid[i, length - len(row) :] = True
    return tokens, valid


def pad_stops(stops: list[list[int]]) -> Int[np.ndarray, "N S"]:
    """Returns stop sequences as one array whose sides are powers of two from 4 by 8 on, so that few shapes occur."""
    shape = (max(4, next_power_of_two(len(stops))), max(8, next_power_of_two(max(map(len, stops), default=1))))
    out = np.full(shape, NO_MATCH, np.int32)
    for i, stop in enumerate(stops):
        out[i] = [ANY_TOKEN] * (shape[1] - len(stop)) + stop
    return out
