"""Test-time scaling: each prompt gets its own Delta S_0, found from what a larger model says of the student's samples.

The student's policy is the frozen model from S_0 + u Delta. Samples c_1..c_K are drawn from it, the teacher reads them,
and one gradient step moves Delta:

    minimise  sum_k w_k loss(c_k)  +  kl * mean_t KL(pi_t | pi_t at Delta = 0),    |Delta| <= norm_cap,

with a loss of `signals`: the teacher's distribution at each token, its log-probability of each token, or a reward. Each
sample is used once, right after it was drawn (on-policy if sampled at temperature 1, so no importance ratio). All
prompts of a batch adapt side by side: Delta [L, B, H, V, K] has one for each, and one jitted program moves them all.
Prompts do not mix: gradient, clipping, optimiser and cap are each prompt's own.

u [L, H] is 1, or the root mean square of S_0 in each head, so that rates and caps are parts of the state they change.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from rwkv7_jax import functional, wkv_state
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from state_tuning.core import non_finite, objective, surgery
from state_tuning.core.divergence import kl_sums
from state_tuning.core.objective import Batch, Head
from state_tuning.core.train import Metrics
from state_tuning.objectives import divergences
from state_tuning.objectives.divergences import Kind
from state_tuning.test_time_scaling.signals import Signal, losses

__all__ = ["AdaptConfig", "Adapted", "Program", "Weights", "make_program"]

EPSILON = 1e-6
"""Of Adam, against gradients of norm up to 1: rounding noise in entries without a gradient must not become steps."""


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """Hyper-parameters of the adaptation to one prompt."""

    samples: int = 8
    """K, samples a step."""
    steps: int = 3
    """Gradient steps."""
    signal: Literal["auto", "distillation", "token", "reward"] = "auto"
    """What the teacher says of the student's samples, see `signals`. auto: distillation where the teacher gives its
    distributions over the student's tokens, else reward. Of given choices the reward, or the teacher's distribution
    over the choices."""
    rate: float = 0.03
    """Adam's step size, so about the change of each state entry per step in `units`; 0 leaves the student as it is."""
    norm_cap: float = 1.0
    """Largest Delta of a prompt: the root mean square over its entries in units of the state, else its norm."""
    units: Literal["state", "absolute"] = "state"
    """state: `rate` and `norm_cap` are parts of the root mean square of each head's S_0."""
    floor: float = 0.1
    """Least unit of a head, for heads of S_0 that are zero or nearly so."""
    divergence: Kind = "reverse"
    """Of distillation."""
    mixture: float = 0.5
    """Weight of the teacher in the mixed divergence."""
    kl: float = 0.0
    """Weight of KL(policy | policy at Delta = 0), nats per token."""
    clip_norm: float = 1.0
    """Largest norm of a prompt's gradient; 0 turns clipping off."""
    temperature: float = 1.0
    """T of the samples, which come from pi_T, the logits over T. The gradient is that of pi = pi_1, without an
    importance ratio: only at 1 is it on-policy, elsewhere biased."""
    max_new_tokens: int = 96
    """Tokens of the longest sample."""
    reward: Literal["log_probability", "margin"] = "log_probability"
    """The teacher's score that is the reward, and that chooses among samples."""
    baseline: Literal["leave_one_out", "group"] = "leave_one_out"
    """Of the reward. leave_one_out: the other samples' mean, an unbiased gradient of the expected reward. group: the
    mean of all, over their deviation and each sample's length (GRPO), which is biased."""
    scale: bool = True
    """With `group`, and of given choices, divide advantages by the group's standard deviation."""
    chain_steps: int = 0
    """Steps of NLL on an answer of the teacher, before all others."""
    vote: float = 4.0
    """c: a sample's vote weighs exp(c * the teacher's mean log-probability of it)."""
    choice_weight: float = 0.5
    """Of the teacher's log-probabilities where they are added to the student's, of given choices."""
    agreement: float = 0.0
    """A prompt ends early when this share of a step's samples have one answer; 0: never."""
    loss_chunk: int = 128
    """Tokens of each sample whose logits exist at a time."""

    def __post_init__(self):
        divergences.check(self.divergence, self.mixture)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                told = ", ".join(allowed[:-1])
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: choose {told} or {allowed[-1]}")
        if min(self.samples, self.max_new_tokens, self.loss_chunk) < 1:
            raise ValueError("samples, max_new_tokens and loss_chunk must be at least 1")
        if min(self.steps, self.rate, self.kl, self.clip_norm, self.chain_steps, self.vote, self.choice_weight) < 0:
            raise ValueError("steps, rate, kl, clip_norm, chain_steps, vote and choice_weight must not be negative")
        if self.norm_cap <= 0 or self.temperature <= 0 or self.floor <= 0:
            raise ValueError("norm_cap, temperature and floor must be above 0")
        if not 0 <= self.agreement <= 1:
            raise ValueError("agreement must lie between 0 and 1")
        if self.signal in ("distillation", "token") and self.reward == "margin":
            raise ValueError(f"signal {self.signal} has no margin: leave reward at log_probability")


CHOICES = {
    "signal": ("auto", "distillation", "token", "reward"),
    "units": ("state", "absolute"),
    "reward": ("log_probability", "margin"),
    "baseline": ("leave_one_out", "group"),
}
"""Values of the settings that are words."""


class Adapted(NamedTuple):
    """What changes while B prompts adapt; donated to each update."""

    delta: Float[Array, "L B H V K"]
    """What each prompt adds to S_0, in `AdaptConfig.units`."""
    opt_state: optax.OptState
    """Of all prompts; elementwise, so that they stay apart."""


class Weights(NamedTuple):
    """How much each sample of a batch counts; those of prompt b stand together, r = b K + k."""

    policy: Float[Array | np.ndarray, "R"]
    """Of its loss, summed over its tokens: -log pi(sample) without a signal."""
    kl: Float[Array | np.ndarray, "R"]
    """Of the KL, summed over the sample's tokens."""


class Program(NamedTuple):
    """The jitted parts; make them once, weights and base state are arguments."""

    start: Callable[[int], Adapted]
    """B -> Delta = 0 for B prompts."""
    update: Callable[..., tuple[Adapted, Metrics]]
    """(params, unbatched S_0, adapted, R = B K samples, weights, signal = None) -> (adapted, metrics [B]: grad_norm,
    norm, applied); a signal is what the teacher says of each token.

    A prompt whose gradient is not finite keeps its Delta and its moments; a count of steps is shared and goes on.
    """
    nll: Callable[[Params, State, Array, Batch], Array]
    """(params, unbatched S_0, Delta of B prompts, R = B K samples) -> summed NLL of each sample [R], nats"""
    states: Callable[[State, Array, int], State]
    """(unbatched S_0, Delta of B prompts, K) -> the batched state of the R = B K samples"""


def make_program(model: RWKV7, config: AdaptConfig, optimizer: optax.GradientTransformation | None = None) -> Program:
    """Returns the jitted parts of the adaptation; make them once for a model.

    Args:
      model: the model's description.
      config: settings; numbers of steps and samples are not compiled in.
      optimizer: any elementwise transform instead of Adam, so that prompts stay apart.

    Returns:
      The program.
    """
    optimizer = optimizer or optax.adam(config.rate, eps=EPSILON)
    shape = zero_state(model.config, None).wkv.shape
    cap = config.norm_cap * (math.sqrt(math.prod(shape)) if config.units == "state" else 1.0)

    def start(prompts: int) -> Adapted:
        delta = jnp.zeros((shape[0], prompts, *shape[1:]), jnp.float32)
        return Adapted(delta, optimizer.init(delta))

    def update(
        params: Params, base: State, adapted: Adapted, batch: Batch, weights: Weights, signal: Signal | None = None
    ) -> tuple[Adapted, Metrics]:
        loss = partial(_loss, model, config, params, base, batch=batch, weights=weights, signal=signal)
        grads = jax.grad(lambda delta: loss(delta))(adapted.delta)
        finite = jnp.isfinite(_norms(grads))
        grads = jnp.where(_over(finite), grads, 0.0)
        norm = _norms(grads)
        if config.clip_norm:
            grads = grads * _over(jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-30)))
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, adapted.opt_state, adapted.delta)
            moved: PyTree = optax.apply_updates(adapted.delta, updates)
        new = Adapted(capped(moved, cap), opt_state)
        # A cond, as a bare select would be fused with the step and change the last bits of finite ones.
        kept = partial(non_finite.select, _over(finite))
        adapted = jax.lax.cond(finite.all(), lambda new, old: new, kept, new, adapted)
        return adapted, {"grad_norm": norm, "norm": _norms(adapted.delta), "applied": finite}

    def nll(params: Params, base: State, delta: Array, batch: Batch) -> Array:
        hidden = _hidden(model, params, rows(base, _moves(config, base, delta), _copies(batch, delta), model), batch)
        return _nll(model, params, hidden, batch, config.loss_chunk, frozen_head=False)

    def states(base: State, delta: Array, copies: int) -> State:
        return rows(base, _moves(config, base, delta), copies, model)

    return Program(start, jax.jit(update, donate_argnums=2), jax.jit(nll), jax.jit(states, static_argnums=2))


def require_adaptable(state: State) -> None:
    """Checks that a state can be adapted.

    Raises:
      ValueError: it is of literal upscaling, whose map does not read the S_0 that Delta is added to.
    """
    if isinstance(state.wkv, wkv_state.Literal):
        raise ValueError("literal upscaling does not read S_0, so it cannot adapt at test time: choose another student")


def rows(base: State, delta: Float[Array, "L B H V K"], copies: int, model: RWKV7) -> State:
    """Returns S_0 + Delta of each prompt, `copies` times in a row; an upscaled state gets it on its `s`.

    Raises:
      ValueError: see `require_adaptable`.
    """
    require_adaptable(base)
    delta = jnp.repeat(delta, copies, axis=1)
    zero = zero_state(model.config, 1)
    state = surgery.broadcast(base, delta.shape[1])
    state = state._replace(
        att_shift=state.att_shift.astype(zero.att_shift.dtype), ffn_shift=state.ffn_shift.astype(zero.ffn_shift.dtype)
    )
    start: PyTree = state.wkv
    moved = start._replace(s=start.s + delta) if hasattr(start, "s") else start + delta
    return state._replace(wkv=moved)


def capped(delta: Float[Array, "L B H V K"], cap: float) -> Float[Array, "L B H V K"]:
    """Returns each prompt's Delta, brought back to Frobenius norm `cap` if it is longer."""
    return delta * _over(jnp.minimum(1.0, cap / jnp.maximum(_norms(delta), 1e-30)))


def units(base: State, floor: float) -> Float[Array, "L 1 H 1 1"]:
    """Returns the root mean square of each head of an unbatched S_0, at least `floor`."""
    wkv: PyTree = base.wkv
    s = jnp.asarray(getattr(wkv, "s", wkv), jnp.float32)
    return jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(s), axis=(-2, -1))), floor)[:, None, :, None, None]


def _moves(config: AdaptConfig, base: State, delta: Array) -> Array:
    """What is added to S_0."""
    require_adaptable(base)
    return delta if config.units == "absolute" else units(base, config.floor) * delta


def _loss(
    model: RWKV7,
    config: AdaptConfig,
    params: Params,
    base: State,
    delta: Array,
    batch: Batch,
    weights: Weights,
    signal: Signal | None,
) -> Array:
    """The sum over prompts: as samples do not mix, its gradient holds each prompt's own."""
    copies, head = _copies(batch, delta), _head(model, params)
    hidden = _hidden(model, params, rows(base, _moves(config, base, delta), copies, model), batch)
    targets, mask = jnp.asarray(batch["targets"]), jnp.asarray(batch["loss_mask"])
    each = losses(
        hidden, head, targets, mask, signal,
        copies=copies, chunk=config.loss_chunk, kind=config.divergence, mixture=config.mixture,
    )  # fmt: skip
    loss = jnp.sum(jnp.where(weights.policy != 0, weights.policy * each, 0.0))
    if not config.kl:
        return loss
    still = rows(base, jnp.zeros_like(delta), copies, model)
    before = jax.lax.stop_gradient(_hidden(model, params, still, batch))
    kl = kl_sums(hidden, head, before, head, mask, chunk=config.loss_chunk)
    return loss + config.kl * jnp.sum(weights.kl * kl)


def _hidden(model: RWKV7, params: Params, state: State, batch: Batch) -> Array:
    tokens, valid = jnp.asarray(batch["tokens"]), jnp.asarray(batch["valid"])
    return functional.hidden(model, params, tokens, state, valid=valid)[0]


def _nll(model: RWKV7, params: Params, hidden: Array, batch: Batch, chunk: int, frozen_head: bool) -> Array:
    return objective.chunked_sums(
        hidden,
        _head(model, params),
        jnp.asarray(batch["targets"]),
        jnp.asarray(batch["loss_mask"]),
        chunk=chunk,
        frozen_head=frozen_head,
    )[0]


def _head(model: RWKV7, params: Params) -> Head:
    return lambda x: functional.logits(model, params, x)


def _copies(batch: Batch, delta: Array) -> int:
    count, prompts = batch["tokens"].shape[0], delta.shape[1]
    if count % prompts:
        raise ValueError(f"{count} rows cannot belong to {prompts} prompts in equal parts")
    return count // prompts


def _norms(delta: Float[Array, "L B H V K"]) -> Float[Array, "B"]:
    return jnp.sqrt(jnp.sum(jnp.square(delta), axis=(0, 2, 3, 4)))


def _over(x: Array) -> Array:
    """[B] -> [1, B, 1, 1, 1]"""
    return x[None, :, None, None, None]
