"""The observer's part: maps between the two models' states, and how well the larger model is observed."""

from typing import Any

import jax
import numpy as np

from experiments.data.batching import encode_pairs
from experiments.data.jsonl import Pair
from experiments.study.lab import Lab, Side
from rwkv7_jax.bucketing import padded_length
from state_tuning.core.objective import Batch, collate
from state_tuning.observer import observe as observer

BATCH, GAIN = 16, 0.5
"""Texts at once, and of each benchmark where the observer is judged; how much of the innovation is fed back."""


def fit(lab: Lab) -> observer.Observer:
    """Maps of both directions, fitted to training records of all benchmarks."""
    settings = lab.config.observer
    rows = [pair for job in lab.jobs.values() for pair in job.train[: settings.rows]]
    config = observer.ObserverConfig(every=settings.every, samples=settings.samples)
    return observer.fit(
        frozen(lab.student), frozen(lab.larger), batches(lab, rows), config, jax.random.key(lab.config.seed)
    )


def report(lab: Lab, maps: observer.Observer) -> dict[str, Any]:
    """R^2 of the larger model's state by layer and the two KLs, on held-out records: as it is, and with corrections."""
    rows = [pair for job in lab.jobs.values() for pair in job.held_out[:BATCH]]
    (batch,) = batches(lab, rows, len(rows))
    student, larger, every = frozen(lab.student), frozen(lab.larger), lab.config.observer.every
    found: dict[str, Any] = {}
    for name, gain in (("plain", 0.0), ("corrected", GAIN)):
        seen = observer.report(maps, student, larger, batch, every, gain)
        found[name] = {"r2": np.asarray(seen.r2).tolist(), "kl_logits": seen.kl_logits, "kl_state": seen.kl_state}
    return found


def batches(lab: Lab, pairs: list[Pair], size: int = BATCH) -> list[Batch]:
    """The pairs in order, one length for all."""
    examples = encode_pairs(lab.student.lm.tokenizer, pairs, lab.config.data)
    length = padded_length(max(len(example.tokens) for example in examples) - 1)
    return [collate(examples[i : i + size], length, size) for i in range(0, len(examples), size)]


def frozen(side: Side) -> observer.Frozen:
    """Model and weights."""
    return observer.Frozen(side.lm.model, side.lm.params)
