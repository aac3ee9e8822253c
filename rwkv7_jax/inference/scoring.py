"""Log-likelihoods by forking states: the forest of `plan` fed batch by batch, parents before children.

Batches go depth first, so that only the states of one batch a level are alive. A row's result depends on its own tokens
and state, not on the other rows, on order or on padding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rwkv7_jax import RWKV7, State
from rwkv7_jax.bucketing import padded_length, padded_queries, padded_rows
from rwkv7_jax.inference.prefix_tree import MIN_SAVED, Asked, Node, Query, forest
from rwkv7_jax.inference.state_pool import advance, fork, kinds, stack_states
from rwkv7_jax.sharding import host

PIECE = 512
"""Longer nodes are fed in pieces of this many tokens: few lengths to compile, bounded memory."""

Tick = Callable[[int], Any]


class Answer(NamedTuple):
    """Summed log-probability of the scored tokens in nats, and whether each was the most likely one."""

    log_likelihood: float
    greedy: bool


class Cost:
    """What was fed: tokens, and places in batches, padding included."""

    def __init__(self) -> None:
        self.tokens = self.places = self.passes = 0


class Placed(NamedTuple):
    """A node, and the row of the pool that it continues from."""

    row: int
    node: Node


class Forker:
    """Scores sequences on one model. `cost` counts what was fed since it was made."""

    def __init__(self, model: RWKV7, params: Any, batch_size: int, min_saved: int = MIN_SAVED):
        self.model, self.params, self.batch_size, self.min_saved = model, params, batch_size, min_saved
        self.cost = Cost()

    def score(self, asked: Sequence[Asked], states: Sequence[State], tick: Tick = lambda count: None) -> list[Answer]:
        """The answer to each sequence, from unbatched initial states; `tick` gets the number of sequences done.

        Raises: ValueError for a sequence with nothing to predict from, or nothing to predict.
        """
        for one in asked:
            if not 1 <= one.start < len(one.tokens):
                raise ValueError("a sequence needs a token before the scored ones and one to score")
        totals, greedy = np.zeros(len(asked)), np.ones(len(asked), bool)

        def found(query: Query, log_probability: float, best: int) -> None:
            totals[query.owner] += log_probability
            greedy[query.owner] &= best == query.target

        for members in kinds(list(states)):
            place = {number: row for row, number in enumerate(members)}
            chosen = [i for i, one in enumerate(asked) if one.state in place]
            pool = stack_states(self.model, [states[number] for number in members], self.batch_size)
            roots = forest([asked[i] for i in chosen], self.min_saved)
            renamed = lambda query, x, best, chosen=chosen: found(query._replace(owner=chosen[query.owner]), x, best)  # noqa: E731
            placed = [Placed(place[root.state], root) for root in roots]
            for nodes, _ in self.visit(placed, pool, renamed):
                tick(sum(len(one.node.ending) for one in nodes))
        return [Answer(float(x), bool(g)) for x, g in zip(totals, greedy, strict=True)]

    def visit(
        self, placed: Sequence[Placed], pool: State, found: Callable[[Query, float, int], None]
    ) -> Iterator[tuple[list[Placed], State]]:
        """Each batch of nodes with the states after it, parents before children."""
        order = sorted(range(len(placed)), key=lambda i: (len(placed[i].node.tokens), i))
        for begin in range(0, len(order), self.batch_size):
            batch = [placed[i] for i in order[begin : begin + self.batch_size]]
            after = self._feed(batch, pool, found)
            yield batch, after
            below = [Placed(row, child) for row, one in enumerate(batch) for child in one.node.children]
            yield from self.visit(below, after, found)

    def _feed(self, batch: list[Placed], pool: State, found: Callable[[Query, float, int], None]) -> State:
        """One batch of nodes, piece by piece; the states after each."""
        rows = padded_rows(len(batch), self.batch_size)
        parents = np.zeros(rows, np.int32)
        parents[: len(batch)] = [one.row for one in batch]
        state = fork(pool, jnp.asarray(parents))
        for begin in range(0, max(len(one.node.tokens) for one in batch), PIECE):
            end = begin + PIECE
            parts = [one.node.tokens[begin:end] for one in batch]
            queries = [_between(one.node.queries, begin, end) for one in batch]
            state = self._pass(parts, queries, state, rows, found)
        return state

    def _pass(self, parts, queries: list[list[Query]], start: State, rows: int, found) -> State:
        """One call of the compiled program, and its findings told."""
        length = padded_length(max(map(len, parts)))
        looks = padded_queries(max(map(len, queries)))
        tokens, positions, targets = (np.zeros((rows, n), np.int32) for n in (length, looks, looks))
        valid = np.zeros((rows, length), bool)
        for row, (part, asked) in enumerate(zip(parts, queries, strict=True)):
            tokens[row, : len(part)], valid[row, : len(part)] = part, True
            positions[row, : len(asked)] = [query.position for query in asked]
            targets[row, : len(asked)] = [query.target for query in asked]
        self.cost.tokens += sum(map(len, parts))
        self.cost.places += valid.size
        self.cost.passes += 1
        seen, after = advance(self.model, self.params, start, *map(jnp.asarray, (tokens, valid, positions, targets)))
        if any(queries):
            log_probability, best = host(seen)
            for row, asked in enumerate(queries):
                for column, query in enumerate(asked):
                    found(query, float(log_probability[row, column]), int(best[row, column]))
        return after


def _between(queries: list[Query], begin: int, end: int) -> list[Query]:
    """Those of a node's piece, their positions counted in it."""
    return [query._replace(position=query.position - begin) for query in queries if begin <= query.position < end]
