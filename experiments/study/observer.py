"""The observer's part: maps between the two models' states, and how well the larger model is observed."""

import jax
import numpy as np

from experiments.config.study import ObserverConfig
from experiments.data.batching import encode_pairs
from experiments.data.jsonl import Pair
from experiments.study.records import ObserverQuality
from experiments.study.resources import Resources
from rwkv7_jax.bucketing import padded_length
from state_tuning import observer
from state_tuning.core.objective import Batch, collate

BATCH, GAIN = 16, 0.5
"""Texts at once, and of each benchmark where the observer is judged; how much of the innovation is fed back."""


def fit(resources: Resources, settings: ObserverConfig, seed: int) -> observer.Observer:
    """Fits maps of both directions to training records of all benchmarks."""
    pairs = [pair for job in resources.jobs.values() for pair in job.train[: settings.rows]]
    config = observer.ObserverConfig(every=settings.every, samples=settings.samples)
    student, larger = resources.student.lm, resources.larger.lm
    return observer.fit(student, larger, batches(resources, pairs), config, jax.random.key(seed))


def quality(resources: Resources, maps: observer.Observer, every: int) -> dict[str, ObserverQuality]:
    """Measures the observer on held-out records, as it is ("plain") and "corrected" every `every` tokens."""
    pairs = [pair for job in resources.jobs.values() for pair in job.held_out[:BATCH]]
    (batch,) = batches(resources, pairs, len(pairs))
    found: dict[str, ObserverQuality] = {}
    for name, gain in (("plain", 0.0), ("corrected", GAIN)):
        report = observer.report(maps, resources.student.lm, resources.larger.lm, batch, every, gain)
        r2 = np.asarray(report.r2).tolist()
        found[name] = {"r2": r2, "kl_logits": report.kl_logits, "kl_state": report.kl_state}
    return found


def batches(resources: Resources, pairs: list[Pair], size: int = BATCH) -> list[Batch]:
    """Returns the pairs in order, one length for all."""
    examples = encode_pairs(resources.student.lm.tokenizer, pairs, resources.data)
    length = padded_length(max(len(example.tokens) for example in examples) - 1)
    return [collate(examples[i : i + size], length, size) for i in range(0, len(examples), size)]
