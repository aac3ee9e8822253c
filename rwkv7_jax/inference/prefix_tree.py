"""A prefix tree of token sequences, so that shared beginnings are fed once and their states are forked.

A sequence feeds all its tokens but the last, and queries at some of them the log-probability of the next one. Sequences
with the same initial state and the same first tokens share a node; where they part, each continues from its state.
That covers a few-shot prefix of many questions, a question of several choices, and two contexts with one suffix.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

MIN_SAVED = 64
"""A shared part becomes a node of its own if that spares at least this many tokens."""


class ScoredSequence(NamedTuple):
    """Tokens of which the last ones are scored."""

    tokens: tuple[int, ...]
    """At least two token ids."""
    start: int
    """Those from here on are scored, at least 1."""
    state: int = 0
    """Number of the initial state."""


class Query(NamedTuple):
    """Log-probability wanted of `target` after the node's token at `position`, for the sequence number `owner`."""

    position: int
    target: int
    owner: int


class Node(NamedTuple):
    """Tokens to feed from the state after the parent's (a root: from the initial state number `state`)."""

    state: int
    tokens: tuple[int, ...]
    queries: list[Query]
    children: list["Node"]
    ending: list[int]
    """Numbers of the sequences whose last fed token is this node's last."""


def forest(sequences: Sequence[ScoredSequence], min_saved: int = MIN_SAVED) -> list[Node]:
    """Builds the prefix trees of sequences.

    Args:
      sequences: in any order; the trees do not depend on it.
      min_saved: see MIN_SAVED; a very large number shares only what is equal.

    Returns:
      The roots, one or more for each initial state.
    """
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i].state, sequences[i].tokens[:-1]))
    roots = []
    for state, members in groupby(order, key=lambda i: sequences[i].state):
        roots += _grow(sequences, list(members), state, 0, 0, min_saved)
    return roots


def _grow(
    sequences: Sequence[ScoredSequence], order: list[int], state: int, start: int, seen: int, min_saved: int
) -> list[Node]:
    """Returns nodes of sequences (sorted by fed tokens) that share all fed tokens before `seen`, fed up to `start`."""
    nodes = []
    for _, group in groupby(order, key=lambda i: sequences[i].tokens[seen]):
        members = list(group)
        end = _parting(sequences[members[0]].tokens, sequences[members[-1]].tokens, seen)
        ending = [i for i in members if len(sequences[i].tokens) - 1 == end]
        rest = members[len(ending) :]
        branches = len({sequences[i].tokens[end] for i in rest}) + bool(ending)
        if not rest or (end - start) * (branches - 1) >= min_saved:
            children = _grow(sequences, rest, state, end, end, min_saved) if rest else []
            nodes.append(_node(sequences, state, members, ending, start, end, children))
            continue
        if ending:
            nodes.append(_node(sequences, state, ending, ending, start, end, []))
        nodes += _grow(sequences, rest, state, start, end, min_saved)
    return nodes


def _parting(a: tuple[int, ...], b: tuple[int, ...], seen: int) -> int:
    """Returns how many fed tokens two sequences share, of which `seen` are known."""
    size = min(len(a), len(b)) - 1
    return next((i for i in range(seen, size) if a[i] != b[i]), size)


def _node(
    sequences: Sequence[ScoredSequence],
    state: int,
    members: list[int],
    ending: list[int],
    start: int,
    end: int,
    children: list[Node],
) -> Node:
    queries = [query for owner in members for query in _queries(sequences[owner], owner, start, end)]
    return Node(state, sequences[members[0]].tokens[start:end], queries, children, ending)


def _queries(one: ScoredSequence, owner: int, start: int, end: int) -> Iterator[Query]:
    """Yields the queries of a sequence at its fed tokens from `start` to `end`."""
    for fed in range(max(start, one.start - 1), end):
        yield Query(fed - start, one.tokens[fed + 1], owner)


def count_tokens(nodes: Sequence[Node]) -> int:
    """Returns the number of tokens fed in all."""
    return sum(len(node.tokens) + count_tokens(node.children) for node in nodes)
