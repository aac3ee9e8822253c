"""Speculative decoding (arXiv 2211.17192): a small model proposes tokens, the large one checks all of them in one pass.

A round proposes k tokens, reads the last chosen token and these in one pass of the large model, keeps them up to the
first that is refused, and adds one token: that which the large model chooses there. Greedy tokens are those of the
large model alone. A sampled token x is kept with probability min(1, p(x) / q(x)), p being the large model's and q the
small one's distribution after penalties, top-k, top-p and temperature; in the place of the first refused one a token is
drawn from max(p - q, 0), normalised. So what comes out has the large model's distribution exactly. Both states go back
to the kept tokens (`rwkv7_jax.generation.rollback`). Rows of a batch keep as many as they like.

The random numbers of a token depend on the row's key and on its place in the answer alone, so that a row's tokens do
not depend on other rows or on how many are asked for at a time.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rwkv7_jax import functional
from rwkv7_jax.finite import NONE, not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.generation import decode_loop, rollback
from rwkv7_jax.generation.acceptance import check_greedy, check_sampled, counted, log_probabilities, penalised_places
from rwkv7_jax.generation.decode_loop import NO_TOKEN, Decoding, Rules, join, matched
from rwkv7_jax.generation.rollback import Layers
from rwkv7_jax.generation.sampling import Occurrences, SamplingFlags, draw, most_likely, penalise
from rwkv7_jax.model import RWKV7, split_layers
from rwkv7_jax.state import State


class Drafted(NamedTuple):
    """What speculation did, a number each row."""

    passes: list[int]
    """Passes of the large model that chose tokens of the row."""
    accepted: list[int]
    """Proposed tokens that were kept; `passes` times `Draft.tokens` were proposed."""


class Ahead(NamedTuple):
    """What a batch has between two rounds beside `Decoding`, whose `state` is that before `pending`."""

    draft: Layers
    """The small model's state, before `pending` too."""
    pending: Int[Array, "B"]
    """The last token, which neither model has read: at first the prompt's last."""
    count: Int[Array, "B"]
    """Tokens chosen, in all calls."""
    passes: Int[Array, "B"]
    accepted: Int[Array, "B"]


class Models(NamedTuple):
    """The two models; static."""

    large: RWKV7
    small: RWKV7


class Weights(NamedTuple):
    """Theirs."""

    large: Params
    small: Params


class Proposal(NamedTuple):
    """The small model's tokens of one round."""

    tokens: Int[Array, "B k"]
    log_q: Float[Array, "B k vocab"]
    """What they were drawn from; empty where the choice is greedy, -inf where the model's logits are not finite."""
    states: PyTree
    """After the pending token and after each of them, along a new first axis."""


@partial(jax.jit, static_argnames=("models", "window", "penalised"))
def prefill(
    models: Models,
    weights: Weights,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    starts: tuple[State, State],
    *,
    window: int,
    penalised: bool,
) -> Decoding:
    """Reads the prompts, padded on the left, up to their last token.

    Args:
      models: both.
      weights: theirs.
      tokens: token ids.
      valid: False marks padding.
      starts: the initial states of the large model and of the small one.
      window: tokens that the longest stop sequence has.
      penalised: whether earlier tokens are counted.
    """
    states = [
        _read(model, params, tokens[:, :-1], start if model.config.scan_layers else split_layers(start), valid[:, :-1])
        for model, params, start in zip(models, weights, starts, strict=True)
    ]
    batch = tokens.shape[0]
    counts = jnp.zeros(batch, jnp.int32)
    return Decoding(
        logits=jnp.zeros((batch, 0), jnp.float32),
        state=states[0],
        active=jnp.ones(batch, jnp.bool_),
        recent=jnp.full((batch, window), NO_TOKEN, jnp.int32),
        occurrences=Occurrences.none(batch, models.large.config.vocab_size if penalised else 0),
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((batch, 0), jnp.int32),
        length=counts,
        stop_length=counts,
        wrong=jnp.full(batch, NONE, jnp.int32),
        ahead=Ahead(states[1], tokens[:, -1], counts, counts, counts),
    )


@partial(jax.jit, static_argnames=("models", "flags", "size", "width"))
def decode(
    models: Models,
    weights: Weights,
    start: Decoding,
    keys: Key[Array, "B"],
    rules: Rules,
    most: Int[Array, ""],
    *,
    flags: SamplingFlags,
    size: int,
    width: int,
) -> Decoding:
    """Takes rounds until every row has ended, or has `rules.limit` tokens of this call or `most` of all calls.

    Args:
      models: both.
      weights: theirs.
      start: as `prefill` or an earlier call returned it.
      keys: one a row.
      rules: how tokens are chosen and rows end; a row has up to `width` tokens more than `rules.limit`.
      most: tokens of a row in all calls, never exceeded.
      flags: the static part of the settings.
      size: at least `rules.limit`.
      width: tokens proposed a round.
    """
    batch = start.active.shape[0]
    blank = start._replace(tokens=jnp.zeros((batch, size + width), jnp.int32), length=jnp.zeros(batch, jnp.int32))

    def running(now: Decoding) -> Bool[Array, "B"]:
        return now.active & (now.ahead.count < most) & (now.length < rules.limit)

    def body(now: Decoding) -> Decoding:
        return _round(models, weights, now, running(now), keys, rules, most, flags, width)

    return jax.lax.while_loop(lambda now: running(now).any(), body, blank)


@partial(jax.jit, static_argnames=("models",))
def finish(
    models: Models,
    weights: Weights,
    start: Decoding,
    end: Decoding,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    again: Bool[Array, "B"],
) -> tuple[Float[Array, "B vocab"], State, Int[Array, "B"]]:
    """Reads what is left: returns (logits, state, `Decoding.wrong` of these logits).

    Args:
      models: both.
      weights: theirs.
      start: after the prompts.
      end: after the last round.
      tokens: padded on the left; a prompt's last token and all kept ones in the rows `again`, else the pending one.
      valid: False marks padding.
      again: rows that are read from `start` on, since they keep less than was chosen.
    """
    axis = 0 if isinstance(end.state, list) else 1

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(again.reshape(*(1,) * axis, -1, *(1,) * (a.ndim - axis - 1)), a, b)

    before = jax.tree.map(pick, start.state, end.state)
    logits, state = decode_loop.read(models.large, weights.large, tokens, before, valid)
    count = jnp.where(again, valid.sum(1, dtype=jnp.int32) - 1, end.ahead.count)
    return logits, join(state), jnp.where(not_finite(logits), count, NONE)


def _read(model: RWKV7, params: Params, tokens: Array, state: Layers, valid: Array) -> Layers:
    if isinstance(state, list):
        return functional.step(model, params, tokens, state, valid=valid)[1]
    return functional.hidden(model, params, tokens, state, valid=valid)[1]


def _round(
    models: Models,
    weights: Weights,
    now: Decoding,
    running: Bool[Array, "B"],
    keys: Key[Array, "B"],
    rules: Rules,
    most: Int[Array, ""],
    flags: SamplingFlags,
    width: int,
) -> Decoding:
    """Proposes, checks, and keeps."""
    ahead: Ahead = now.ahead
    place = jnp.arange(width + 1, dtype=jnp.int32)[None]
    token_keys = jax.vmap(jax.vmap(lambda key, at: jax.random.split(jax.random.fold_in(key, at), 3), (None, 0)))(
        keys, ahead.count[:, None] + place
    )
    proposal = _propose(models.small, weights.small, now, token_keys[:, :, 0], rules, flags, width)
    read = jnp.concatenate([ahead.pending[:, None], proposal.tokens], axis=1)
    logits, record = rollback.read(models.large, weights.large, read, now.state)
    bad = not_finite(logits)
    logits = penalised_places(logits, proposal.tokens, now.occurrences, rules) if flags.penalised else logits
    if flags.greedy:
        chosen, agreed = check_greedy(logits, proposal.tokens)
    else:
        log_p = log_probabilities(logits, rules.arrays, flags)
        chosen, agreed = check_sampled(log_p, proposal.log_q, proposal.tokens, token_keys[:, :, 1:])
    room = jnp.where(running, jnp.minimum(agreed + 1, most - ahead.count), 0)
    kept, active, stop_length, recent, wrong = _kept(now, chosen, bad, room, rules)
    columns = jnp.where(place < kept[:, None], now.length[:, None] + place, now.tokens.shape[1])
    rows = jnp.arange(chosen.shape[0])[:, None]
    last = jnp.take_along_axis(chosen, jnp.maximum(kept - 1, 0)[:, None], axis=1)[:, 0]
    once = running.astype(jnp.int32)
    return now._replace(
        state=rollback.state_after(models.large.config, now.state, record, kept),
        active=active,
        recent=recent,
        occurrences=counted(now.occurrences, chosen, kept, rules) if flags.penalised else now.occurrences,
        step=now.step + 1,
        tokens=now.tokens.at[rows, columns].set(chosen, mode="drop"),
        length=now.length + kept,
        stop_length=stop_length,
        wrong=wrong,
        ahead=Ahead(
            _state_at(ahead.draft, proposal.states, kept),
            jnp.where(kept > 0, last, ahead.pending),
            ahead.count + kept,
            ahead.passes + once,
            ahead.accepted + jnp.minimum(agreed, kept) * once,
        ),
    )


def _propose(
    model: RWKV7,
    params: Params,
    now: Decoding,
    keys: Key[Array, "B n"],
    rules: Rules,
    flags: SamplingFlags,
    width: int,
) -> Proposal:
    """Chooses `width` tokens one by one, and reads the last of them too."""

    def step(carry: tuple[Array, Layers, Occurrences], key: Array) -> tuple[PyTree, PyTree]:
        token, state, seen = carry
        logits, state = decode_loop.read(model, params, token[:, None], state)
        bad = not_finite(logits)
        logits = penalise(logits, seen, rules.arrays) if flags.penalised else logits
        if flags.greedy:
            chosen, log_q = most_likely(logits), jnp.zeros((token.shape[0], 0), jnp.float32)
        else:
            log_q = log_probabilities(logits[:, None], rules.arrays, flags)[:, 0]
            chosen, log_q = draw(key, log_q), jnp.where(bad[:, None], -jnp.inf, log_q)
        chosen = jnp.where(bad, 0, chosen)
        seen = seen.add(chosen, jnp.asarray(rules.weight), rules.arrays.decay) if flags.penalised else seen
        return (chosen, state, seen), (chosen, log_q, state)

    first = (now.ahead.pending, now.ahead.draft, now.occurrences)
    _, (chosen, log_q, states) = jax.lax.scan(step, first, jnp.swapaxes(keys, 0, 1))
    return Proposal(chosen[:width].T, jnp.swapaxes(log_q[:width], 0, 1), states)


def _kept(
    now: Decoding, chosen: Int[Array, "B n"], bad: Bool[Array, "B n"], room: Int[Array, "B"], rules: Rules
) -> tuple[Array, Array, Array, Array, Array]:
    """(how many of the first `room` tokens are written; `active`, `stop_length`, `recent`, `wrong` after them).

    A row ends before an end token and before logits that are not finite, and after a stop sequence.
    """
    batch, count = chosen.shape
    window = now.recent.shape[1]
    all_recent = jnp.concatenate([now.recent, chosen], axis=1)
    after = jnp.arange(1, count + 1, dtype=jnp.int32)[:, None] + jnp.arange(window, dtype=jnp.int32)[None]
    lengths = matched(all_recent[:, after].reshape(batch * count, window), rules.stops).reshape(batch, count)
    first_bad, first_end, first_stop = (_first(flag) for flag in (bad, chosen == rules.eos_id, lengths > 0))
    written = jnp.minimum(jnp.minimum(room, first_bad), first_end)
    stopped = first_stop < written
    kept = jnp.where(stopped, first_stop + 1, written)
    ended = ~stopped & (first_end < jnp.minimum(room, first_bad))
    wrong = ~stopped & (first_bad < room) & (first_bad <= first_end)
    found = jnp.take_along_axis(lengths, jnp.minimum(first_stop, count - 1)[:, None], axis=1)[:, 0]
    recent = jnp.take_along_axis(all_recent, kept[:, None] + jnp.arange(window, dtype=jnp.int32)[None], axis=1)
    return (
        kept,
        now.active & ~(stopped | ended | wrong),
        jnp.where(stopped, found, now.stop_length),
        recent,
        jnp.where(wrong, now.ahead.count + first_bad, now.wrong),
    )


def _first(flags: Bool[Array, "B n"]) -> Int[Array, "B"]:
    """The place of the first true one, n if there is none."""
    return jnp.where(flags.any(1), jnp.argmax(flags, axis=1), flags.shape[1]).astype(jnp.int32)


def _state_at(before: Layers, states: PyTree, count: Int[Array, "B"]) -> Layers:
    """The small model's state after `count` of the tokens that it read, in each row."""
    axis = 0 if isinstance(before, list) else 1

    def one(old: Array, new: Array) -> Array:
        both = jnp.concatenate([old[None], new])
        return jax.vmap(lambda leaf, at: leaf[at], (axis + 1, 0), axis)(both, count)

    return jax.tree.map(one, before, states)
