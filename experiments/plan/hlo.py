"""What a compiled program sends between chips, read from its text: operations that move data, by kind, with loops
counted as often as they run."""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_OPERATION = re.compile(rf"= (\(?.*?\)?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|branch_computations|true_computation|false_computation)=\{?(%?[\w., %-]+)"
)
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_PAIRS = re.compile(r"source_target_pairs=\{([\d,{}]*)\}")
_TARGET = re.compile(r"\{\d+,(\d+)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Moved(NamedTuple):
    """A kind of operation: how many run in one step, and bytes of their results on one chip. A permutation counts for
    the chips that it sends to; the figures are those of the chip that gets most."""

    kind: str
    count: int
    bytes: int


class Largest(NamedTuple):
    """The largest result of one operation of a kind, for recognising a gather of whole weights."""

    kind: str
    shape: str
    bytes: int


def collectives(text: str) -> tuple[list[Moved], list[Largest]]:
    """Returns the operations of an optimised HLO module, and the largest of each kind.

    An asynchronous operation stands, with one channel, in the fusion that starts it and in those that go on with it
    beside other work or end it; it counts where it starts, which comes first. Elsewhere a channel may be used again: a
    function of JAX that is called twice has one.
    """
    bodies, entry = _computations(text)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    largest: dict[str, Largest] = {}
    starts: dict[str, str] = {}

    def visit(name: str, times: int, fused: bool = False) -> None:
        for line in bodies.get(name, ()):
            found, channel = _OPERATION.search(line), _CHANNEL.search(line)
            if found and (not fused or channel is None or starts.setdefault(channel[1], name) == name):
                shape, kind = found[1], found[2]
                size = _size(shape, bool(found[3]))
                for chip in _receivers(line):
                    counts[kind][chip] += times
                    totals[kind][chip] += times * size
                if size > largest.get(kind, Largest(kind, "", -1)).bytes:
                    largest[kind] = Largest(kind, shape, size)
            trips = _trips(line, bodies) if " while(" in line else 1
            for group in _CALLED.findall(line):
                for called in group.replace("%", "").split(","):
                    visit(called.strip(), times * trips, fused or " fusion(" in line)

    visit(entry, 1)
    moved = [Moved(kind, max(counts[kind].values()), max(totals[kind].values())) for kind in KINDS if counts[kind]]
    return moved, list(largest.values())


def _receivers(line: str) -> list[str]:
    """The chips that get a result: those that a permutation sends to, else all of them as one."""
    pairs = _PAIRS.search(line)
    return _TARGET.findall(pairs[1]) if pairs else [""]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(lines by computation, name of the entry)."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None and (found := _HEAD.match(line)):
            current = bodies.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often a loop runs: as XLA notes it, or by the bound that its condition compares the counter with."""
    if found := _TRIPS.search(line):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    bounds = [int(n) for text in bodies.get(condition[1], ()) for n in _BOUND.findall(text)] if condition else []
    return max(bounds, default=1)


def _size(shape: str, started: bool) -> int:
    """Bytes of a result; an asynchronous start has operand and result in a tuple, of which the larger counts."""
    sizes = [
        BYTES.get(kind, 4) * math.prod(int(n) for n in numbers.split(",") if n)
        for kind, numbers in _SHAPE.findall(shape)
    ]
    return max(sizes, default=0) if started else sum(sizes)
