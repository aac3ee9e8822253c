"""What the settings of a method build: the method, its optimiser and the model that they run on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.config.methods import BaselineMethod, DBPMethod, MethodConfig, UpscaleMethod
from experiments.config.overrides import UsageError

if TYPE_CHECKING:
    import optax

    from experiments.data.jobs import Job
    from rwkv7_jax import RWKV7, State
    from rwkv7_jax.functional import Params
    from rwkv7_jax.tokenizer import Tokenizer
    from state_tuning.core.train import Method, TuneConfig


class Chosen(NamedTuple):
    """What `state_tuning.core.train.make_train_step` takes, and what comes out."""

    model: Any
    method: "Method"
    optimizer: "optax.GradientTransformation"
    correlate: Callable[..., Any] | None
    finish: Callable[[Any, Any], tuple[Any, "State"]]
    """(frozen weights, trained tree) -> (weights, unbatched state) for the plain model; only LoRA changes weights"""


def build(
    config: MethodConfig,
    model: "RWKV7",
    params: "Params",
    tune: "TuneConfig",
    calibration: "Callable[[int], Any]",
    seed: int,
) -> Chosen:
    """The method with its optimiser; upscaling fits its map and prints how stable it is.

    calibration: number of tokens -> a Batch of training text.
    Raises: ValueError in one line, for instance for an unstable map.
    """
    from state_tuning.core import train

    optimizer = train.make_optimizer(tune)
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
    return Chosen(model, method, optimizer, correlate, lambda weights, tree: (weights, full(tree)))


def _baseline(
    config: BaselineMethod,
    model: "RWKV7",
    params: "Params",
    tune: "TuneConfig",
    optimizer: "optax.GradientTransformation",
    seed: int,
) -> Chosen:
    import jax

    from state_tuning.baselines import methods

    if config.name == "lora" and jax.process_count() > 1:
        raise UsageError("method.name lora: it merges weights, which needs them in one process: run it in one")
    sizes = methods.Sizes(config.prefix, methods.Lora(config.rank))
    made = methods.build(config.name, model, params, tune, jax.random.key(seed), sizes)
    return Chosen(made.model, made.method, optimizer, None, made.finish)


def _decorrelated(
    config: DBPMethod, model: "RWKV7", method: "Method", optimizer: "optax.GradientTransformation"
) -> "tuple[Method, optax.GradientTransformation, Callable[..., Any]]":
    """(method, optimiser around `optimizer`, function that measures correlations)."""
    from state_tuning.dbp import correlations as probe
    from state_tuning.dbp import literal, transform

    names = ["every", "decay", "damping"] + (["rate", "kappa"] if config.form != "whitened" else [])
    settings = {name: getattr(config, name) for name in names}
    if config.form == "literal":
        method, make = literal.method(method), literal.decorrelated
    else:
        make = transform.whitened if config.form == "whitened" else transform.decorrelated
    return method, make(optimizer, **settings), probe.correlations(model, method, config.sample)


def calibration_batch(tokenizer: "Tokenizer", jobs: "Sequence[Job]", data: Any, tokens: int) -> Any:
    """About so many tokens of the jobs' training text in one batch, in equal parts.

    Raises: UsageError if there is no job.
    """
    from experiments.data.batching import encode_pairs
    from rwkv7_jax.bucketing import padded_length
    from state_tuning.core.objective import collate

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
    config: UpscaleMethod, model: "RWKV7", params: "Params", tune: "TuneConfig", calibration: Any, seed: int
) -> "Method":
    import jax

    from state_tuning.upscale import method as upscale
    from state_tuning.upscale import stability

    names = [field.name for field in dataclasses.fields(upscale.Upscale)]
    settings = upscale.Upscale(**{name: getattr(config, name) for name in names})
    fitted = upscale.fit(model, params, calibration(config.tokens), settings, jax.random.key(seed))
    print(stability.summary(fitted.stability), flush=True)
    return upscale.method(fitted, tune, settings)
