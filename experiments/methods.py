"""Which method tunes the state: the settings of each as one member of a tagged union, and what they build.

`--method.kind upscale` picks a member; its own settings follow as `--method.size 96`. To add a method, write its
settings here, put them into `MethodConfig`, and give `build` their meaning.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.config.overrides import UsageError, option

if TYPE_CHECKING:
    import optax

    from experiments.data.jobs import Job
    from rwkv7_jax import RWKV7, State
    from rwkv7_jax.functional import Params
    from rwkv7_jax.tokenizer import Tokenizer
    from state_tuning.core.train import Method, TuneConfig


@dataclasses.dataclass(frozen=True)
class StandardMethod:
    """S_0 by gradient descent."""

    kind: str = option("standard", "state-tuning method")


@dataclasses.dataclass(frozen=True)
class UpscaleMethod:
    """Kernel upscaling; the fields of state_tuning.upscale.method.Upscale."""

    kind: str = option("upscale", "state-tuning method")
    map: Literal["residual", "recurrent", "literal"] = option("residual", "how the state is lifted")
    size: int = option(0, "lifted key size M, any number above the head size; 0: twice the head size")
    supports: Literal["kmeans", "random"] = option("kmeans", "support vectors: k-means centres or tokens at random")
    bandwidth: float = option(0.35, "width of the Gaussians in units of the median heuristic")
    tokens: int = option(1024, "calibration tokens at most")
    tune_base: bool = option(True, "tune S_0 beside the lifted part")
    allow_unstable: bool = option(False, "go on although the stability criterion is violated")

    def __post_init__(self) -> None:
        if self.size < 0 or self.tokens < 1 or self.bandwidth <= 0:
            raise ValueError("must be positive (size: 0 or more)")


@dataclasses.dataclass(frozen=True)
class DBPMethod:
    """S_0 by decorrelated backpropagation; the arguments of state_tuning.dbp.transform.decorrelated."""

    kind: str = option("dbp", "state-tuning method")
    form: Literal["dbp", "whitened", "literal"] = option(
        "dbp", "learnt R; exact C^(-1/2); or R inside the forward pass"
    )
    rate: float = option(0.1, "step size of R")
    kappa: float = option(0.5, "0 decorrelates, 1 normalises variances, between them R whitens")
    every: int = option(2, "steps between two looks at the correlations")
    sample: float = option(0.1, "part of a batch (whole rows) whose correlations are measured")
    decay: float = option(0.9, "of the running mean of correlations")
    damping: float = option(1e-3, "added to the correlations' mean eigenvalue of 1")

    def __post_init__(self) -> None:
        if not (0 <= self.rate < 1 and 0 <= self.kappa <= 1 and 0 <= self.decay < 1 and 0 < self.sample <= 1):
            raise ValueError("must lie between 0 and 1")
        if self.every < 1 or self.damping < 0:
            raise ValueError("must be at least 1 (damping: 0)")


@dataclasses.dataclass(frozen=True)
class UpscaleDBPMethod(DBPMethod, UpscaleMethod):
    """Both, with the settings of both."""

    kind: str = option("upscale_dbp", "state-tuning method")

    def __post_init__(self) -> None:
        UpscaleMethod.__post_init__(self)
        DBPMethod.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class BaselineMethod:
    """What state tuning is compared with (state_tuning.baselines.methods)."""

    kind: str = option("baseline", "state-tuning method")
    name: Literal["state_offset", "prefix", "lora"] = option(
        "state_offset", "an offset at every read, soft tokens read once, or LoRA (which changes weights)"
    )
    prefix: int = option(32, "soft tokens of `prefix`")
    rank: int = option(8, "rank of `lora`")

    def __post_init__(self) -> None:
        if min(self.prefix, self.rank) < 1:
            raise ValueError("must be at least 1")


MethodConfig = StandardMethod | UpscaleMethod | DBPMethod | UpscaleDBPMethod | BaselineMethod


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
