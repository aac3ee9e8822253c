"""Which tokens of which nodes go into which pass: few shapes, nearly full, parents before children.

Nodes are cut into pieces. Each pass takes pieces of whatever nodes can go on, of any depth, in the shape that they fill
best. The order follows from the nodes alone. States lie in slots of one pool, of which a bounded number is used: the
first ones hold the initial states, and a node keeps its slot until its last child has started, which takes it over.
"""

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rwkv7_jax.inference.prefix_tree import Node, Query

LENGTHS = (16, 64, 256)
"""Tokens of a row in a pass; each is a program."""
LEAST_PLACES = 128
"""Places of a pass at least, where rows and lengths allow it."""
PASSES = 24
"""A pass has at most about this fraction of all tokens, so that the last ones, half empty, are few of all."""
OVERHEAD = 16
"""Places that take about as long as a pass takes besides them."""


class Shape(NamedTuple):
    """Rows, and tokens of a row."""

    rows: int
    length: int

    @property
    def places(self) -> int:
        """Tokens that fit."""
        return self.rows * self.length


class PlacedNode(NamedTuple):
    """A node, and the slot of the pool that it continues from."""

    slot: int
    node: Node


class Piece(NamedTuple):
    """The tokens of a node from `begin` to `end`, fed from the state in slot `source`; the state after them goes to
    slot `target`."""

    node: Node
    begin: int
    end: int
    source: int
    target: int
    queries: list[Query]
    """Of these tokens, their positions counted in the node."""

    @property
    def finishes(self) -> bool:
        """Whether the node ends here."""
        return self.end == len(self.node.tokens)


class Pass(NamedTuple):
    """Pieces of different nodes, one a row."""

    shape: Shape
    pieces: list[Piece]


def shapes(batch_size: int, tokens: int, places_a_row: int = 16, devices: int = 1) -> list[Shape]:
    """Returns the shapes of passes, of about as many places each: many short rows, or few long ones.

    Args:
      batch_size: rows at most.
      tokens: to be fed in all; few take smaller passes.
      places_a_row: places of the largest pass for each sequence of the batch size.
      devices: that share the rows; their number divides those of rows, where it divides the batch size.
    """
    places = max(LEAST_PLACES, places_a_row * batch_size)
    while places > LEAST_PLACES and places * PASSES > tokens:
        places = max(LEAST_PLACES, places // 4)
    least = devices if batch_size % devices == 0 else 1
    return [Shape(max(least, min(batch_size, places // length) // least * least), length) for length in LENGTHS]


@dataclasses.dataclass
class _Fork:
    """A slot from which `waiting` more children start."""

    slot: int
    waiting: int


@dataclasses.dataclass
class _Item:
    """A node that waits or of which the tokens before `begin` are fed."""

    node: Node
    way: int
    """Tokens of it and of the longest way below."""
    height: int
    """Nodes on the longest way below."""
    number: int
    """Breaks ties."""
    fork: _Fork
    queries: list[Query]
    """Those of the tokens from `begin` on, the last first."""
    begin: int = 0
    slot: int | None = None
    """Of the state after the tokens before `begin`; none: it has not started."""

    @property
    def left(self) -> int:
        """Tokens to feed."""
        return len(self.node.tokens) - self.begin


_Entry = tuple[int, int, int, _Item]
"""(height, -way, number, node)"""


class Schedule:
    """The passes over trees whose roots continue from initial states, which lie in the first slots and stay there."""

    def __init__(self, placed: Sequence[PlacedNode], initial: int, menu: Sequence[Shape]):
        """initial: number of initial states. menu: the shapes of passes."""
        self._menu = menu
        self._rows = max(shape.rows for shape in menu)
        self._measures: dict[int, tuple[int, int]] = {}
        deep = max((self._measure(one.node)[1] for one in placed), default=0)
        self.slots = initial + 2 * self._rows + max(4, 1 << deep.bit_length())
        """Slots of the pool that the passes need."""
        self._free = list(range(self.slots - 1, initial - 1, -1))
        self._going: list[_Item] = []
        self._leaves: list[_Entry] = []
        """Waiting nodes without children, the longest first."""
        self._inner: list[_Entry] = []
        """Waiting nodes with children, the lowest trees first."""
        self._pushed = 0
        for one in placed:
            self._push(one.node, _Fork(one.slot, 0))

    def passes(self) -> Iterator[Pass]:
        """Yields the passes in order, once. What a pass writes to a slot lies there until the next one."""
        while self._going or self._leaves or self._inner:
            shape, chosen = self._choose()
            taken = {item.number for item in chosen}
            pieces = [self._advance(item, shape.length) for item in chosen]
            self._going = [item for item in self._going if item.number not in taken]
            self._going += [item for item in chosen if item.left]
            yield Pass(shape, pieces)
            for item, piece in zip(chosen, pieces, strict=True):
                if piece.finishes:
                    self._end(item.node, piece.target)

    def _measure(self, node: Node) -> tuple[int, int]:
        """Returns (tokens of a node and of the longest way below, nodes on the longest way below)."""
        below = [self._measure(child) for child in node.children]
        way = len(node.tokens) + max((way for way, _ in below), default=0)
        self._measures[id(node)] = found = way, max((1 + height for _, height in below), default=0)
        return found

    def _push(self, node: Node, fork: _Fork) -> None:
        """Lets a node wait for its start."""
        way, height = self._measures[id(node)]
        queries = sorted(node.queries, key=lambda query: query.position, reverse=True)
        item = _Item(node, way, height, self._pushed, fork, queries)
        self._pushed += 1
        heapq.heappush(self._inner if height else self._leaves, (height, -way, item.number, item))

    def _choose(self) -> tuple[Shape, list[_Item]]:
        """Returns the shape that is filled best, and with which nodes; those of them that waited wait no longer."""
        leaves, inner = _popped(self._leaves, self._rows), _popped(self._inner, self._rows)
        candidates = [*self._going, *(entry[-1] for entry in leaves), *(entry[-1] for entry in inner)]
        tried = [(shape, self._best(candidates, shape)) for shape in self._menu]
        shape, chosen = max(tried, key=lambda one: _filled(*one))
        taken = {item.number for item in chosen}
        _push_back(self._leaves, [entry for entry in leaves if entry[-1].number not in taken])
        _push_back(self._inner, [entry for entry in inner if entry[-1].number not in taken])
        return shape, chosen

    def _best(self, candidates: list[_Item], shape: Shape) -> list[_Item]:
        """Returns the candidates that fill a shape best and for which there are slots.

        Nodes with children start only while slots for a whole batch of others are left, and one for each level below
        them: so the one that started last can always be finished.
        """
        chosen, free = [], len(self._free)
        for item in sorted(candidates, key=lambda one: (-min(one.left, shape.length), -one.way, one.number)):
            if item.slot is None:
                if free < (self._rows + item.height if item.height else 1):
                    continue
                free -= 1
            chosen.append(item)
            if len(chosen) == shape.rows:
                break
        return chosen

    def _advance(self, item: _Item, length: int) -> Piece:
        """Moves a node on by a piece."""
        source = item.fork.slot if item.slot is None else item.slot
        if item.slot is None:
            item.fork.waiting -= 1
            if item.fork.waiting == 0:
                self._free.append(item.fork.slot)
            item.slot = self._free.pop()
        begin, item.begin = item.begin, item.begin + min(item.left, length)
        item.way -= item.begin - begin
        queries = []
        while item.queries and item.queries[-1].position < item.begin:
            queries.append(item.queries.pop())
        return Piece(item.node, begin, item.begin, source, item.slot, queries)

    def _end(self, node: Node, slot: int) -> None:
        """Frees the slot of a node that has ended, or lets its children wait for their start from there."""
        if not node.children:
            self._free.append(slot)
        fork = _Fork(slot, len(node.children))
        for child in node.children:
            self._push(child, fork)


def _popped(heap: list[_Entry], count: int) -> list[_Entry]:
    """Takes the first entries from a heap."""
    return [heapq.heappop(heap) for _ in range(min(count, len(heap)))]


def _push_back(heap: list[_Entry], entries: Sequence[_Entry]) -> None:
    for entry in entries:
        heapq.heappush(heap, entry)


def _filled(shape: Shape, chosen: Sequence[_Item]) -> tuple[float, float]:
    """Returns the parts of a shape's places that are filled by whole steps of the shortest length, and by tokens.

    The end of a node takes a whole step wherever it is fed, so that is no reason to wait with it.
    """
    fed = [min(item.left, shape.length) for item in chosen]
    steps = sum(-(-count // LENGTHS[0]) * LENGTHS[0] for count in fed)
    return steps / (shape.places + OVERHEAD), sum(fed) / shape.places
