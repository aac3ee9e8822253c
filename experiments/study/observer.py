"""The observer's part: maps between the two models' states, how well the larger model is observed, what that buys.

What it buys: the small model as a draft (`speculation`), states tuned on it as starts of the large one (`warm_start`).
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import TypedDict

import jax
import numpy as np

from experiments.config.observe import SpeculationConfig, WarmConfig
from experiments.config.schema import DataConfig, TuneConfig
from experiments.config.study import ObserverConfig
from experiments.data.batching import encode_pairs, training_batches
from experiments.data.jobs import Job
from experiments.data.jsonl import Pair
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.study.adjustable_rate import set_rate, with_adjustable_rate
from experiments.study.records import ObserverQuality
from experiments.study.resources import Resources
from experiments.study.tuning import schedule
from experiments.training import loop
from experiments.training.observing import Pairing, one_batch
from rwkv7_jax import State, zero_state
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.generation.generate import Draft, GenerateResult, SamplingParams, generate
from rwkv7_jax.language_model import LanguageModel
from state_tuning import observer
from state_tuning.core import non_finite, train
from state_tuning.core.objective import Batch, Example, collate
from state_tuning.observer import state_map

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


HEADER = ["text", "R^2 by layer", "KL(large given small)", "KL from the mapped state"]
WARM_HEADER = [
    "task", "loss of the zero state", "of the carried", "best from zero", "steps", "best from carried",
    "steps to the best from zero",
]  # fmt: skip
CONSTANT = train.TuneConfig(learning_rate=1.0, schedule="constant", warmup=0)
"""The rates of a tuning are set from outside, so that one compiled step serves all."""


class Speculated(TypedDict):
    """Continuations with the small model as draft."""

    tokens: int
    """Proposed a pass."""
    choice: str
    tokens_a_pass: float
    """Of the large model; without a draft it is 1."""
    kept: float
    """Share of the proposed tokens."""
    same: str
    """Rows equal to those without a draft."""
    seconds_ratio: float
    """Time with the draft by time without, in turn, the median of three."""


class WarmCurves(TypedDict):
    """Held-out losses (nats per token) of the large model by step, of each rate and start."""

    steps: list[int]
    zero: dict[str, list[float]]
    carried: dict[str, list[float]]
    small: dict[str, float]
    """Rate -> loss of the small model at its end; the state of the least is carried."""


def reports(
    pairing: Pairing, parts: Sequence[Sequence[Pair]], data: DataConfig, every: int, gain: float
) -> dict[str, observer.Report]:
    """Measures the observer on held-out records of all tasks, as it is and with corrections."""
    batch = one_batch(pairing.large, [pair for part in parts for pair in part], data)
    given = (pairing.start, pairing.small, pairing.large, batch, every)
    return {"plain": observer.report(*given), f"corrected, gain {gain:g}": observer.report(*given, gain)}


def report_line(name: str, report: observer.Report) -> list[str]:
    """Returns a report as a line under `HEADER`."""
    return [name, " ".join(f"{x:.3f}" for x in report.r2), f"{report.kl_logits:.4f}", f"{report.kl_state:.4f}"]


def plain(report: observer.Report) -> ObserverQuality:
    """Returns a report for JSON."""
    return {"r2": np.asarray(report.r2).tolist(), "kl_logits": report.kl_logits, "kl_state": report.kl_state}


def speculation(pairing: Pairing, prompts: Sequence[str], settings: SpeculationConfig, seed: int) -> list[Speculated]:
    """Continues prompts by the large model with and without a draft, greedily and sampled."""
    tokenizer, key = pairing.large.tokenizer, jax.random.key(seed)
    encoded = [tokenizer.encode(prompt) or [tokenizer.eos_id] for prompt in prompts]

    def run(sampling: SamplingParams, draft: Draft | None) -> tuple[GenerateResult, float]:
        begin = time.perf_counter()
        model, params = pairing.large.for_rows(len(encoded))
        found = generate(model, params, encoded, None, key, sampling, eos_id=tokenizer.eos_id, draft=draft)
        jax.block_until_ready(found.logits)
        return found, time.perf_counter() - begin

    lines: list[Speculated] = []
    for count, greedy in itertools.product(settings.tokens, (True, False)):
        temperature = 0.0 if greedy else settings.temperature
        sampling = SamplingParams(temperature=temperature, max_new_tokens=settings.max_new_tokens)
        draft = Draft(*pairing.small.for_rows(len(encoded)), count)
        (wanted, _), (found, _) = run(sampling, None), run(sampling, draft)
        assert found.drafted is not None
        ratios = [run(sampling, draft)[1] / run(sampling, None)[1] for _ in range(3)]
        passes, accepted = sum(found.drafted.passes), sum(found.drafted.accepted)
        chosen = sum(map(len, found.tokens)) + sum(found.finished)
        equal = sum(a == b for a, b in zip(found.tokens, wanted.tokens, strict=True))
        lines.append({
            "tokens": count, "choice": "greedy" if greedy else f"temperature {temperature:g}",
            "tokens_a_pass": round(chosen / passes, 3), "kept": round(accepted / (count * passes), 3),
            "same": f"{equal} of {len(encoded)}", "seconds_ratio": round(statistics.median(ratios), 2),
        })  # fmt: skip
    return lines


def warm_start(pairing: Pairing, job: Job, data: DataConfig, settings: WarmConfig, seed: int) -> WarmCurves:
    """Tunes the small model's state, carries the best one up, and tunes the large model from there and from zero.

    Every start is tuned with every rate, on the same batches.
    """
    examples = encode_pairs(pairing.large.tokenizer, job.train, data)
    judged = encode_pairs(pairing.large.tokenizer, job.held_out[: settings.records], data)
    small, large = (
        _Tuner(lm, examples, judged, data.batch_size, settings, seed) for lm in (pairing.small, pairing.large)
    )
    own = {rate: small.tune(zero_state(small.lm.config, None), rate) for rate in settings.rates}
    losses = {rate: curve[-1] for rate, (curve, _) in own.items()}
    best = own[min(losses, key=losses.__getitem__)][1]
    zero = zero_state(large.lm.config, None)
    carried = state_map.transfer(pairing.start.up, best, large.lm.config)
    return {
        "steps": [*range(0, settings.steps, settings.every), settings.steps],
        "zero": large.curves(zero),
        "carried": large.curves(carried),
        "small": {f"{rate:g}": loss for rate, loss in losses.items()},
    }


class _Tuner:
    """The tuning of one model's S_0 on one task."""

    def __init__(
        self,
        lm: LanguageModel,
        examples: list[Example],
        judged: list[Example],
        batch_size: int,
        settings: WarmConfig,
        seed: int,
    ):
        self.lm, self.examples, self.judged, self.settings, self.seed = lm, examples, judged, settings, seed
        self.batch_size, self.method = batch_size, train.standard(lm.config, CONSTANT)
        self.optimizer = with_adjustable_rate(train.make_optimizer(CONSTANT))
        self.step = train.make_train_step(lm.model, self.optimizer, CONSTANT, self.method)
        self.evaluator = Evaluator(lm, make_scorer(lm.model), 32)

    def loss(self, state: State) -> float:
        """Held-out loss from a state, nats per token."""
        nll, tokens = self.evaluator.losses(state, self.judged)
        return float(nll.sum() / tokens.sum())

    def curves(self, start: State) -> dict[str, list[float]]:
        """Held-out losses of every rate."""
        return {f"{rate:g}": self.tune(start, rate)[0] for rate in self.settings.rates}

    def tune(self, start: State, rate: float) -> tuple[list[float], State]:
        """(held-out losses before the first step, every so many steps and after the last, the tuned state)"""
        count, every = self.settings.steps, self.settings.every
        rates = schedule(TuneConfig(), rate, count)
        tuned = train.init(self.optimizer, self.method.init()._replace(wkv=start.wkv))
        batches = itertools.islice(training_batches(self.examples, self.batch_size, self.seed), count)
        losses = [self.loss(self._state(tuned))]

        def prepare(taken: int, tuned: train.TuneState, batch: Batch) -> train.TuneState:
            return tuned._replace(opt_state=set_rate(tuned.opt_state, rates[taken]))

        step = partial(self.step, self.lm.params)
        for taken in loop.take_steps(step, tuned, batches, non_finite.check_finite, prepare):
            tuned = taken.state
            if taken.index % every == 0 or taken.index == count:
                losses.append(self.loss(self._state(tuned)))
        return losses, self._state(tuned)

    def _state(self, tuned: train.TuneState) -> State:
        assert self.method.full is not None
        return self.method.full(tuned.trainable)


def warm_line(task: str, curves: WarmCurves) -> list[str]:
    """Returns curves as a line under `WARM_HEADER`: steps to the loss that zero start ends with, at each best rate."""
    zero, carried = list(curves["zero"].values()), list(curves["carried"].values())
    target = min(curve[-1] for curve in zero)

    def first(found: list[list[float]]) -> str:
        reached = [step for curve in found for step, loss in zip(curves["steps"], curve, strict=True) if loss <= target]
        return str(min(reached)) if reached else "not reached"

    ends = (zero[0][0], carried[0][0], target)
    last = min(curve[-1] for curve in carried)
    return [task, *(f"{x:.4f}" for x in ends), first(zero), f"{last:.4f}", first(carried)]
