"""Counts of the server, in the text form that Prometheus reads.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import bisect
import collections
import threading
from collections.abc import Mapping
from typing import ClassVar

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper ends in seconds."""
Labels = tuple[tuple[str, str], ...]


class Histogram:
    """How many durations were at most as long as each of `BUCKETS`."""

    def __init__(self) -> None:
        self.counts, self.total, self.sum = [0] * (len(BUCKETS) + 1), 0, 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.total += 1
        self.sum += seconds


class Metrics:
    """Counters and histograms; they only grow."""

    HELP: ClassVar[Mapping[str, str]] = {
        "rwkv7_requests_total": "Answers to HTTP requests, by route and status.",
        "rwkv7_answers_total": "Ended generations, by how they ended.",
        "rwkv7_prompt_tokens_total": "Tokens of prompts.",
        "rwkv7_cached_tokens_total": "Of those, tokens that the prefix cache spared.",
        "rwkv7_generated_tokens_total": "Tokens of answers.",
        "rwkv7_first_token_seconds": "From a request to its first token.",
        "rwkv7_answer_seconds": "From a request to the end of its answer.",
    }

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = collections.defaultdict(float)
        self._histograms: dict[str, Histogram] = collections.defaultdict(Histogram)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counters[name, tuple(sorted(labels.items()))] += by

    def time(self, name: str, seconds: float) -> None:
        """Adds a duration to a histogram."""
        with self._lock:
            self._histograms[name].add(seconds)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of them, and what holds now."""
        with self._lock:
            lines: list[str] = []
            for name in sorted({name for name, _ in self._counters}):
                lines += _head(name, self.HELP.get(name, name), "counter")
                found = sorted((labels, value) for (one, labels), value in self._counters.items() if one == name)
                lines += [f"{name}{_labels(labels)} {value:g}" for labels, value in found]
            for name, histogram in sorted(self._histograms.items()):
                lines += _head(name, self.HELP.get(name, name), "histogram")
                below = 0
                for end, count in zip((*BUCKETS, float("inf")), histogram.counts, strict=True):
                    below += count
                    lines.append(f'{name}_bucket{{le="{"+Inf" if end == float("inf") else f"{end:g}"}"}} {below}')
                lines += [f"{name}_sum {histogram.sum:.6f}", f"{name}_count {histogram.total}"]
        for name, value in sorted(gauges.items()):
            lines += [*_head(name, "Now.", "gauge"), f"{name} {value:.15g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, help: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
