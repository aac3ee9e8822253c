"""Log-likelihoods by forking states: prefix trees fed pass by pass, parents before children.

A row's result depends on its own tokens and state, not on the other rows, on order or on padding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rwkv7_jax.bucketing import next_power_of_two
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.functional import Params
from rwkv7_jax.inference import packing
from rwkv7_jax.inference.packing import Pass, Piece, PlacedNode, Schedule
from rwkv7_jax.inference.prefix_tree import MIN_SAVED, Query, ScoredSequence, count_tokens, forest
from rwkv7_jax.inference.state_pool import (
    MIN_TARGETS,
    Feed,
    NextTokenScores,
    advance,
    group_by_structure,
    make_pool,
    scores_at_once,
)
from rwkv7_jax.model import RWKV7
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.sharding import ROWS, host
from rwkv7_jax.state import State

__all__ = ["Answer", "Cost", "PrefixScorer", "ScoredSequence"]

PLACES_A_ROW = {"cpu": 8}
"""Places of the largest passes for each sequence of the batch size, by backend."""
PLACES_A_ROW_ELSEWHERE = 64

Tick = Callable[[int], object]
"""Gets the number of sequences that were just done."""
Found = Callable[[Query, float, int], None]
"""Gets a query, the log-probability of its target, and the most likely token."""


class Answer(NamedTuple):
    """What a model says of one sequence's scored tokens."""

    log_likelihood: float
    """Sum of their log-probabilities, in nats."""
    greedy: bool
    """Whether each of them was the most likely one."""


class Cost:
    """Counts what was fed to a model."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens, without padding."""
        self.places = 0
        """Places of tokens in batches, with padding."""
        self.passes = 0
        """Calls of the model."""

    def add(self, one: Pass) -> None:
        """Counts a pass."""
        self.tokens += sum(piece.end - piece.begin for piece in one.pieces)
        self.places += one.shape.places
        self.passes += 1


class _Asked(NamedTuple):
    """A query, and where its answer stands."""

    query: Query
    place: int
    column: int


class PrefixScorer:
    """Scores sequences on one model, shared prefixes once.

    Args:
      model: the model's description.
      params: its weights.
      batch_size: sequences at once.
      min_saved: a shared prefix is fed once where that spares at least so many tokens.
    """

    def __init__(self, model: RWKV7, params: Params, batch_size: int, min_saved: int = MIN_SAVED):
        self.model, self.params, self.batch_size, self.min_saved = model, params, batch_size, min_saved
        self.cost = Cost()
        """What was fed since the scorer was made."""

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
            place = {number: slot for slot, number in enumerate(members)}
            chosen = [i for i, one in enumerate(sequences) if one.state in place]
            roots = forest([sequences[i] for i in chosen], self.min_saved)
            placed = [PlacedNode(place[root.state], root) for root in roots]
            with cause_named(self.params, states):
                start = [states[number] for number in members]
                for pieces, _ in self.visit(placed, start, _renumbered(found, chosen)):
                    tick(sum(len(piece.node.ending) for piece in pieces))
        return [Answer(float(x), bool(g)) for x, g in zip(totals, greedy, strict=True)]

    def visit(
        self, placed: Sequence[PlacedNode], states: Sequence[State], found: Found
    ) -> Iterator[tuple[list[Piece], State]]:
        """Feeds trees whose roots continue from `states`, of one structure, by number.

        Yields:
          The last pieces of nodes that end in a pass, and the pool in which the states after them lie until the next.

        Raises:
          NonFiniteLogitsError: the model's logits are not finite.
        """
        tokens = count_tokens([one.node for one in placed])
        places = PLACES_A_ROW.get(jax.default_backend(), PLACES_A_ROW_ELSEWHERE)
        menu = packing.shapes(self.batch_size, tokens, places, _devices())
        plan = Schedule(placed, len(states), menu)
        pool = make_pool(self.model, list(states), plan.slots)
        before: tuple[list[_Asked], NextTokenScores] | None = None
        for one in plan.passes():
            feed, asked = _feed(one, plan.slots)
            self.cost.add(one)
            scores, pool = advance(self.model, self.params, pool, feed)
            # Read while the device is at the next pass.
            before, ready = (asked, scores), before
            if ready:
                _tell(*ready, found)
            yield [piece for piece in one.pieces if piece.finishes], pool
        if before:
            _tell(*before, found)


def _devices() -> int:
    """Returns the number of devices that share the rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(np.prod([mesh.shape.get(axis, 1) for axis in ROWS]))


def _feed(one: Pass, slots: int) -> tuple[Feed, list[_Asked]]:
    """Returns the arrays of a pass, and where each query is answered: queries of one place share its logits."""
    rows, length = one.shape
    tokens, sizes, sources = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    targets = np.full(rows, slots, np.int32)
    found: list[_Asked] = []
    wanted: dict[int, list[int]] = {}
    for row, piece in enumerate(one.pieces):
        sizes[row], sources[row], targets[row] = piece.end - piece.begin, piece.source, piece.target
        tokens[row, : sizes[row]] = piece.node.tokens[piece.begin : piece.end]
        for query in piece.queries:
            known = wanted.setdefault(row * length + query.position - piece.begin, [])
            if query.target not in known:
                known.append(query.target)
            found.append(_Asked(query, len(wanted) - 1, known.index(query.target)))
    once = scores_at_once(one.shape.places)
    room, width = -(-one.shape.places // once) * once, max(MIN_TARGETS, *map(len, wanted.values()), 0)
    asked, columns = np.zeros(room, np.int32), np.zeros((room, next_power_of_two(width)), np.int32)
    asked[: len(wanted)] = list(wanted)
    for place, known in enumerate(wanted.values()):
        columns[place, : len(known)] = known
    return Feed(tokens, sizes, sources, targets, asked, columns, np.asarray(len(wanted), np.int32)), found


def _renumbered(found: Found, numbers: list[int]) -> Found:
    """Returns `found` for queries whose owners are places in `numbers`."""

    def renumbered(query: Query, log_probability: float, best: int) -> None:
        found(query._replace(owner=numbers[query.owner]), log_probability, best)

    return renumbered


def _tell(asked: list[_Asked], scores: NextTokenScores, found: Found) -> None:
    """Hands the scores of a pass to `found`.

    Raises:
      NonFiniteLogitsError: the model's logits are not finite.
    """
    if not asked:
        return
    log_probability, best, finite = host(scores)
    if not finite[: max(one.place for one in asked) + 1].all():
        raise NonFiniteLogitsError("the model's logits are not finite")
    for query, place, column in asked:
        found(query, float(log_probability[place, column]), int(best[place]))
