"""The device side of continuous batching: states, logits and counts of all slots, and the programs that change them.

Every program has one shape, so that nothing is compiled after the first call of each. A slot's numbers depend on what
was done to that slot alone: prompts are read one row at a time, and decoding has always all rows.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from rwkv7_jax import functional, streamed
from rwkv7_jax.finite import NONE, not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.row_sampling import RowFlags, choose_by_row, count_by_row
from rwkv7_jax.generation.sampling import Occurrences, SamplingArrays, SamplingParams
from rwkv7_jax.model import RWKV7, join_layers, split_layers
from rwkv7_jax.state import State, zero_state

MOST_LOGPROBS = 20
"""Tokens at most of which log-probabilities are told beside the chosen one's."""
STEPS = 32
"""Tokens at most that one call of `decode` chooses for a slot."""
QUERIES = 8
"""Positions whose logits exist at a time while a prompt is scored."""


class Slots(NamedTuple):
    """All slots between two calls; their memory is written over by each."""

    layers: list[State]
    """One a layer, [S, ...]."""
    logits: Float[Array, "S vocab"]
    """For each slot's next token."""
    occurrences: Occurrences


class Rows(NamedTuple):
    """How each slot goes on, as the host knows it. Slots that are not active are left as they are."""

    active: Bool[Array | np.ndarray, "S"]
    seed: UInt[Array | np.ndarray, "S"]
    step: Int[Array | np.ndarray, "S"]
    """Tokens chosen before."""
    left: Int[Array | np.ndarray, "S"]
    """Tokens to choose at most."""
    scored: Bool[Array | np.ndarray, "S"]
    """Whether log-probabilities are wanted."""
    flags: RowFlags
    arrays: SamplingArrays


class Scores(NamedTuple):
    """Natural log-probabilities in float32, before penalties, temperature and filters."""

    chosen: Float[Array, "*B"]
    ids: Int[Array, "*B K"]
    likeliest: Float[Array, "*B K"]


class Chosen(NamedTuple):
    """What one call of `decode` did: slot i chose `tokens[i, :length[i]]`."""

    tokens: Int[Array, "S N"]
    length: Int[Array, "S"]
    active: Bool[Array, "S"]
    """Whether the slot goes on; else it chose the end token, has all its tokens, or went wrong."""
    wrong: Int[Array, "S"]
    """Number of tokens chosen before the slot's first logits that are not finite, or NONE."""
    scores: Scores


def idle_rows(count: int) -> Rows:
    """Returns rows of which none is active."""
    numbers = SamplingArrays.of(SamplingParams())
    return Rows(
        active=np.zeros(count, np.bool_),
        seed=np.zeros(count, np.uint32),
        step=np.zeros(count, np.int32),
        left=np.zeros(count, np.int32),
        scored=np.zeros(count, np.bool_),
        flags=RowFlags(*(np.zeros(count, np.bool_) for _ in RowFlags._fields)),
        arrays=SamplingArrays(*(np.full(count, number) for number in numbers)),
    )


def empty(model: RWKV7, count: int) -> Slots:
    """Returns slots in which nothing was read."""
    c = model.config
    return Slots(
        split_layers(zero_state(c, count)),
        jnp.zeros((count, c.vocab_size), jnp.float32),
        Occurrences.none(count, c.vocab_size),
    )


def _row(layers: list[State], slot: Int[Array, ""]) -> State:
    return join_layers(jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, slot, 1), layers))


def _with_row(layers: list[State], slot: Int[Array, ""], row: State) -> list[State]:
    def put(leaf: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, new, slot, 0)

    return jax.tree.map(put, layers, split_layers(row))


def place(slots: Slots, slot: Int[Array, ""], state: State, logits: Float[Array, "vocab"]) -> Slots:
    """Begins a slot at an unbatched state, with the logits there."""
    seen, count = slots.occurrences
    return Slots(
        _with_row(slots.layers, slot, jax.tree.map(lambda leaf: leaf[:, None], state)),
        slots.logits.at[slot].set(logits),
        Occurrences(seen.at[slot].set(False), count.at[slot].set(0)),
    )


def take(slots: Slots, slot: Int[Array, ""]) -> tuple[State, Float[Array, "vocab"]]:
    """Returns copies of a slot's state, unbatched, and of its logits."""
    return jax.tree.map(lambda leaf: leaf[:, 0], _row(slots.layers, slot)), slots.logits[slot]


def read(
    model: RWKV7,
    width: int,
    params: Params,
    slots: Slots,
    slot: Int[Array, ""],
    tokens: Int[Array, "1 T"],
    valid: Bool[Array, "1 T"],
) -> tuple[Slots, Float[Array, "W D"]]:
    """Feeds the valid tokens to one slot; returns the final activations, padded on the left to `width` rows."""
    x, after = functional.hidden(model, params, tokens, _row(slots.layers, slot), valid=valid)
    padded = jnp.pad(x[0], ((width - tokens.shape[1], 0), (0, 0)))
    return slots._replace(layers=_with_row(slots.layers, slot, after)), padded


def head(model: RWKV7, params: Params, slots: Slots, slot: Int[Array, ""], x: Float[Array, "W D"]) -> Slots:
    """Sets a slot's logits to those after the last of the activations."""
    logits = functional.logits(model, params, x[-1:])[0]
    return slots._replace(logits=slots.logits.at[slot].set(logits))


def score(
    model: RWKV7, params: Params, x: Float[Array, "W D"], targets: Int[Array, "W"], first: Int[Array, ""]
) -> tuple[Scores, Bool[Array, "W"]]:
    """Returns the scores of a target after each of the activations from `first` on, and whether logits are finite."""
    width, k = x.shape[0], min(MOST_LOGPROBS, model.config.vocab_size)
    found = (
        Scores(jnp.zeros(width), jnp.zeros((width, k), jnp.int32), jnp.zeros((width, k))),
        jnp.ones(width, jnp.bool_),
    )

    def group(i: Int[Array, ""], found: tuple[Scores, Bool[Array, "W"]]) -> tuple[Scores, Bool[Array, "W"]]:
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=i * QUERIES, slice_size=QUERIES)
        logits = functional.logits(model, params, part(x))
        new = _scores(logits, part(targets)), ~not_finite(logits)
        return jax.tree.map(
            lambda into, rows: jax.lax.dynamic_update_slice_in_dim(into, rows, i * QUERIES, 0), found, new
        )

    return jax.lax.fori_loop(first // QUERIES, width // QUERIES, group, found)


def _scores(logits: Float[Array, "B vocab"], chosen: Int[Array, "B"]) -> Scores:
    log_p = jax.nn.log_softmax(logits)
    # Without the barrier XLA sorts the whole row.
    likeliest, ids = jax.lax.optimization_barrier(jax.lax.top_k(log_p, min(MOST_LOGPROBS, logits.shape[-1])))
    return Scores(jnp.take_along_axis(log_p, chosen[:, None], axis=1)[:, 0], ids.astype(jnp.int32), likeliest)


def decode(
    model: RWKV7,
    params: Params,
    slots: Slots,
    rows: Rows,
    limit: Int[Array, ""],
    eos_id: Int[Array, ""],
    weight: Float[Array, "vocab"],
) -> tuple[Slots, Chosen]:
    """Chooses and feeds up to `limit` <= STEPS tokens in each active slot."""
    count, k = rows.step.shape[0], min(MOST_LOGPROBS, model.config.vocab_size)
    keys = jax.vmap(jax.random.fold_in, (0, None))(jax.vmap(jax.random.key)(rows.seed), 0)
    bad = rows.active & not_finite(slots.logits)
    chosen = Chosen(
        tokens=jnp.zeros((count, STEPS), jnp.int32),
        length=jnp.zeros(count, jnp.int32),
        active=jnp.asarray(rows.active & ~bad & (rows.left > 0)),
        wrong=jnp.where(bad, rows.step, NONE),
        scores=Scores(jnp.zeros((count, STEPS)), jnp.zeros((count, STEPS, k), jnp.int32), jnp.zeros((count, STEPS, k))),
    )

    def unfinished(carry: tuple[Int[Array, ""], Slots, Chosen]) -> Bool[Array, ""]:
        return (carry[0] < limit) & carry[2].active.any()

    def body(carry: tuple[Int[Array, ""], Slots, Chosen]) -> tuple[Int[Array, ""], Slots, Chosen]:
        column, slots, chosen = carry
        step = rows.step + column
        token = choose_by_row(
            slots.logits,
            jax.vmap(jax.random.fold_in)(keys, step),
            rows.arrays,
            rows.flags,
            chosen.active,
            slots.occurrences,
        )
        scores = _noted(chosen.scores, slots.logits, token, column, chosen.active & rows.scored)
        fed = chosen.active & (token != eos_id)
        reading = streamed.for_rows(params, fed)
        logits, layers = functional.step(model, reading, token[:, None], slots.layers, valid=fed[:, None])
        wrong = fed & not_finite(logits)
        length = chosen.length + fed.astype(jnp.int32)
        after = Slots(
            layers,
            jnp.where(fed[:, None], logits, slots.logits),
            count_by_row(slots.occurrences, token, weight, rows.arrays, chosen.active & rows.flags.penalised),
        )
        return (
            column + 1,
            after,
            Chosen(
                tokens=chosen.tokens.at[:, column].set(jnp.where(fed, token, 0)),
                length=length,
                active=fed & ~wrong & (length < rows.left),
                wrong=jnp.where(wrong, step + 1, chosen.wrong),
                scores=scores,
            ),
        )

    _, slots, chosen = jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), slots, chosen))
    return slots, chosen


def _noted(
    scores: Scores,
    logits: Float[Array, "S vocab"],
    token: Int[Array, "S"],
    column: Int[Array, ""],
    wanted: Bool[Array, "S"],
) -> Scores:
    """Adds the scores of one step, if a row wants them."""

    def add() -> Scores:
        return jax.tree.map(lambda into, new: into.at[:, column].set(new), scores, _scores(logits, token))

    return jax.lax.cond(wanted.any(), add, lambda: scores)
