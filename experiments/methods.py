"""What the settings of a method build: the method, its optimiser and the model that they run on."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from experiments.config.methods import BaselineMethod, DBPMethod, MethodConfig, RewardMethod, UpscaleMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig
from experiments.data.batching import encode_pairs
from experiments.data.jobs import Job
from rwkv7_jax import RWKV7, State
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.functional import Params
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning import upscale
from state_tuning.baselines import methods as baselines
from state_tuning.core import train
from state_tuning.core.objective import Batch, collate
from state_tuning.core.train import Correlate, Method, TuneConfig
from state_tuning.dbp import correlations, literal, transform
from state_tuning.upscale import stability

MakeOptimizer = Callable[[TuneConfig], optax.GradientTransformation]
Calibrate = Callable[[int], Batch]
"""Number of tokens -> a batch of training text."""


class Chosen(NamedTuple):
    """What `state_tuning.core.train.make_train_step` takes, and what comes out."""

    model: RWKV7
    method: Method
    optimizer: optax.GradientTransformation
    correlate: Correlate | None
    finish: Callable[[Params, PyTree], tuple[Params, State]]
    """(frozen weights, trained tree) -> (weights, unbatched state) for the plain model; only LoRA changes weights"""
    learns: str | None = None
    """The kind of a method that learns from rewards instead of text."""

    def make_step(self, tune: TuneConfig) -> train.TrainStep:
        """Returns the jitted step on text; that of a method which learns from rewards raises UsageError."""
        if self.learns:
            return partial(_refuse, self.learns)
        return train.make_train_step(self.model, self.optimizer, tune, self.method, self.correlate)


def build(
    config: MethodConfig,
    model: RWKV7,
    params: Params,
    tune: TuneConfig,
    calibration: Calibrate,
    seed: int,
    make_optimizer: MakeOptimizer = train.make_optimizer,
) -> Chosen:
    """Returns the method with its optimiser; upscaling fits its map and prints how stable it is.

    Args:
      config: which method, and its settings.
      model: the model to tune.
      params: its weights.
      tune: how it is tuned.
      calibration: gives training text, to which a map is fitted.
      seed: of random starts.
      make_optimizer: gives the optimiser, which the method may wrap.

    Raises:
      ValueError: in one line, for instance for an unstable map.
    """
    updates = getattr(config, "updates", 1)
    optimizer = make_optimizer(dataclasses.replace(tune, steps=tune.steps * updates, warmup=tune.warmup * updates))
    if isinstance(config, BaselineMethod):
        return _baseline(config, model, params, tune, optimizer, seed)
    method = train.standard(model.config, tune)
    if isinstance(config, UpscaleMethod):
        method = _upscaled(config, model, params, tune, calibration, seed)
    correlate = None
    if isinstance(config, DBPMethod):
        method, optimizer, correlate = _decorrelated(config, model, method, optimizer)
    full = method.full
    assert full is not None
    learns = config.kind if isinstance(config, RewardMethod) else None
    return Chosen(model, method, optimizer, correlate, lambda weights, tree: (weights, full(tree)), learns)


def start_at(chosen: Chosen, state: State, tune: TuneConfig, name: str) -> PyTree:
    """Returns the trainable tree that stands for a state, from which tuning starts.

    Args:
      chosen: the method.
      state: unbatched.
      tune: whose `alpha` scales what is trained.
      name: of the state, for messages.

    Raises:
      UsageError: the method cannot hold this state.
    """
    fresh, full = chosen.method.init(), chosen.method.full
    if full is None:
        raise UsageError("tune.init: this method trains no state; it goes with standard, dbp, upscale and upscale_dbp")
    inner, empty = (fresh.scaled if isinstance(fresh, literal.Rotated) else fresh), full(fresh)
    lifted: Any = empty.wkv
    if hasattr(lifted, "s") and not hasattr(state.wkv, "s"):
        state = state._replace(wkv=lifted._replace(s=state.wkv))
    if jax.tree.structure(state) != jax.tree.structure(empty):
        raise UsageError(f"tune.init: {name} is the state of another method; start from it with that method")
    parts = jax.tree.map(
        lambda mine, leaf: None if mine is None else jnp.asarray(leaf, jnp.float32) / tune.alpha,
        inner,
        state,
        is_leaf=lambda leaf: leaf is None,
    )
    tree = fresh._replace(scaled=parts) if isinstance(fresh, literal.Rotated) else parts
    same = jax.tree.map(lambda x, y: np.shape(x) == np.shape(y) and np.allclose(x, y, 1e-5, 1e-6), full(tree), state)
    if not (same.att_shift and same.ffn_shift):
        raise UsageError(
            f"tune.init: {name} holds token-shift states: add --tune.tune_shifts yes, which tunes them too"
        )
    if not all(jax.tree.leaves(same)):
        raise UsageError(
            f"tune.init: {name} holds what this method does not tune, as the map of an upscaled state that was fitted "
            "to other text or with another seed"
        )
    return tree


def tree_hash(tree: PyTree) -> str:
    """Returns the SHA-256 (hex) of the arrays of a tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def _refuse(kind: str, *_: object) -> NoReturn:
    raise UsageError(f"method.kind {kind}: it learns from rewards, which rwkv7 tune alone does; choose another kind")


def _baseline(
    config: BaselineMethod,
    model: RWKV7,
    params: Params,
    tune: TuneConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> Chosen:
    if config.name == "lora" and jax.process_count() > 1:
        raise UsageError("method.name lora: it merges weights, which needs them in one process: run it in one")
    sizes = baselines.Sizes(config.prefix, baselines.Lora(config.rank))
    made = baselines.build(config.name, model, params, tune, jax.random.key(seed), sizes)
    return Chosen(made.model, made.method, optimizer, None, made.finish)


def _decorrelated(
    config: DBPMethod, model: RWKV7, method: Method, optimizer: optax.GradientTransformation
) -> tuple[Method, optax.GradientTransformation, Correlate]:
    """(method, optimiser around `optimizer`, function that measures correlations)."""
    names = ["every", "decay", "damping"] + (["rate", "kappa"] if config.form != "whitened" else [])
    settings = {name: getattr(config, name) for name in names}
    if config.form == "literal":
        method, make = literal.method(method), literal.decorrelated
    else:
        make = transform.whitened if config.form == "whitened" else transform.decorrelated
    return method, make(optimizer, **settings), correlations.make_correlate(model, method, config.sample)


def calibration_batch(tokenizer: Tokenizer, jobs: Sequence[Job], data: DataConfig, tokens: int) -> Batch:
    """Returns about so many tokens of the jobs' training text in one batch, in equal parts.

    Raises:
      UsageError: there is no job.
    """
    if not jobs:
        raise UsageError("method: a feature map is fitted to training text, and there is none here")
    chosen = []
    for job in jobs:
        left = tokens / len(jobs)
        for example in encode_pairs(tokenizer, job.train[: max(1, int(left))], data):
            chosen.append(example)
            left -= len(example.tokens)
            if left <= 0:
                break
    return collate(chosen, padded_length(max(len(example.tokens) for example in chosen) - 1))


def _upscaled(
    config: UpscaleMethod, model: RWKV7, params: Params, tune: TuneConfig, calibration: Calibrate, seed: int
) -> Method:
    names = [field.name for field in dataclasses.fields(upscale.Upscale)]
    settings = upscale.Upscale(**{name: getattr(config, name) for name in names})
    fitted = upscale.fit(model, params, calibration(config.tokens), settings, jax.random.key(seed))
    print(stability.summary(fitted.stability), flush=True)
    return upscale.method(fitted, tune, settings)
