"""Training an observer: the weights of a small model and the maps of its states, as `rwkv7 observe` does.

An interrupted run resumes with the same command and gives the same weights. It runs on one device.
"""

from collections.abc import Generator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from experiments import build
from experiments.config.observe import LearningConfig, MapsConfig, Observe, SmallConfig
from experiments.config.overrides import UsageError
from experiments.config.pretraining import OptimizationConfig
from experiments.config.schema import DataConfig, EvaluateConfig, ModelConfig, digest, resolved
from experiments.data import batching
from experiments.data.jobs import Job, load_jobs
from experiments.data.jsonl import Pair
from experiments.pocket.text import documents as pocket_documents
from experiments.reporting.json_text import json_text
from experiments.training import loop
from experiments.training.metrics_log import MetricsLog, Row
from experiments.training.preemption import Interrupt
from experiments.training.pretraining import make_optimizer
from rwkv7_jax import RWKV7, RWKV7Config, checkpoint, flops
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.checkpoint.files import atomic, write_text
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.model import init_params
from rwkv7_jax.sharding import host
from state_tuning import observer
from state_tuning.core import train
from state_tuning.core.objective import Batch, Example, collate
from state_tuning.observer import Observer, ObserverConfig, state_map

BATCH = 16
"""Texts at once where the maps are fitted."""
WEIGHTS_FILE, OBSERVER_FILE = "model.safetensors", "observer.safetensors"
DOCUMENTS_SEED = 10**15
"""Beyond the seeds of all documents that the embedded models were trained on."""
KEPT = ("model", "small", "data", "text", "maps", "tune", "seed")
"""Settings that a trained observer depends on."""


class Texts(NamedTuple):
    """What is read."""

    examples: list[Example]
    held_out: list[Pair]
    fingerprint: str


class Pairing(NamedTuple):
    """The two models, and the maps that learning starts from."""

    small: LanguageModel
    large: LanguageModel
    start: Observer


class Learnt(NamedTuple):
    """A trained observer."""

    small: LanguageModel
    observer: Observer


def load_texts(lm: LanguageModel, data: DataConfig, records: int, seed: int, documents: int = 0) -> Texts:
    """Reads the training text, and the first held-out records of every job.

    Args:
      lm: whose tokenizer reads.
      data: where records are.
      records: held-out ones of each job, at most.
      seed: of splits and documents.
      documents: of the pocket world's text, beside the records.

    Raises:
      UsageError: whatever is wrong with the files, in one line; nothing to read.
    """
    if not data.tasks and not data.train:
        raise UsageError("nothing to observe on: give --data.train my.jsonl, or --data.tasks pocket:mmlu,pocket:gsm8k")
    jobs = load_jobs(data, EvaluateConfig(max_records=records), seed)
    pairs = [pair for job in jobs for pair in job.train]
    pairs += [Pair("", document) for document in islice(pocket_documents(DOCUMENTS_SEED + seed), documents)]
    fingerprint = digest([job.fingerprint for job in jobs])
    return Texts(batching.encode_pairs(lm.tokenizer, pairs, data), held_out(jobs), fingerprint)


def held_out(jobs: Sequence[Job]) -> list[Pair]:
    """Returns the held-out records of all jobs."""
    return [pair for job in jobs for pair in job.held_out]


def one_batch(lm: LanguageModel, pairs: Sequence[Pair], data: DataConfig) -> Batch:
    """Returns records as one batch."""
    examples = batching.encode_pairs(lm.tokenizer, pairs, data)
    return collate(examples, padded_length(max(len(example.tokens) for example in examples) - 1))


def small_model(config: SmallConfig, large: LanguageModel, model: ModelConfig, seed: int) -> LanguageModel:
    """Returns the observer's model before training, with the large model's tokenizer and float32 weights.

    Raises:
      UsageError, ValueError: no such file, another vocabulary, or dimensions that do not fit each other.
    """
    vocabulary = large.config.vocab_size
    if config.checkpoint is not None:
        path = build.checkpoint_path(config.checkpoint, "small.checkpoint")
        settings = {"tokenizer": model.tokenizer, "dtype": "float32", "wkv": model.wkv, "quantise": "none"}
        small = LanguageModel.load(path, **settings)
        if small.config.vocab_size != vocabulary:
            sizes = f"{small.config.vocab_size} tokens, the observed model {vocabulary}"
            raise UsageError(f"small.checkpoint: it has {sizes}; give a model of the same tokenizer")
        return small.replace(params=jax.tree.map(lambda leaf: leaf.astype(np.float32), small.params))
    rank, sizes = config.lora, (config.n_layer, config.n_embd, config.head_size, config.dim_ffn)
    dimensions = RWKV7Config(vocabulary, *sizes, rank, rank, rank, config.gate_lora, wkv_implementation=model.wkv)
    own = RWKV7(dimensions)
    params = jax.jit(init_params, static_argnums=0)(own, jax.random.key(seed))
    return LanguageModel(own, params, large.tokenizer, tokenizer_name=large.tokenizer_name)


def first_maps(
    small: LanguageModel,
    large: LanguageModel,
    examples: Sequence[Example],
    maps: MapsConfig,
    every: int,
    key: Key[Array, ""],
) -> Observer:
    """Fits maps between layers of the same depth, and widens them to all layers if they are to read them."""
    long = [example for example in examples if len(example.tokens) > every]
    if not long:
        raise UsageError(f"no text has more than {every} tokens; give longer text or a smaller --tune.every")
    fitted, widening = jax.random.split(key)
    order = np.asarray(jax.random.permutation(fitted, len(long)))
    chosen = [long[i] for i in order[: max(BATCH, maps.samples // 2 // BATCH * BATCH)]]
    length = padded_length(max(len(example.tokens) for example in chosen) - 1)
    batches = [collate(chosen[i : i + BATCH], length, BATCH) for i in range(0, len(chosen), BATCH)]
    config = ObserverConfig(
        every, iterations=maps.iterations, samples=maps.samples, bias=maps.bias, saturating=maps.saturating
    )
    found = observer.fit(small, large, batches, config, fitted)
    if maps.reads == "paired":
        return found
    times = 2 if maps.saturating else 1
    keys = jax.random.split(widening)
    return Observer(*(
        state_map.widened(one, lm.config.n_layer, times * lm.config.n_head, key)
        for one, lm, key in zip(found, (small, large), keys, strict=True)
    ))  # fmt: skip


def optimisation(config: LearningConfig) -> tuple[OptimizationConfig, OptimizationConfig]:
    """Returns the settings of the optimisers of the weights and of the maps."""
    shared = {"steps": config.steps, "final_rate": config.final_rate, "warmup": config.warmup}
    weights = OptimizationConfig(
        **shared, optimizer=config.optimizer, muon_rate=config.muon_rate, learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    return weights, OptimizationConfig(**shared, optimizer="adam", learning_rate=config.map_rate, weight_decay=0.0)


def learning_config(config: LearningConfig) -> observer.LearnConfig:
    """Returns the settings as state_tuning takes them."""
    return observer.LearnConfig(config.every, config.gain, config.state, config.kl)


def learn(config: Observe, pairing: Pairing, texts: Texts, interrupt: Interrupt) -> Generator[Row, None, Learnt]:
    """Trains to the end, yielding each logged row; writes config.json, metrics.jsonl and checkpoints.

    Args:
      config: all settings.
      pairing: the models, and the maps to start from.
      texts: what is read.
      interrupt: what tells that a signal came.

    Returns:
      The trained observer.
    """
    small, large, start = pairing
    settings = learning_config(config.tune)
    optimizer = observer.by_part(*map(make_optimizer, optimisation(config.tune)))
    step = observer.make_learn_step(small.model, large.model, start, optimizer, settings)
    judged = one_batch(large, texts.held_out, config.data)

    def validate(tuned: train.TuneState) -> dict[str, float]:
        tree = tuned.trainable
        now, maps = small.replace(params=tree["small"]), observer.learnt(tree, start)
        return measured(observer.report(maps, now, large, judged, settings.every, settings.gain))

    size = config.data.batch_size
    places = batching.step_places(texts.examples, size, config.tune.steps)
    few = batching.few_lengths(places, flops.training(small.config) + flops.training(large.config) / 3)
    lengths = tuple(length for length in few if length > batching.ONE_CHUNK) or few
    identity = digest([resolved_parts(config), large.identity, small.weights_hash, texts.fingerprint])
    task = loop.Task(
        "observe",
        partial(_take, step, large),
        batching.training_batches(texts.examples, size, config.seed, None, lengths),
        config.tune.steps,
        identity,
        tokens=lambda batch: int(batch["valid"].sum()),
        values=("loss", "state_error", "kl"),
        title="observer",
        evaluate=validate,
        evaluate_every=config.system.validate_every or config.tune.steps,
    )
    folder = config.folder
    place = loop.Place(folder, folder / "checkpoints", MetricsLog(folder / "metrics.jsonl"), interrupt)
    fresh = train.init(optimizer, observer.learnable(small.params, start, settings))
    rows = loop.train(task, fresh, config.system, place)
    write_text(folder / "config.json", json_text(resolved(config), indent=1) + "\n")
    tuned = yield from rows
    tree = host(tuned.trainable)
    return Learnt(small.replace(params=tree["small"]), observer.learnt(tree, start))


def resolved_parts(config: Observe) -> dict[str, object]:
    """Returns the settings that a trained observer depends on."""
    return {name: value for name, value in resolved(config).items() if name in KEPT}


def measured(report: observer.Report) -> dict[str, float]:
    """Returns a report as numbers of a row: the least and the mean R^2 over layers, and both KLs."""
    least, average = float(report.r2.min()), float(report.r2.mean())
    return {"r2_least": least, "r2_mean": average, "kl_logits": report.kl_logits, "kl_state": report.kl_state}


def save(config: Observe, pairing: Pairing, found: Learnt, texts: Texts) -> tuple[LanguageModel, Observer]:
    """Writes the small model and the observer, the maps `down` fitted anew unless they were trained.

    Returns:
      The small model as its file gives it, and the observer.
    """
    folder, observed = config.folder, found.observer
    checkpoint.save(folder / WEIGHTS_FILE, found.small.params)
    name = Path(pairing.large.tokenizer_name).expanduser()
    if name.is_file():
        with atomic(folder / "tokenizer.json") as file:
            file.write(name.read_bytes())
    small = LanguageModel.load(folder / WEIGHTS_FILE, tokenizer=pairing.large.tokenizer_name, dtype="float32")
    if not config.tune.gain:
        key = jax.random.key(config.seed + 1)
        again = first_maps(small, pairing.large, texts.examples, config.maps, config.tune.every, key)
        observed = observed._replace(down=again.down)
    details = {"config": resolved_parts(config), "small": WEIGHTS_FILE, "large": str(pairing.large.path)}
    hashes = (small.weights_hash, pairing.large.weights_hash)
    observer.save_observer(folder / OBSERVER_FILE, observed, *hashes, every=config.tune.every, details=details)
    return small, observed


def _take(
    step: observer.learn.LearnStep, large: LanguageModel, tuned: train.TuneState, batch: Batch
) -> tuple[train.TuneState, train.Metrics]:
    return step(large.params, tuned, batch)


def load_pairing(config: ModelConfig, folder: Path, small: str | None) -> tuple[Pairing, int]:
    """Reads what `save` wrote, and the observed model.

    Args:
      config: the observed model.
      folder: where the observer is.
      small: the small model's checkpoint; None: that in the folder.

    Returns:
      (both models with the observer, tokens between two comparisons).

    Raises:
      UsageError, ValueError, FileNotFoundError: in one line.
    """
    large = build.load_model(config)
    path = folder / WEIGHTS_FILE if small is None else build.checkpoint_path(small, "small")
    own = LanguageModel.load(path, tokenizer=large.tokenizer_name, dtype="float32", wkv=config.wkv)
    stored = observer.load_observer(observer_path(folder), small=own, large=large)
    return Pairing(own, large, stored.observer), stored.every


def observer_path(name: Path) -> Path:
    """Returns the observer's file: the path itself, or that in a folder."""
    path = name.expanduser()
    return path / OBSERVER_FILE if path.is_dir() else path
