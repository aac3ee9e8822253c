"""Where the time of a run went, over all its sessions: goodput.json.

    {"goodput": 0.91, "wall": 120.4, "sessions": 2, "seconds": {"compile": ..., "input": ..., "step": ..., ...}}

Goodput is the part of the wall time spent in steps that count. The time between two sessions is not known and not in.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict, cast

from experiments.reporting import json_file

PARTS = ("compile", "input", "step", "save", "evaluation", "lost")
"""compile: the first step of each shape. input: waiting for a batch and its way to the device. save: what a checkpoint
holds up. lost: steps that a restart or rollback did again, and reading the checkpoint. The rest of `wall` is not named:
start of the loop, rows of metrics, whoever reads them."""
_REDONE = ("input", "step")
_INTERVAL = 1.0


_LONGEST = 1e15
"""Seconds that no run takes; a whole number may be too large for a float."""


class Written(TypedDict, total=False):
    """goodput.json."""

    goodput: float
    wall: float
    sessions: int
    seconds: dict[str, float]


class Ledger:
    """Seconds by part, carried on from `path`, which is written at most once a second (None: kept in memory alone)."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.perf_counter):
        self.path, self.clock = path, clock
        before = _read(path)
        self.seconds = {name: float(before.get("seconds", {}).get(name, 0.0)) for name in PARTS}
        self.sessions = int(before.get("sessions", 0)) + 1
        self._wall, self._start, self._written = float(before.get("wall", 0.0)), clock(), -_INTERVAL

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time of the block to `part`."""
        start = self.clock()
        try:
            yield
        finally:
            self.seconds[part] += self.clock() - start

    def snapshot(self) -> dict[str, float]:
        """Returns what goes into a checkpoint: the seconds that it saves from being lost."""
        return {name: self.seconds[name] for name in _REDONE}

    def back_to(self, snapshot: Mapping[str, float]) -> None:
        """Counts the steps since a checkpoint that is restored as lost, by its snapshot; {}: there is none."""
        for name in _REDONE:
            kept = min(self.seconds[name], float(snapshot.get(name, 0.0)))
            self.seconds["lost"] += self.seconds[name] - kept
            self.seconds[name] = kept

    @property
    def wall(self) -> float:
        """Seconds of all sessions."""
        return self._wall + self.clock() - self._start

    @property
    def goodput(self) -> float:
        """Part of the wall time in steps that count, 0..1."""
        return self.seconds["step"] / max(self.wall, 1e-9)

    def write(self, *, now: bool = True) -> None:
        """Writes the file; with `now=False` only if the last time is a second ago."""
        if self.path is None or not (now or self.clock() - self._written >= _INTERVAL):
            return
        self._written = self.clock()
        seconds = {name: round(value, 6) for name, value in self.seconds.items()}
        body = {"goodput": round(self.goodput, 4), "wall": round(self.wall, 6), "sessions": self.sessions}
        json_file.write(self.path, {**body, "seconds": seconds})

    def line(self) -> str:
        """Returns everything in one line."""
        names = {"input": "input wait", "lost": "lost to restarts"}
        parts = ", ".join(f"{names.get(name, name)} {value:.1f} s" for name, value in self.seconds.items())
        other = max(0.0, self.wall - sum(self.seconds.values()))
        return f"goodput {self.goodput:.0%} of {self.wall:.1f} s: {parts}, other {other:.1f} s"


def _read(path: Path | None) -> Written:
    """What an earlier session wrote; empty if there is none, or, with a warning, if it is damaged."""
    if path is None or not path.is_file():
        return {}
    try:
        return _checked(path, json_file.read(path))
    except (OSError, ValueError) as error:
        print(f"warning: {error}; the time of earlier sessions is not counted", file=sys.stderr)
        return {}


def _checked(path: Path, found: Mapping[str, object]) -> Written:
    """The file's content, if its numbers are times."""
    seconds, sessions, wall = (found.get(name) for name in ("seconds", "sessions", "wall"))
    values = [wall, sessions, *(seconds.values() if isinstance(seconds, dict) else [None])]
    if not isinstance(sessions, int) or not all(_is_time(value) for value in values):
        raise ValueError(f"{path} is damaged (it is not a ledger)")
    return cast(Written, found)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < _LONGEST
