"""Standard state tuning: gradient steps on the initial state S_0 [L,H,V,K] of a frozen model.

A *method* says what is trained and how it becomes the initial state of a batch; an optax transform says how it moves.
Everything else is one jitted step. Weights are its argument: never closed over, donated or differentiated.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.model import RWKV7
from rwkv7_jax.sharding import gathered, pin, whole
from rwkv7_jax.state import State, zero_state
from state_tuning.core import non_finite, objective, surgery
from state_tuning.core.accumulate import accumulated
from state_tuning.core.objective import Batch
from state_tuning.core.segments import scan_segments


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Hyper-parameters of a tuning run."""

    learning_rate: float = 1e-2
    """Peak step size of Adam, so about the change of each state entry per step."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay after the warm-up, to `final_fraction` of the peak at `steps`."""
    warmup: int = 10
    """Steps of linear warm-up."""
    steps: int = 200
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 turns clipping off."""
    alpha: float = 1.0
    """The initial state is alpha * S_0 (S0 Tuning, arXiv 2604.01168)."""
    l2: float = 0.0
    """Adds l2 * |S_0|^2 to the loss: the sum of squares over all leaves of the trainable tree.

    For literal DBP these are S~ (not the S~ R that is read) and R, whose squares are in `penalty` and `grad_norm` but
    move nothing, as no gradient moves R."""
    tune_shifts: bool = False
    """Train the token-shift states of both mixes too; otherwise they stay zero."""
    accumulate: int = 1
    """Micro-batches per step: memory of B / accumulate rows, the same update."""
    loss_chunk: int = 128
    """Tokens of each row whose logits exist at a time."""
    segment: int = 0
    """Tokens of each row whose activations exist at a time (see `segments`); 0: whole rows."""
    exact_segments: int = 0
    """Segments from the start that the gradient runs through; 0: all of them, the exact gradient."""

    def __post_init__(self):
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} is unknown: choose constant, linear or cosine")
        for name in ("steps", "accumulate", "loss_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("learning_rate", "warmup", "clip_norm", "l2", "segment", "exact_segments"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must not be negative")


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
    opt_state: optax.OptState
    step: Int[Array, ""]
    """Steps taken, skipped ones included."""
    skipped: Int[Array, ""]
    """Updates not applied because something was not finite."""
    consecutive: Int[Array, ""]
    """Of these, how many at a stretch up to now."""


TrainStep = Callable[[PyTree, TuneState, Batch], tuple[TuneState, dict[str, Array]]]
EvalStep = Callable[[PyTree, PyTree, Batch], tuple[Array, Array]]


def standard(config: RWKV7Config, tune: TuneConfig) -> Method:
    """S_0 (and both token-shift states with `tune.tune_shifts`), zero at start, the same for every row."""
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
    """The standard method's start: an unbatched state of float32 zeros, with holes where nothing is trained."""
    return standard(config, tune).init()


def full_state(config: RWKV7Config, trainable: State, tune: TuneConfig) -> State:
    """What a tuned tree stands for: the unbatched float32 state alpha * S_0, holes filled with zeros."""
    zero = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), zero_state(config, None))
    return surgery.graft(surgery.scale(trainable, tune.alpha), zero)


def make_schedule(tune: TuneConfig) -> Callable[[Any], Float[Array, ""]]:
    """Learning rate as a function of the number of updates applied: linear warm-up, then the decay of `tune`."""

    def rate(count) -> Float[Array, ""]:
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1.0) / max(tune.warmup, 1))
        progress = jnp.clip((count - tune.warmup) / max(tune.steps - tune.warmup, 1), 0.0, 1.0)
        left = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 + 0.5 * jnp.cos(jnp.pi * progress)}
        decay = tune.final_fraction + (1.0 - tune.final_fraction) * left[tune.schedule]
        return jnp.asarray(tune.learning_rate * warm * decay, jnp.float32)

    return rate


def make_optimizer(tune: TuneConfig) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, and the schedule of `tune`."""
    clip = optax.clip_by_global_norm(tune.clip_norm) if tune.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(make_schedule(tune), tune.b1, tune.b2, tune.eps))


def init(optimizer: optax.GradientTransformation, trainable: PyTree) -> TuneState:
    """The state before the first step; `trainable` is copied, so it outlives the donation."""
    trainable = jax.tree.map(jnp.array, trainable)
    with _optax_promotion():
        opt_state = optimizer.init(trainable)
    fresh = TuneState(trainable, opt_state, _zero(), _zero(), _zero())
    return fresh if jax.sharding.get_abstract_mesh().empty else jax.jit(pin)(fresh)


def make_train_step(
    model: RWKV7,
    optimizer: optax.GradientTransformation,
    tune: TuneConfig,
    method: Method | None = None,
    correlate: Callable[[PyTree, PyTree, Batch], PyTree] | None = None,
) -> TrainStep:
    """A jitted `step(params, tune_state, batch) -> (tune_state, metrics)`; `tune_state` is donated.

    The loss is the mean NLL over the masked tokens of the whole batch, however many micro-batches it is cut into. An
    update with a non-finite loss, gradient or result leaves trainable and optimiser as they were.
    correlate: (params, trainable, batch) -> C, see `probe.correlations`; the optimiser gets it as the extra argument
    `correlations`, a function that it calls when it wants to learn.
    metrics: loss (nats per token), penalty, tokens, grad_norm and update_norm (before and after optax), applied,
    skipped, consecutive, state_finite [L,3] and grad_finite [L] (see `guard.check_finite`).
    Raises: ValueError, while tracing, if the rows cannot be cut into `tune.accumulate` equal parts.
    """
    method = method or standard(model.config, tune)
    sums = _make_sums(model, tune, method, frozen_head=True)

    def total(params: PyTree, trainable: PyTree, batch: Batch):
        nll, count, bad = sums(params, trainable, batch)
        return nll.sum(), (count.sum(), bad)

    def step(params: PyTree, tuned: TuneState, batch: Batch) -> tuple[TuneState, dict[str, Array]]:
        trainable = tuned.trainable
        (nll, (count, bad)), grad_sum = accumulated(partial(total, params), trainable, batch, tune.accumulate)
        penalty, penalty_grad = jax.value_and_grad(lambda tree: tune.l2 * _squares(tree))(trainable)
        grads = jax.tree.map(lambda g, p: objective.mean(g, count) + p, grad_sum, penalty_grad)
        loss = objective.mean(nll, count)
        with _optax_promotion():
            wanted = {"correlations": partial(correlate, params, trainable, batch)} if correlate else {}
            updates, opt_state = optimizer.update(grads, tuned.opt_state, trainable, **wanted)
            candidate = optax.apply_updates(trainable, updates)
        ok = non_finite.all_finite((loss, grads, candidate, opt_state))
        skipped = tuned.skipped + (~ok).astype(jnp.int32)
        consecutive = jnp.where(ok, 0, tuned.consecutive + 1)
        new = non_finite.select(ok, (candidate, opt_state), (trainable, tuned.opt_state))
        metrics = {
            "loss": loss,
            "penalty": penalty,
            "tokens": count,
            "grad_norm": jnp.sqrt(_squares(grads)),
            "update_norm": jnp.sqrt(_squares(updates)),
            "applied": ok,
            "skipped": skipped,
            "consecutive": consecutive,
            "state_finite": bad == 0,
            "grad_finite": non_finite.layer_flags(grads),
        }
        return pin(TuneState(new[0], new[1], tuned.step + 1, skipped, consecutive)), whole(metrics)

    return jax.jit(step, donate_argnums=1)


def make_eval_step(model: RWKV7, tune: TuneConfig, method: Method | None = None, *, per_row: bool = False) -> EvalStep:
    """A jitted `eval_step(params, trainable, batch) -> (summed NLL in nats, masked tokens)`.

    Scalars to be added up over batches, or [B] each with `per_row`, for intervals over items.
    """
    sums = _make_sums(model, tune, method or standard(model.config, tune), frozen_head=False)

    def evaluate(params: PyTree, trainable: PyTree, batch: Batch) -> tuple[Array, Array]:
        rows, count, _ = sums(params, trainable, batch)
        return (rows, count) if per_row else (rows.sum(), count.sum())

    return jax.jit(evaluate)


def _make_sums(model: RWKV7, tune: TuneConfig, method: Method, frozen_head: bool) -> Callable:
    """(params, trainable, batch) -> (NLL sum [B], token count [B], bad [L,3]); the model enters only here.

    `bad` counts non-finite parts of the final state: an integer, so that it adds up over micro-batches too.
    `frozen_head` is for differentiating (see `objective.chunked_sums`); without a gradient it would be wasted work.
    """
    apply: Callable[..., Any] = model.apply

    def sums(params: PyTree, trainable: PyTree, batch: Batch):
        with jax.named_scope("graft"):
            data = jax.tree.map(jnp.asarray, batch)
            state = method.graft(trainable, data["tokens"].shape[0])

        head = {"params": params | gathered({"head": params["head"]})}

        def piece(state: Any, data: Any):
            variables = {"params": params}
            hidden, last = apply(variables, data["tokens"], state, valid=data["valid"], method="hidden")
            with jax.named_scope("loss"):
                scored = objective.chunked_sums(
                    hidden,
                    lambda x: apply(head, x, method="logits"),
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


def _optax_promotion():
    """Standard dtype promotion for a call into optax, whose bias corrections mix int32 counts with float32."""
    return jax.numpy_dtype_promotion("standard")
