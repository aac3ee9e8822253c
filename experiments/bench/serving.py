"""This project's server and llama.cpp's, on the same weights in float32, in turn (`rwkv7 bench serve`).

Both are processes that answer over HTTP on this machine. As many streams as the server has slots ask at once, each with
a prompt of its own, and read their answers as they come.
"""

import contextlib
import http.client
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from experiments.bench.model import TOLERANCE, difference
from experiments.bench.serving_files import OURS, PEER, STATES, Files, command, greedy, prepare, prompt
from experiments.bench.streams import Served, Table
from experiments.reporting.tables import markdown_table

T = TypeVar("T")
LONG, KNOWN = 2000, 1920
"""Tokens of a long prompt, and of its beginning that was read before."""
COLD, CACHED = f"first token of a {LONG:,}-token prompt", f"first token, {KNOWN:,} of its tokens known"
SAME, OTHER = "first token, the state of the request before", "first token, another state"
RESTART = "from the command to the first answer, embedded model"
BASE = {CACHED: COLD, OTHER: SAME}
"""What a time is compared with."""
SWAPS = 10
"""Requests with another state than the one before, and as many with the same, in a round."""
CHECKED = 8
"""Tokens whose log-probabilities both servers have to agree on."""
FAULTS = (RuntimeError, OSError, ValueError, KeyError, http.client.HTTPException)
"""What a server that does not do as it should gives."""


class Line(NamedTuple):
    """Streams that one server answered at once."""

    streams: int
    who: str
    tokens_per_s: float
    """Of all streams together, from the first request to the last token."""
    first_token_s: float
    """Median over the streams."""
    problem: str = ""
    """Why there is no time."""


class Wait(NamedTuple):
    """Seconds that one client waited."""

    what: str
    who: str
    seconds: float
    problem: str = ""


class Comparison(NamedTuple):
    """All measurements of one shape."""

    shape: str
    rounds: int
    tokens: int
    """Of each answer."""
    lines: list[Line]
    waits: list[Wait]

    def as_json(self) -> dict[str, object]:
        """Returns all numbers."""
        lines, waits = ([it._asdict() for it in found] for found in (self.lines, self.waits))
        return {"shape": self.shape, "rounds": self.rounds, "tokens": self.tokens, "lines": lines, "waits": waits}


def compare(
    shape: str, streams: Sequence[int], tokens: int, rounds: int, without: Sequence[str] = (), *, waits: bool = True
) -> Comparison:
    """Measures both servers in turn.

    Args:
      shape: one of `SHAPES`.
      streams: numbers of clients at once.
      tokens: length of each answer.
      rounds: times that every contender is measured; the best round counts.
      without: `PEER`, to leave llama.cpp out.
      waits: whether single requests and the start are measured too.

    Returns:
      The measurements.
    """
    contenders = [who for who in (OURS, PEER) if who not in without]
    with tempfile.TemporaryDirectory() as name:
        files = prepare(Path(name), shape, PEER in contenders)
        lines: list[Line] = []
        for count in streams:
            print(f"{count} streams", file=sys.stderr, flush=True)
            lines += throughput(files, contenders, count, tokens, rounds)
        if not waits:
            return Comparison(shape, rounds, tokens, lines, [])
        print("single requests", file=sys.stderr, flush=True)
        found = first_tokens(files, contenders, rounds)
        found += [*swaps(files, rounds), restart(rounds)]
    return Comparison(shape, rounds, tokens, lines, found)


class Contender:
    """A server that is measured, and why it is not any more."""

    def __init__(self, who: str, files: Files, slots: int):
        self.who, self.problem = who, files.problem if who == PEER else ""
        self.served: Served | None = None
        if not self.problem:
            try:
                self.served = Served(files.words(who, slots))
            except FAULTS as error:
                self.problem = _said(error)

    def tried(self, work: Callable[[Served], T], otherwise: T) -> T:
        """Returns what the work with the server gives; once something is wrong, the other value."""
        if self.problem or self.served is None:
            return otherwise
        try:
            return work(self.served)
        except FAULTS as error:
            self.problem = _said(error)
            return otherwise

    def close(self) -> None:
        """Ends the server."""
        if self.served:
            self.served.close()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextlib.contextmanager
def started(files: Files, contenders: Sequence[str], slots: int) -> Iterator[list[Contender]]:
    """The servers within `with`, with those marked whose log-probabilities differ from llama.cpp's."""
    made: list[Contender] = []
    try:
        made.extend(Contender(who, files, slots) for who in contenders)
        check(made, greedy(prompt(0, files.shape), CHECKED))
        yield made
    finally:
        for one in made:
            one.close()


def check(made: Sequence[Contender], table: Table) -> None:
    """Marks a server whose log-probabilities of the greedy answer differ from those of the last one."""
    found = [one.tried(lambda served: served.logprobs(table), []) for one in made]
    reference = next((numbers for numbers in reversed(found) if numbers), None)
    for one, numbers in zip(made, found, strict=True):
        if numbers and reference and len(numbers) != len(reference):
            one.problem = f"wrong: answers with {len(numbers)} tokens, not {len(reference)}"
        else:
            one.problem = one.problem or difference(numbers, reference, TOLERANCE["float32"])


def throughput(files: Files, contenders: Sequence[str], count: int, tokens: int, rounds: int) -> list[Line]:
    """Returns a line for each server with as many slots as streams; a first burst is not counted."""
    with started(files, contenders, count) as made:
        bursts: dict[str, list[tuple[float, float]]] = {one.who: [] for one in made}
        for number in range(rounds + 1):
            tables = [greedy(prompt(1 + number * count + stream, files.shape), tokens) for stream in range(count)]
            for one in made:
                found = one.tried(lambda served, tables=tables: burst(served, tables), None)
                if found and number:
                    bursts[one.who].append(found)
        return [_line(count, one, bursts[one.who]) for one in made]


def burst(served: Served, tables: Sequence[Table]) -> tuple[float, float]:
    """Returns tokens a second of all streams, and the median of seconds to the first text."""
    answers, seconds = served.burst([{**table, "cache_prompt": False} for table in tables])
    return sum(it.tokens for it in answers) / seconds, statistics.median(it.first_s for it in answers)


def _line(count: int, one: Contender, bursts: Sequence[tuple[float, float]]) -> Line:
    if one.problem or not bursts:
        return Line(count, one.who, 0.0, 0.0, one.problem or "no round was measured")
    return Line(count, one.who, max(speed for speed, _ in bursts), min(first for _, first in bursts))


def first_tokens(files: Files, contenders: Sequence[str], rounds: int) -> list[Wait]:
    """Returns how long the first token of a long prompt takes, new and with a beginning that was just read."""
    with started(files, contenders, 1) as made:
        seconds: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds):
            whole = prompt(1000 + number, files.shape, LONG)
            other = [*whole[:KNOWN], *prompt(2000 + number, files.shape, LONG - KNOWN)]
            for one in made:
                for what, tokens in ((COLD, whole), (CACHED, other)):
                    table = {**greedy(tokens, 2), "cache_prompt": True}
                    answer = one.tried(lambda served, table=table: served.ask(table), None)
                    if answer:
                        seconds.setdefault((what, one.who), []).append(answer.first_s)
        return [_wait(what, one, seconds.get((what, one.who), [])) for what in (COLD, CACHED) for one in made]


def swaps(files: Files, rounds: int) -> list[Wait]:
    """Returns how long the first token of a short prompt takes from the state of the request before, and another."""
    seconds: dict[str, list[float]] = {SAME: [], OTHER: []}
    with started(files, [OURS], 1) as (one,):
        for _ in range(rounds + 1):
            firsts: dict[str, list[float]] = {SAME: [], OTHER: []}
            for number in range(2 * SWAPS):
                state, what = STATES[number // 2 % 2], OTHER if number % 2 == 0 else SAME
                answer = one.tried(lambda served, state=state: served.ask(_from(served, state)), None)
                if answer:
                    firsts[what].append(answer.first_s)
            for what, found in firsts.items():
                seconds[what] += [statistics.median(found)] if found else []
        return [_wait(what, one, found[1:]) for what, found in seconds.items()]


def _from(served: Served, state: str) -> Table:
    return {**greedy([1], 1), "model": f"{served.model}:{state}"}


def _wait(what: str, one: Contender, seconds: Sequence[float]) -> Wait:
    if one.problem or not seconds:
        return Wait(what, one.who, 0.0, one.problem or "no round was measured")
    return Wait(what, one.who, min(seconds))


def restart(rounds: int) -> Wait:
    """Returns how long it takes from the command to an answer of the embedded model; the first start is not counted."""
    found: list[float] = []
    try:
        for number in range(rounds + 1):
            begun = time.perf_counter()
            with Served(command(8)) as served:
                served.ask({"prompt": "Mira", "max_tokens": 1})
                found += [time.perf_counter() - begun] if number else []
    except FAULTS as error:
        return Wait(RESTART, OURS, 0.0, _said(error))
    return Wait(RESTART, OURS, min(found))


def show(found: Comparison) -> str:
    """Returns both tables."""
    peers = {line.streams: line.tokens_per_s for line in found.lines if line.who == PEER and not line.problem}
    cells = [["streams", "who", "tokens/s", f"times {PEER}", "first token"]]
    for line in found.lines:
        if line.problem:
            cells.append([str(line.streams), line.who, f"not measured: {line.problem}", "", ""])
            continue
        ratio = f"{line.tokens_per_s / peers[line.streams]:.2f}" if peers.get(line.streams) else ""
        cells.append([str(line.streams), line.who, f"{line.tokens_per_s:.1f}", ratio, _shown(line.first_token_s)])
    if not found.waits:
        return markdown_table(cells)
    return f"{markdown_table(cells)}\n\n{markdown_table(_waits(found.waits))}"


def _waits(waits: Sequence[Wait]) -> list[list[str]]:
    seconds = {(wait.what, wait.who): wait.seconds for wait in waits if not wait.problem}
    cells = [["one client waits for", "who", "time", "beside"]]
    for wait in waits:
        if wait.problem:
            cells.append([wait.what, wait.who, f"not measured: {wait.problem}", ""])
            continue
        base = BASE.get(wait.what)
        before = seconds.get((base, wait.who)) if base else None
        beside = f"{wait.seconds / before:.3f} of that ({1000 * (wait.seconds - before):+.2f} ms)" if before else ""
        cells.append([wait.what, wait.who, _shown(wait.seconds), beside])
    return cells


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
