"""Standard state tuning: gradient steps on the initial state S_0 [L,H,V,K] of a frozen model.

A *method* says what is trained and how it becomes the initial state of a batch; an optax transform says how it moves.
Everything else is one jitted step. Weights are its argument: never closed over, donated or differentiated.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from rwkv7_jax import functional
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.model import RWKV7
from rwkv7_jax.sharding import gathered, pin, whole
from rwkv7_jax.state import State, zero_state
from state_tuning.core import non_finite, objective, surgery
from state_tuning.core.accumulate import accumulated
from state_tuning.core.config import TuneConfig
from state_tuning.core.objective import Batch
from state_tuning.core.segments import scan_segments

__all__ = [
    "Method",
    "TuneConfig",
    "TuneState",
    "guarded_update",
    "init",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "standard",
]


class Method(NamedTuple):
    """What is trained. Other methods of the paper are other values of this type."""

    init: Callable[[], PyTree]
    """() -> trainable pytree, float32, every leaf with the layer axis first."""
    graft: Callable[[PyTree, int], State]
    """(trainable, batch size) -> the initial state of a batch, differentiable in the trainable tree."""
    full: Callable[[PyTree], State] | None = None
    """trainable -> the unbatched float32 state that it stands for, for files and generation; None if there is none."""


class TuneState(NamedTuple):
    """Everything that changes while tuning; small, and donated to each step."""

    trainable: PyTree
    """The method's tree at this point."""
    opt_state: optax.OptState
    """The state of the optax transform."""
    step: Int[Array, ""]
    """Steps taken, skipped ones included."""
    skipped: Int[Array, ""]
    """Updates not applied because something was not finite (`total_notfinite` in optax)."""
    consecutive: Int[Array, ""]
    """Of these, how many in a row up to now (`notfinite_count` in optax)."""


Metrics = dict[str, Array]
Correlate = Callable[[Params, PyTree, Batch], PyTree]
"""(params, trainable, batch) -> C = E[x x^T] for every matrix of the trainable tree, see `dbp.make_correlate`."""
TrainStep = Callable[[Params, TuneState, Batch], tuple[TuneState, Metrics]]
EvalStep = Callable[[Params, PyTree, Batch], tuple[Array, Array]]


def standard(config: RWKV7Config | RWKV7 | LanguageModel, tune: TuneConfig | None = None) -> Method:
    """Returns standard state tuning: S_0 [L, H, V, K], zero at start, the same for every sequence.

    Args:
      config: the model's dimensions, or the model.
      tune: `alpha` scales S_0; with `tune_shifts` both token-shift states [L, D] are trained too. None: the defaults.

    Returns:
      The method.

    Example:
      >>> from rwkv7_jax import RWKV7Config
      >>> method = standard(RWKV7Config(vocab_size=16, n_layer=2, n_embd=8, head_size=4))
      >>> method.init().wkv.shape, method.graft(method.init(), 3).wkv.shape
      ((2, 2, 4, 4), (2, 3, 2, 4, 4))
    """
    config, tune = config if isinstance(config, RWKV7Config) else config.config, tune or TuneConfig()
    where = State._fields if tune.tune_shifts else ("wkv",)

    def init() -> State:
        trainable, _ = surgery.split(zero_state(config, None), where)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trainable)

    def graft(trainable: State, batch_size: int) -> State:
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, jax.eval_shape(lambda: zero_state(config, None)))
        state = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), full_state(config, trainable, tune), dtypes)
        return surgery.broadcast(state, batch_size)

    return Method(init, graft, lambda trainable: full_state(config, trainable, tune))


def init_trainable(config: RWKV7Config, tune: TuneConfig) -> State:
    """Returns the standard method's start: an unbatched float32 zero state, with holes where nothing is trained."""
    return standard(config, tune).init()


def full_state(config: RWKV7Config, trainable: State, tune: TuneConfig) -> State:
    """Returns what a tuned tree stands for: the unbatched float32 state alpha * S_0, holes filled with zeros."""
    zero = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), zero_state(config, None))
    return surgery.graft(surgery.scale(trainable, tune.alpha), zero)


def make_schedule(tune: TuneConfig, peak: Float[Array, ""] | None = None) -> Callable[[ArrayLike], Float[Array, ""]]:
    """Returns the learning rate as a function of the number of updates applied: linear warm-up, then decay.

    Args:
      tune: the schedule and its settings.
      peak: the largest rate, where a compiled step is to serve several; None: `tune.learning_rate`.

    Returns:
      A function count -> rate, a float32 scalar, as optax schedules are.

    Example:
      >>> rate = make_schedule(TuneConfig(learning_rate=1.0, warmup=2, steps=10, schedule="linear"))
      >>> [round(float(rate(count)), 4) for count in (0, 1, 2, 10)]
      [0.5, 1.0, 1.0, 0.1]
    """
    largest = tune.learning_rate if peak is None else peak

    def rate(count: ArrayLike) -> Float[Array, ""]:
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1.0) / max(tune.warmup, 1))
        progress = jnp.clip((count - tune.warmup) / max(tune.steps - tune.warmup, 1), 0.0, 1.0)
        left = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 + 0.5 * jnp.cos(jnp.pi * progress)}
        decay = tune.final_fraction + (1.0 - tune.final_fraction) * left[tune.schedule]
        return jnp.asarray(largest * warm * decay, jnp.float32)

    return rate


def make_optimizer(tune: TuneConfig) -> optax.GradientTransformation:
    """Returns clipping by global norm, then Adam with the schedule of `tune`.

    Args:
      tune: `clip_norm`, the schedule, and Adam's constants.

    Returns:
      The optax transform, for `make_train_step` and `init`.
    """
    clip = optax.clip_by_global_norm(tune.clip_norm) if tune.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(make_schedule(tune), tune.b1, tune.b2, tune.eps))


def init(optimizer: optax.GradientTransformation, trainable: PyTree) -> TuneState:
    """Returns the state before the first step.

    Args:
      optimizer: the optax transform that the step is made with.
      trainable: the method's tree at the start, as `Method.init()` gives it; it is copied, so it outlives the donation.

    Returns:
      The state, with all counters zero; on the devices of the mesh that is set, if any.
    """
    trainable = jax.tree.map(jnp.array, trainable)
    with _optax_promotion():
        opt_state = optimizer.init(trainable)
    fresh = TuneState(trainable, opt_state, _zero(), _zero(), _zero())
    return fresh if jax.sharding.get_abstract_mesh().empty else jax.jit(pin)(fresh)


def guarded_update(
    optimizer: optax.GradientTransformation, tuned: TuneState, loss: Float[Array, ""], grads: PyTree, **extra: PyTree
) -> tuple[TuneState, Metrics]:
    """Makes one step of `optimizer`; a non-finite loss, gradient or result leaves trainable and optimiser as they were.

    Args:
      optimizer: any optax transform.
      tuned: the state before the step.
      loss: its value.
      grads: gradients, a tree like `tuned.trainable`.
      **extra: further arguments of the optimiser.

    Returns:
      (the state after the step, metrics: loss, grad_norm and update_norm (before and after optax), applied, skipped,
      consecutive).

    Example:
      >>> optimizer = optax.sgd(0.5)
      >>> tuned = init(optimizer, {"s": jnp.array([1.0])})
      >>> tuned, metrics = guarded_update(optimizer, tuned, jnp.float32(1.0), {"s": jnp.array([2.0])})
      >>> tuned.trainable["s"].tolist(), bool(metrics["applied"])
      ([0.0], True)
      >>> tuned, metrics = guarded_update(optimizer, tuned, jnp.float32(1.0), {"s": jnp.array([jnp.nan])})
      >>> tuned.trainable["s"].tolist(), bool(metrics["applied"]), int(metrics["skipped"])
      ([0.0], False, 1)
    """
    with _optax_promotion():
        updates, opt_state = optimizer.update(grads, tuned.opt_state, tuned.trainable, **extra)
        candidate = optax.apply_updates(tuned.trainable, updates)
    before = (tuned.trainable, tuned.opt_state)
    (trainable, opt_state), ok = non_finite.keep_if_finite((candidate, opt_state), before, loss, grads)
    total_notfinite = tuned.skipped + (~ok).astype(jnp.int32)
    notfinite_count = jnp.where(ok, 0, tuned.consecutive + 1)
    metrics = {
        "loss": loss,
        "grad_norm": jnp.sqrt(_squares(grads)),
        "update_norm": jnp.sqrt(_squares(updates)),
        "applied": ok,
        "skipped": total_notfinite,
        "consecutive": notfinite_count,
    }
    return TuneState(trainable, opt_state, tuned.step + 1, total_notfinite, notfinite_count), metrics


def make_train_step(
    model: RWKV7,
    optimizer: optax.GradientTransformation,
    tune: TuneConfig,
    method: Method | None = None,
    correlate: Correlate | None = None,
) -> TrainStep:
    """Returns a jitted `step(params, tune_state, batch) -> (tune_state, metrics)`; `tune_state` is donated.

    The loss is the mean NLL over the masked tokens of the whole batch, however many micro-batches it is cut into, plus
    `tune.l2` times the sum of squares of the trainable tree. An update with a non-finite loss, gradient or result
    leaves trainable and optimiser as they were. Weights are an argument: never closed over, donated or differentiated.

    Args:
      model: the model's description.
      optimizer: how the trainable tree moves, as `make_optimizer(tune)`.
      tune: the other settings.
      method: what is trained; None: `standard(model, tune)`.
      correlate: (params, trainable, batch) -> C, see `dbp.make_correlate`; the optimiser gets it as the extra argument
        `correlations`, a function that it calls when it learns.

    Returns:
      The step. Its metrics: loss (nats per token), penalty, tokens, grad_norm and update_norm (before and after optax),
      applied, skipped, consecutive, state_finite [L, 3] and grad_finite [L] (see `non_finite.check_finite`).

    Raises:
      ValueError: while tracing, if the sequences cannot be cut into `tune.accumulate` equal parts.
    """
    method = method or standard(model, tune)
    sums = _make_sums(model, tune, method, frozen_head=True)

    def total(params: Params, trainable: PyTree, batch: Batch) -> tuple[Array, tuple[Array, Array]]:
        nll, count, bad = sums(params, trainable, batch)
        return nll.sum(), (count.sum(), bad)

    def step(params: Params, tuned: TuneState, batch: Batch) -> tuple[TuneState, Metrics]:
        trainable = tuned.trainable
        (nll, (count, bad)), grad_sum = accumulated(partial(total, params), trainable, batch, tune.accumulate)
        penalty, penalty_grad = jax.value_and_grad(lambda tree: tune.l2 * _squares(tree))(trainable)
        grads = jax.tree.map(lambda g, p: objective.mean(g, count) + p, grad_sum, penalty_grad)
        extra = {"correlations": partial(correlate, params, trainable, batch)} if correlate else {}
        tuned, metrics = guarded_update(optimizer, tuned, objective.mean(nll, count), grads, **extra)
        metrics |= {
            "penalty": penalty,
            "tokens": count,
            "state_finite": bad == 0,
            "grad_finite": non_finite.layer_flags(grads),
        }
        return pin(tuned), whole(metrics)

    return jax.jit(step, donate_argnums=1)


def make_eval_step(model: RWKV7, tune: TuneConfig, method: Method | None = None, *, per_row: bool = False) -> EvalStep:
    """Returns a jitted `eval_step(params, trainable, batch) -> (summed NLL in nats, masked tokens)`.

    Args:
      model: the model's description.
      tune: settings.
      method: what was trained; None: `standard(model, tune)`.
      per_row: [B] values of each sequence, for intervals over items, instead of scalars to be added up over batches.

    Returns:
      The evaluation step.
    """
    sums = _make_sums(model, tune, method or standard(model, tune), frozen_head=False)

    def evaluate(params: Params, trainable: PyTree, batch: Batch) -> tuple[Array, Array]:
        rows, count, _ = sums(params, trainable, batch)
        return (rows, count) if per_row else (rows.sum(), count.sum())

    return jax.jit(evaluate)


def _make_sums(
    model: RWKV7, tune: TuneConfig, method: Method, frozen_head: bool
) -> Callable[[Params, PyTree, Batch], tuple[Array, Array, Array]]:
    """(params, trainable, batch) -> (NLL sum [B], token count [B], bad [L,3]); the model enters only here.

    `bad` counts non-finite parts of the final state: an integer, so that it adds up over micro-batches too.
    `frozen_head` is for differentiating (see `objective.chunked_sums`); without a gradient it would be wasted work.
    """

    def sums(params: Params, trainable: PyTree, batch: Batch) -> tuple[Array, Array, Array]:
        with jax.named_scope("graft"):
            data = jax.tree.map(jnp.asarray, batch)
            state = method.graft(trainable, data["tokens"].shape[0])

        head = params | gathered({"head": params["head"]})

        def piece(state: PyTree, data: dict[str, Array]) -> tuple[State, tuple[Array, Array]]:
            hidden, last = functional.hidden(model, params, data["tokens"], state, valid=data["valid"])
            with jax.named_scope("loss"):
                scored = objective.chunked_sums(
                    hidden,
                    lambda x: functional.logits(model, head, x),
                    data["targets"],
                    data["loss_mask"],
                    chunk=tune.loss_chunk,
                    frozen_head=frozen_head,
                )
            return last, scored

        if 0 < tune.segment < data["tokens"].shape[1]:
            last, (nll, count) = scan_segments(piece, state, data, tune.segment, tune.exact_segments)
        else:
            last, (nll, count) = piece(state, data)
        return nll, count, (~non_finite.state_flags(jax.lax.stop_gradient(last))).astype(jnp.int32)

    return sums


def _zero() -> Int[Array, ""]:
    """A counter with its own buffer, as donation needs."""
    return jnp.array(0, jnp.int32)


def _squares(tree: PyTree) -> Float[Array, ""]:
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), jnp.zeros((), jnp.float32))


def _optax_promotion() -> AbstractContextManager[None]:
    """Standard dtype promotion for a call into optax, whose bias corrections mix int32 counts with float32."""
    return jax.numpy_dtype_promotion("standard")
