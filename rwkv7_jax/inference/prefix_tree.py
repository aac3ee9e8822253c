"""Which tokens to feed once and share: requests as a forest whose edges are states that are forked.

A request feeds all its tokens but the last, and asks at some of them for the log-probability of the next one. Requests
with the same initial state and the same first tokens share a node; where they part, each continues from its state.
That covers a few-shot prefix of many questions, a question of several choices, and two contexts with one suffix.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

MIN_SAVED = 64
"""A shared part is a node of its own if that spares at least this many tokens."""


class Asked(NamedTuple):
    """At least two tokens, of which those from `start` >= 1 on are scored. `state` numbers the initial state."""

    tokens: tuple[int, ...]
    start: int
    state: int = 0


class Query(NamedTuple):
    """Log-probability wanted of `target` after the node's token at `position`, for the request number `owner`."""

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
    """Requests whose last fed token is this node's last."""


def forest(asked: Sequence[Asked], min_saved: int = MIN_SAVED) -> list[Node]:
    """The roots, in an order that depends on the requests alone and not on theirs.

    min_saved: see MIN_SAVED; a very large number shares nothing but what is equal.
    """
    order = sorted(range(len(asked)), key=lambda i: (asked[i].state, asked[i].tokens[:-1]))
    roots = []
    for state, members in groupby(order, key=lambda i: asked[i].state):
        roots += _grow(asked, list(members), state, 0, 0, min_saved)
    return roots


def _grow(asked: Sequence[Asked], order: list[int], state: int, start: int, seen: int, min_saved: int) -> list[Node]:
    """Nodes for requests (in order of their fed tokens) that share all fed tokens before `seen`, fed up to `start`."""
    nodes = []
    for _, group in groupby(order, key=lambda i: asked[i].tokens[seen]):
        members = list(group)
        end = _parting(asked[members[0]].tokens, asked[members[-1]].tokens, seen)
        ending = [i for i in members if len(asked[i].tokens) - 1 == end]
        rest = members[len(ending) :]
        branches = len({asked[i].tokens[end] for i in rest}) + bool(ending)
        if not rest or (end - start) * (branches - 1) >= min_saved:
            children = _grow(asked, rest, state, end, end, min_saved) if rest else []
            nodes.append(_node(asked, state, members, ending, start, end, children))
            continue
        if ending:
            nodes.append(_node(asked, state, ending, ending, start, end, []))
        nodes += _grow(asked, rest, state, start, end, min_saved)
    return nodes


def _parting(a: tuple[int, ...], b: tuple[int, ...], seen: int) -> int:
    """How many fed tokens two requests share, of which `seen` are known."""
    size = min(len(a), len(b)) - 1
    return next((i for i in range(seen, size) if a[i] != b[i]), size)


def _node(
    asked: Sequence[Asked],
    state: int,
    members: list[int],
    ending: list[int],
    start: int,
    end: int,
    children: list[Node],
) -> Node:
    queries = [query for owner in members for query in _queries(asked[owner], owner, start, end)]
    return Node(state, asked[members[0]].tokens[start:end], queries, children, ending)


def _queries(one: Asked, owner: int, start: int, end: int) -> Iterator[Query]:
    """What a request asks for while its fed tokens from `start` to `end` go by."""
    for fed in range(max(start, one.start - 1), end):
        yield Query(fed - start, one.tokens[fed + 1], owner)


def count_tokens(nodes: Sequence[Node]) -> int:
    """Tokens fed in all."""
    return sum(len(node.tokens) + count_tokens(node.children) for node in nodes)
