"""A larger model's distributions, or preferences between completions, compiled into a state."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.build import load_model
from experiments.commands.work.distill import command
from experiments.commands.work.scale import teacher_of
from experiments.config.distill import Distill, DistillTuneConfig
from experiments.config.overrides import UsageError
from experiments.config.schema import resolved
from experiments.data.jsonl import hold_out, read_lines, read_pairs
from experiments.training import loop
from experiments.training.metrics_log import progress_bar
from rwkv7_jax import State
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.checkpoint import load_state
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.locks import lock
from state_tuning.core import non_finite, objective, train
from state_tuning.core.objective import Batch, Example
from state_tuning.objectives import distillation, preference
from state_tuning.objectives.divergences import Listed, Target
from state_tuning.observer import distill
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher, TokenTeacher

HELD_OUT = 0.2
"""Share of the records that are measured on."""
Row = dict[str, float]
"""What is printed of a state, by name."""


class Compiled(NamedTuple):
    """A tuned state, and what it is on held-out records before and after."""

    state: State
    before: Row
    after: Row
    records: int


def run(config: Distill) -> int:
    """Compiles, writes the state file and prints what was gained.

    Raises:
      ValueError, OSError: in one line.
    """
    use_compilation_cache(config.system.compilation_cache)
    lm = load_model(config.model)
    with lock(Path(config.output), "wait until it ends, or choose another --output"):
        found = from_preferences(config, lm) if config.preferences else from_teacher(config, lm)
        settings = resolved(config, without=("output", "system"))
        metrics = {"records": found.records, "before": found.before, "after": found.after}
        name = "preferences" if config.preferences else "distill"
        lm.tuned_state(found.state, name, config=settings, metrics=metrics).save(config.output)
    print(f"{found.records:,} records; on those held out, before and after:")
    for name, value in found.before.items():
        print(f"  {name:<42} {value:.4f} {found.after[name]:.4f}")
    print(f"use it: {command(lm, config.output)}")
    return 0


def from_teacher(config: Distill, lm: LanguageModel) -> Compiled:
    """Fits S_0 to the larger model's distributions on texts.

    Raises:
      UsageError: it has another tokenizer, or the texts are too few.
    """
    records = [pair._asdict() for pair in read_pairs(str(config.data.train))][: config.texts]
    parts = hold_out(records, HELD_OUT, config.seed)
    teacher, _ = teacher_of(config.teacher)
    if not isinstance(teacher, TokenTeacher) or not teacher.reads(lm):
        raise UsageError("teacher.checkpoint: it reads other tokens than the model, so its distributions do not fit")
    pairs = [[(str(one["prompt"]), str(one["completion"])) for one in part] for part in parts]
    encoded = [[objective.encode_example(lm.tokenizer, *pair, config.length) for pair in part] for part in pairs]
    length = padded_length(max(len(one.tokens) for part in encoded for one in part) - 1)
    fit_on, held_out = (_taught(lm, teacher, part, rows, length) for part, rows in zip(pairs, encoded, strict=True))
    settings = config.tune
    kind = {"kind": settings.divergence, "mixture": settings.mixture}
    tune = tune_settings(settings)
    method, optimizer = method_of(config, lm, tune), train.make_optimizer(tune)
    step = distillation.make_distillation_step(lm.model, optimizer, tune, method, hard=settings.hard, **kind)
    measure = distillation.make_measure(lm.model, method, tune, **kind)

    def measured(trainable: State) -> Row:
        sums = np.sum([measure(lm.params, trainable, *one) for one in held_out(range(len(encoded[1])), 16)], axis=0)
        if not sums[2]:
            raise UsageError("teacher.checkpoint: it cuts every held-out text in another way than the model does")
        return {"divergence, nats per token": float(sums[0] / sums[2]), "nll, nats per token": float(sums[1] / sums[3])}

    chosen = _order(len(encoded[0]), config.batch_size, settings.steps, config.seed)
    batches = (one for rows in chosen for one in fit_on(rows, len(rows)))
    start = train.init(optimizer, method.init())
    return _fitted(lambda tuned, one: step(lm.params, tuned, *one), method, start, batches, settings, measured, records)


def from_preferences(config: Distill, lm: LanguageModel) -> Compiled:
    """Moves S_0 by direct preference optimisation.

    Raises:
      UsageError: a line is no pair, or there are too few.
    """
    records = [_preference(line.record, line.where) for line in read_lines(str(config.preferences))][: config.texts]
    parts = hold_out([pair._asdict() for pair in records], HELD_OUT, config.seed)
    encoded = [
        preference.encode_pairs(lm.tokenizer, [preference.Pair(**one) for one in part], config.length) for part in parts
    ]
    length = padded_length(max(len(row.tokens) for part in encoded for pair in part for row in pair) - 1)
    settings, tune = config.tune, tune_settings(config.tune)
    method, optimizer = method_of(config, lm, tune), train.make_optimizer(tune)
    evaluate = train.make_eval_step(lm.model, tune, method, per_row=True)
    size = min(config.batch_size, len(encoded[0]))

    def batches_of(part: Sequence[tuple[Example, Example]], chosen: Sequence[int]) -> tuple[Batch, np.ndarray]:
        batch = preference.pair_batch([part[i] for i in chosen], length)
        return batch, np.asarray(evaluate(lm.params, method.init(), batch)[0])

    step = preference.make_preference_step(lm.model, optimizer, tune, method, settings.beta)

    def measured(trainable: State) -> Row:
        losses, margins = list[float](), list[float]()
        for begin in range(0, len(encoded[1]), size):
            rows = [min(begin + i, len(encoded[1]) - 1) for i in range(size)]
            batch, start = batches_of(encoded[1], rows)
            now = np.asarray(evaluate(lm.params, trainable, batch)[0])
            loss, margin = preference.dpo(jnp.asarray(start - now), settings.beta)
            count = min(size, len(encoded[1]) - begin)
            losses += np.asarray(loss)[:count].tolist()
            margins += np.asarray(margin)[:count].tolist()
        preferred = float(np.mean(np.asarray(margins) > 0))
        return {"loss": float(np.mean(losses)), "margin": float(np.mean(margins)), "share preferred": preferred}

    batches = (batches_of(encoded[0], rows) for rows in _order(len(encoded[0]), size, settings.steps, config.seed))
    start = train.init(optimizer, method.init())
    return _fitted(lambda tuned, one: step(lm.params, tuned, *one), method, start, batches, settings, measured, records)


def tune_settings(config: DistillTuneConfig) -> train.TuneConfig:
    """Returns the settings as the step takes them."""
    assert config.learning_rate is not None
    steps = max(1, config.steps)
    return train.TuneConfig(learning_rate=config.learning_rate, steps=steps, warmup=min(10, steps))


def method_of(config: Distill, lm: LanguageModel, tune: train.TuneConfig) -> train.Method:
    """Returns what is trained: S_0, from a state file or from zero."""
    start = lm.zero_state()
    if config.state:
        start = load_state(config.state, config=lm.config, base_model_hash=lm.weights_hash).state
    return distill.method(lm.model, jax.tree.map(lambda leaf: leaf.astype("float32"), start), tune, config.rank)


def _fitted(
    step: Callable[..., tuple[train.TuneState, train.Metrics]],
    method: train.Method,
    tuned: train.TuneState,
    batches: Iterator[tuple],
    settings: DistillTuneConfig,
    measured: Callable[[State], Row],
    records: Sequence[object],
) -> Compiled:
    """Takes the steps, and measures before and after."""
    before = measured(tuned.trainable)
    with progress_bar(settings.steps, "fitting", "step") as bar:
        for taken in loop.take_steps(step, tuned, batches, _check_applied):
            tuned = taken.state
            bar.update()
            bar.set_postfix(loss=f"{float(taken.metrics['loss']):.4f}", refresh=False)
    assert method.full is not None
    return Compiled(method.full(tuned.trainable), before, measured(tuned.trainable), len(records))


def _taught(
    lm: LanguageModel, teacher: TokenTeacher, pairs: Sequence[tuple[str, str]], encoded: Sequence[Example], length: int
) -> Callable[[Sequence[int], int], Iterator[tuple[Batch, Target]]]:
    """(numbers of texts, texts a batch) -> batches with the teacher's distributions; a server is asked once a text."""
    kept: dict[int, Listed] = {}

    def batches(chosen: Sequence[int], size: int) -> Iterator[tuple[Batch, Target]]:
        for begin in range(0, len(chosen), size):
            rows = list(chosen[begin : begin + size])
            batch = objective.collate([encoded[i] for i in rows], length, size)
            if isinstance(teacher, InProcessTeacher):
                model = teacher.lm
                yield batch, distillation.exact_target(model.model, model.params, batch, teacher.state)
                continue
            for i in rows:
                if i not in kept:
                    one = objective.collate([encoded[i]], length)
                    found = teacher.read(lm.tokenizer, [pairs[i][0]], [pairs[i][1]], [encoded[i]], one)
                    assert isinstance(found.target, Listed)
                    kept[i] = found.target
            columns = (np.concatenate([getattr(kept[i], name) for i in rows]) for name in ("ids", "log_q", "known"))
            yield batch, Listed(*(_padded(column, size) for column in columns))

    return batches


def _padded(column: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([column, np.zeros((size - len(column), *column.shape[1:]), column.dtype)])


def _order(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The numbers of each step's records."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield rng.permutation(count)[: min(size, count)].tolist()


def _preference(record: object, where: str) -> preference.Pair:
    """A line as a pair. Raises: UsageError if it is none."""
    parts = [record.get(name) if isinstance(record, dict) else None for name in preference.Pair._fields]
    match parts:
        case [str(prompt), str(chosen), str(rejected)] if chosen != rejected:
            return preference.Pair(prompt, chosen, rejected)
        case [str(), str(), str()]:
            raise UsageError(f"{where}: chosen and rejected are the same text")
    raise UsageError(f'{where}: a preference is {{"prompt", "chosen", "rejected"}}, three strings')


def _check_applied(metrics: non_finite.Metrics, index: int) -> None:
    if not bool(metrics["applied"]):
        lower = "lower tune.learning_rate"
        raise non_finite.NonFiniteError(f"step {index}: the loss or its gradient is not finite; {lower}")
