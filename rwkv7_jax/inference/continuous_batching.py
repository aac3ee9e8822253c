"""Greedy generation of many answers in one compiled loop: a row that ends takes the next prompt from a queue.

The queue holds prompts that were read already, as their states and first tokens. The loop gives the queue back when a
row wants more than it holds, and goes on with the same rows once it is filled again.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rwkv7_jax import functional
from rwkv7_jax.finite import not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.sampling import most_likely
from rwkv7_jax.inference.stop_automaton import HIT, START
from rwkv7_jax.model import RWKV7, split_layers
from rwkv7_jax.state import State

IDLE = -1


class Queue(NamedTuple):
    """Prompts that wait; prompt i of the queue is number `first + i` of all."""

    state: State
    token: Int[Array, "B"]
    first: Int[Array, ""]
    count: Int[Array, ""]
    taken: Int[Array, ""]
    last: Bool[Array, ""]
    """No prompts come after these."""


class Rows(NamedTuple):
    """Unfinished answers. `token` is chosen, but neither noted nor fed."""

    state: list[State]
    """One a layer."""
    token: Int[Array, "B"]
    owner: Int[Array, "B"]
    """Number of the prompt, or IDLE."""
    length: Int[Array, "B"]
    stop: Int[Array, "B"]


class Answers(NamedTuple):
    """Tokens of each prompt's answer, the one that completes a stop string included and the end token not."""

    tokens: Int[Array, "M N"]
    length: Int[Array, "M"]
    steps: Int[Array, ""]
    """Passes of the loop, each over all rows."""
    finite: Bool[Array, ""]
    """Whether all logits were, of which a token was chosen; the loop ends as soon as one is not."""


class Ends(NamedTuple):
    """When an answer ends: after `limit` tokens, before the end token, or when a stop string is complete."""

    table: Int[Array, "S vocab"]
    eos_id: Int[Array, ""]
    limit: Int[Array, ""]


Carry = tuple[Rows, Queue, Answers]


@jax.jit
def idle_rows(state: State) -> Rows:
    """Returns rows that wait for prompts; the states of a batch [L, B, ...] say how large they are."""
    layers = split_layers(state)
    idle = jnp.full(layers[0].att_shift.shape[0], IDLE, jnp.int32)
    token, length, stop = (jnp.zeros_like(idle) for _ in range(3))
    return Rows(layers, token, idle, length, stop)


@partial(jax.jit, static_argnames="model", donate_argnames=("rows", "answers"))
def run(model: RWKV7, params: Params, rows: Rows, queue: Queue, answers: Answers, ends: Ends) -> Carry:
    """Decodes until all is done, until logits are not finite or, if the queue is not the last, until a row finds it
    empty."""
    waiting = split_layers(queue.state)

    def wanted(rows: Rows, queue: Queue) -> Bool[Array, ""]:
        return (rows.owner == IDLE).any() & (queue.taken < queue.count)

    def going(rows: Rows, queue: Queue, answers: Answers) -> Bool[Array, ""]:
        idle, empty = rows.owner == IDLE, queue.taken >= queue.count
        starving = idle.any() & empty & ~queue.last
        return (~idle.all() | ~empty) & ~starving & answers.finite

    def fill_and_decode(carry: Carry) -> Carry:
        """Fills the idle rows, then decodes until a row is idle for which a prompt waits."""
        rows, queue, answers = carry
        rows, queue = _take(rows, queue, waiting)
        rows, answers = jax.lax.while_loop(
            lambda inner: going(inner[0], queue, inner[1]) & ~wanted(inner[0], queue),
            lambda inner: _step(model, params, *inner, ends),
            (rows, answers),
        )
        return rows, queue, answers

    return jax.lax.while_loop(lambda carry: going(*carry), fill_and_decode, (rows, queue, answers))


def _take(rows: Rows, queue: Queue, waiting_states: list[State]) -> tuple[Rows, Queue]:
    """Gives idle rows the next prompts, in order."""
    idle = rows.owner == IDLE
    index = queue.taken + jnp.cumsum(idle, dtype=jnp.int32) - 1
    new = idle & (index < queue.count)
    index = jnp.where(new, index, 0)

    def pick(waiting: Array, present: Array) -> Array:
        chosen = new.reshape(-1, *[1] * (present.ndim - 1))
        return jnp.where(chosen, jnp.take(waiting, index, axis=0), present)

    taken = Rows(
        state=jax.tree.map(pick, waiting_states, rows.state),
        token=jnp.where(new, queue.token[index], rows.token),
        owner=jnp.where(new, queue.first + index, rows.owner),
        length=jnp.where(new, 0, rows.length),
        stop=jnp.where(new, START, rows.stop),
    )
    return taken, queue._replace(taken=queue.taken + new.sum(dtype=jnp.int32))


def _step(model: RWKV7, params: Params, rows: Rows, answers: Answers, ends: Ends) -> tuple[Rows, Answers]:
    """Notes each row's token, ends rows, feeds the others' and chooses the next."""
    active = rows.owner != IDLE
    noted = active & (rows.token != ends.eos_id)
    nowhere = answers.tokens.shape[0]
    place = jnp.where(noted, rows.owner, nowhere)
    tokens = answers.tokens.at[place, rows.length].set(rows.token, mode="drop")
    length = rows.length + noted.astype(jnp.int32)
    lengths = answers.length.at[place].set(length, mode="drop")
    stop = ends.table[rows.stop, rows.token].astype(jnp.int32)
    feed = noted & (stop != HIT) & (length < ends.limit)
    logits, state = functional.step(model, params, rows.token[:, None], rows.state, valid=feed[:, None])
    after = Rows(state, most_likely(logits), jnp.where(feed, rows.owner, IDLE), length, stop)
    wrong = (feed & not_finite(logits)).any()
    return after, Answers(tokens, lengths, answers.steps + 1, answers.finite & ~wrong)


@partial(jax.jit, donate_argnames="target")
def put(target: State, source: State, rows: Int[Array, "B"], places: Int[Array, "B"]) -> State:
    """Returns `target` with rows `rows` of `source` at `places`; places outside of it are dropped."""
    return jax.tree.map(
        lambda into, out: into.at[:, places].set(jnp.take(out, rows, axis=1), mode="drop"), target, source
    )
