"""Log-likelihoods by forking states: prefix trees fed batch by batch, parents before children.

Batches go depth first, so that only the states of one batch a level are alive. A row's result depends on its own tokens
and state, not on the other rows, on order or on padding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rwkv7_jax.bucketing import padded_length, padded_queries, padded_rows
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.functional import Params
from rwkv7_jax.inference.prefix_tree import MIN_SAVED, Node, Query, ScoredSequence, forest
from rwkv7_jax.inference.state_pool import advance, fork, group_by_structure, stack_states
from rwkv7_jax.model import RWKV7
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.sharding import host
from rwkv7_jax.state import State

PIECE = 512
"""Longer nodes are fed in pieces of this many tokens: few lengths to compile, bounded memory."""

Tick = Callable[[int], object]
"""Gets the number of sequences that were just done."""
Found = Callable[[Query, float, int], None]
"""Gets a query, the log-probability of its target, and the most likely token."""


class Answer(NamedTuple):
    """Summed log-probability of the scored tokens in nats, and whether each was the most likely one."""

    log_likelihood: float
    greedy: bool


class Cost:
    """Counts what was fed: tokens, places in batches with padding, and passes."""

    def __init__(self) -> None:
        self.tokens = self.places = self.passes = 0


class PlacedNode(NamedTuple):
    """A node, and the row of the pool that it continues from."""

    row: int
    node: Node


class PrefixScorer:
    """Scores sequences on one model, shared prefixes once. `cost` counts what was fed since it was made."""

    def __init__(self, model: RWKV7, params: Params, batch_size: int, min_saved: int = MIN_SAVED):
        self.model, self.params, self.batch_size, self.min_saved = model, params, batch_size, min_saved
        self.cost = Cost()

    def score(
        self, sequences: Sequence[ScoredSequence], states: Sequence[State], tick: Tick = lambda count: None
    ) -> list[Answer]:
        """Computes the log-probability of each sequence's scored tokens.

        Args:
          sequences: token sequences, each with the number of its initial state.
          states: unbatched initial states.
          tick: gets the number of sequences that were just done.

        Returns:
          One answer for each sequence, in order.

        Raises:
          ValueError: a sequence has no token before the scored ones, or none to score.
          NonFiniteLogitsError: a `ValueError`; the model's logits are not finite.
        """
        for one in sequences:
            if not 1 <= one.start < len(one.tokens):
                raise ValueError("a sequence needs a token before the scored ones and one to score")
        totals, greedy = np.zeros(len(sequences)), np.ones(len(sequences), bool)

        def found(query: Query, log_probability: float, best: int) -> None:
            totals[query.owner] += log_probability
            greedy[query.owner] &= best == query.target

        for members in group_by_structure(list(states)):
            place = {number: row for row, number in enumerate(members)}
            chosen = [i for i, one in enumerate(sequences) if one.state in place]
            pool = stack_states(self.model, [states[number] for number in members], self.batch_size)
            roots = forest([sequences[i] for i in chosen], self.min_saved)
            renumbered = _renumbered(found, chosen)
            placed = [PlacedNode(place[root.state], root) for root in roots]
            with cause_named(self.params, states):
                for nodes, _ in self.visit(placed, pool, renumbered):
                    tick(sum(len(one.node.ending) for one in nodes))
        return [Answer(float(x), bool(g)) for x, g in zip(totals, greedy, strict=True)]

    def visit(
        self, placed: Sequence[PlacedNode], pool: State, found: Found
    ) -> Iterator[tuple[list[PlacedNode], State]]:
        """Feeds the nodes and yields each batch of them with the states after it, parents before children.

        Raises:
          NonFiniteLogitsError: the model's logits are not finite.
        """
        order = sorted(range(len(placed)), key=lambda i: (len(placed[i].node.tokens), i))
        for begin in range(0, len(order), self.batch_size):
            batch = [placed[i] for i in order[begin : begin + self.batch_size]]
            after = self._feed(batch, pool, found)
            yield batch, after
            below = [PlacedNode(row, child) for row, one in enumerate(batch) for child in one.node.children]
            yield from self.visit(below, after, found)

    def _feed(self, batch: list[PlacedNode], pool: State, found: Found) -> State:
        """Feeds one batch of nodes piece by piece; returns the states after each."""
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

    def _pass(
        self, parts: list[tuple[int, ...]], queries: list[list[Query]], start: State, rows: int, found: Found
    ) -> State:
        """Calls the compiled program once and hands its scores to `found`."""
        length = padded_length(max(map(len, parts)))
        columns = padded_queries(max(map(len, queries)))
        tokens, positions, targets = (np.zeros((rows, n), np.int32) for n in (length, columns, columns))
        valid = np.zeros((rows, length), bool)
        for row, (part, wanted) in enumerate(zip(parts, queries, strict=True)):
            tokens[row, : len(part)], valid[row, : len(part)] = part, True
            positions[row, : len(wanted)] = [query.position for query in wanted]
            targets[row, : len(wanted)] = [query.target for query in wanted]
        self.cost.tokens += sum(map(len, parts))
        self.cost.places += valid.size
        self.cost.passes += 1
        scores, after = advance(self.model, self.params, start, *map(jnp.asarray, (tokens, valid, positions, targets)))
        if any(queries):
            log_probability, best, finite = host(scores)
            if not all(finite[row, : len(wanted)].all() for row, wanted in enumerate(queries)):
                raise NonFiniteLogitsError("the model's logits are not finite")
            for row, wanted in enumerate(queries):
                for column, query in enumerate(wanted):
                    found(query, float(log_probability[row, column]), int(best[row, column]))
        return after


def _renumbered(found: Found, numbers: list[int]) -> Found:
    """Returns `found` for queries whose owners are places in `numbers`."""

    def renumbered(query: Query, log_probability: float, best: int) -> None:
        found(query._replace(owner=numbers[query.owner]), log_probability, best)

    return renumbered


def _between(queries: list[Query], begin: int, end: int) -> list[Query]:
    """Returns the queries of a node's piece, their positions counted in it."""
    return [query._replace(position=query.position - begin) for query in queries if begin <= query.position < end]
