"""Group-relative policy optimisation of an initial state: GRPO (arXiv 2402.03300) as its successors have it.

K samples are drawn for each prompt from the model at S_0, a program judges them, and S_0 moves against

    L = - sum_{r,t} min(rho A_r, clip(rho, 1 - low, 1 + high) A_r) / N  +  kl sum_{r,t} KL_{r,t} / N

    rho = pi(y_t) / pi_old(y_t)     A_r = R_r - mean of the rewards of the other samples of the prompt

The sum runs over all tokens of all samples and N is their number (token-level loss, DAPO, arXiv 2503.14476), or the
number of samples, with which the gradient of one update is that of the mean reward, unbiased. `low` and `high` are
apart, as in DAPO. KL is that of the policy from its start: exact, over the whole vocabulary at each sampled position,
or "k3", r - log r - 1 with r = pi_start / pi at the sampled token. The value of k3 is unbiased too, but its gradient is
that of KL(start | policy).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from rwkv7_jax import functional
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.sharding import gathered, pin, whole
from state_tuning.core import train
from state_tuning.core.accumulate import accumulated
from state_tuning.core.divergence import kl_sums
from state_tuning.core.objective import Head, cut, mean, token_nll
from state_tuning.core.train import Method, Metrics, TuneConfig, TuneState
from state_tuning.reinforcement.sampling import Drawn, Prompts

__all__ = ["GRPOConfig", "Rollouts", "k3", "make_update", "rollouts", "surrogate", "token_log_probs"]


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """Hyper-parameters of the loss."""

    updates: int = 1
    """Optimiser steps on each batch of samples; with one, rho is 1 and nothing is clipped."""
    clip_low: float = 0.2
    """How far below 1 the ratio of a token's probabilities counts, 0 to 1."""
    clip_high: float = 0.28
    """How far above 1 it counts."""
    kl: float = 0.0
    """Weight of the KL from the start, nats a token; 0 computes none."""
    kl_form: Literal["exact", "k3"] = "exact"
    """Over the whole vocabulary, or from the sampled token alone, see the module `grpo`."""
    normalise: Literal["tokens", "samples"] = "tokens"
    """N: all tokens, or all samples."""
    scale: bool = False
    """Divide advantages by the group's standard deviation, as the first GRPO does."""
    temperature: float = 1.0
    """Of the samples. The policy that is learnt is the one that sampled: logits over this number."""

    def __post_init__(self):
        if self.updates < 1:
            raise ValueError(f"updates is {self.updates}, it must be at least 1")
        if not 0 <= self.clip_low <= 1 or not 0 <= self.clip_high < np.inf or not 0 <= self.kl < np.inf:
            raise ValueError("clip_low must lie in 0..1, clip_high and kl must be finite and not negative")
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"temperature is {self.temperature}, it must be above 0 to learn from samples")
        if self.kl_form not in ("exact", "k3") or self.normalise not in ("tokens", "samples"):
            raise ValueError("kl_form must be exact or k3, normalise must be tokens or samples")


class Rollouts(NamedTuple):
    """Samples to learn from, one a row."""

    tokens: Int[Array | np.ndarray, "R T"]
    """The prompt, padded on the left, and the sample."""
    valid: Bool[Array | np.ndarray, "R T"]
    """Whether a token is read; the last one of a sample is not."""
    targets: Int[Array | np.ndarray, "R N"]
    """The sample's tokens."""
    counted: Float[Array | np.ndarray, "R N"]
    """1 for a token of the sample, 0 behind its end, float32."""
    advantage: Float[Array | np.ndarray, "R"]
    """A of each sample, float32."""


Update = Callable[[Params, TuneState, PyTree, Rollouts], tuple[TuneState, Metrics]]
"""(weights, state, the start's trainable tree, samples) -> (state, metrics)"""


def rollouts(prompts: Prompts, drawn: Drawn, advantage: Float[np.ndarray, "R"]) -> Rollouts:
    """Joins prompts and the samples of each to rows.

    Args:
      prompts: B of them, on the host.
      drawn: R = B K samples, those of a prompt together.
      advantage: of each sample, see `estimators.leave_one_out`.

    Returns:
      The rows, on the host, for the update of `make_update`.
    """
    copies = len(drawn.tokens) // len(prompts.tokens)
    tokens, valid = (np.repeat(np.asarray(leaf), copies, axis=0) for leaf in prompts)
    read = np.concatenate([drawn.counted[:, 1:] > 0, np.zeros((len(drawn.counted), 1), bool)], axis=1)
    return Rollouts(
        np.concatenate([tokens, drawn.tokens], axis=1),
        np.concatenate([valid, read], axis=1),
        drawn.tokens,
        drawn.counted,
        np.asarray(advantage, np.float32),
    )


def surrogate(
    log_p: Float[Array, "R N"],
    old: Float[Array, "R N"],
    advantage: Float[Array, "R"],
    counted: Float[Array, "R N"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, "R N"], Float[Array, "R N"]]:
    """Computes the clipped surrogate of each token.

    Args:
      log_p: log-probabilities of the sampled tokens, nats.
      old: those of the policy that sampled them, nats.
      advantage: of each sample.
      counted: 1 for a token of the sample.
      clip_low: how far below 1 the ratio counts.
      clip_high: how far above 1.

    Returns:
      (min(rho A, clip(rho) A), 1 where the clipped part is the lesser), 0 where nothing is counted.

    Example:
      >>> log_p, old = jnp.log(jnp.array([[0.9, 0.3]])), jnp.log(jnp.array([[0.5, 0.3]]))  # rho is 1.8 and 1
      >>> gains, clipped = surrogate(log_p, old, jnp.array([2.0]), jnp.ones((1, 2)), 0.2, 0.28)
      >>> [round(x, 4) for x in gains[0].tolist()], clipped.tolist()
      ([2.56, 2.0], [[1.0, 0.0]])
    """
    ratio = jnp.exp(jnp.where(counted > 0, log_p - old, 0.0))
    gain = advantage[:, None]
    plain, clipped = ratio * gain, jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * gain
    return counted * jnp.minimum(plain, clipped), jnp.where(clipped < plain, counted, 0.0)


def k3(log_p: Float[Array, "R N"], start: Float[Array, "R N"], counted: Float[Array, "R N"]) -> Float[Array, "R N"]:
    """Estimates the KL of the policy from its start at each sampled token: r - log r - 1 with r = pi_start / pi.

    Args:
      log_p: log-probabilities of the sampled tokens, nats.
      start: those of the policy at the start.
      counted: 1 for a token of the sample.

    Returns:
      The estimates [R, N], nats, at least 0; 0 where nothing is counted.

    Example:
      >>> found = k3(jnp.log(jnp.array([[0.25]])), jnp.log(jnp.array([[0.5]])), jnp.ones((1, 1)))  # 2 - log 2 - 1
      >>> round(float(found[0, 0]), 4)
      0.3069
    """
    log_r = jnp.where(counted > 0, start - log_p, 0.0)
    return counted * (jnp.exp(log_r) - log_r - 1.0)


def token_log_probs(
    hidden: Float[Array, "R N D"],
    head: Head,
    targets: Int[Array, "R N"],
    counted: Float[Array, "R N"],
    chunk: int,
) -> Float[Array, "R N"]:
    """Computes the log-probability of each target, with the logits of few positions alive at a time.

    Args:
      hidden: activations that predict the targets.
      head: activations [R, C, D] -> logits [R, C, vocab].
      targets: token ids.
      counted: 1 for a token of the sample.
      chunk: C, positions whose logits exist at a time; the backward pass computes them again.

    Returns:
      The log-probabilities [R, N], nats, float32; 0 where nothing is counted.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]]))  # activations of a model whose head is the identity
      >>> found = token_log_probs(logits, lambda x: x, jnp.array([[0, 1]]), jnp.ones((1, 2)), chunk=1)
      >>> [round(x, 4) for x in found[0].tolist()]  # log 0.5 and log 0.1
      [-0.6931, -2.3026]
    """
    size = hidden.shape[1]
    chunk = min(chunk, size)

    @jax.checkpoint
    def piece(x: Array, y: Array, m: Array) -> Array:
        x = jnp.where(m[..., None] > 0, x, jnp.zeros((), x.dtype))
        return -token_nll(head(x), y) * m

    pieces = tuple(cut(x, chunk) for x in (hidden, targets, counted))
    found = jax.lax.scan(lambda _, parts: (None, piece(*parts)), None, pieces)[1]
    return jnp.moveaxis(found, 0, 1).reshape(hidden.shape[0], -1)[:, :size]


def make_update(
    model: RWKV7,
    optimizer: optax.GradientTransformation,
    tune: TuneConfig,
    method: Method,
    config: GRPOConfig,
) -> Update:
    """Returns the jitted update by a batch of samples; its state is donated.

    Args:
      model: the model's description.
      optimizer: how the trainable tree moves; it takes `config.updates` steps a call.
      tune: accumulate, loss_chunk and l2 are used.
      method: what is trained, and how it becomes the initial state.
      config: of the loss.

    Returns:
      The update. Its metrics: loss, kl (nats a token), clipped (part of the tokens), and those of
      `train.guarded_update`, of the last of the optimiser's steps.

    Raises:
      ValueError: while tracing, if the samples cannot be cut into `tune.accumulate` equal parts.
    """
    loss = _Loss(model, tune, method, config)

    def update(params: Params, tuned: TuneState, start: PyTree, batch: Rollouts) -> tuple[TuneState, Metrics]:
        counted = jnp.asarray(batch.counted)
        tokens = counted.sum()
        count = tokens if config.normalise == "tokens" else jnp.asarray(counted.shape[0], jnp.float32)
        once = config.updates == 1
        old = jnp.zeros_like(counted) if once else loss.scores(params, tuned.trainable, batch)[1]

        def one(tuned: TuneState) -> tuple[TuneState, Metrics]:
            (total, (kl, clipped)), grad_sum = accumulated(
                partial(loss.sums, params, start), tuned.trainable, (batch, old), tune.accumulate
            )
            grads = jax.tree.map(lambda g, p: mean(g, count) + 2.0 * tune.l2 * p, grad_sum, tuned.trainable)
            tuned, metrics = train.guarded_update(optimizer, tuned, mean(total, count), grads)
            return tuned, metrics | {"kl": mean(kl, tokens), "clipped": mean(clipped, tokens)}

        step, skipped = tuned.step, tuned.skipped
        if once:
            tuned, metrics = one(tuned)
        else:
            tuned, every = jax.lax.scan(lambda now, _: one(now), tuned, None, length=config.updates)
            metrics = jax.tree.map(lambda leaf: leaf[-1], every) | {"applied": every["applied"].all()}
        skipped = skipped + (~metrics["applied"]).astype(jnp.int32)
        return pin(tuned._replace(step=step + 1, skipped=skipped)), whole(metrics | {"skipped": skipped})

    return jax.jit(update, donate_argnums=1)


class _Loss:
    """The loss of samples as sums over their tokens, and the scores that it is made of."""

    def __init__(self, model: RWKV7, tune: TuneConfig, method: Method, config: GRPOConfig):
        self.model, self.tune, self.method, self.config = model, tune, method, config

    def sums(
        self, params: Params, start: PyTree, trainable: PyTree, samples: tuple[Rollouts, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        """Returns (N times the loss, (summed KL, tokens that are clipped)) of samples with their old scores."""
        (batch, old), config = samples, self.config
        counted, gain = jnp.asarray(batch.counted), jnp.asarray(batch.advantage)
        hidden, log_p = self.scores(params, trainable, batch)
        old = jax.lax.stop_gradient(log_p) if config.updates == 1 else old
        gains, clipped = surrogate(log_p, old, gain, counted, config.clip_low, config.clip_high)
        kl = jnp.zeros(())
        if config.kl:
            before, start_p = jax.lax.stop_gradient(self.scores(params, start, batch))
            if config.kl_form == "k3":
                kl = k3(log_p, start_p, counted).sum()
            else:
                head = self.head(params)
                kl = kl_sums(hidden, head, before, head, counted, chunk=self.tune.loss_chunk).sum()
        return config.kl * kl - gains.sum(), (kl, clipped.sum())

    def scores(self, params: Params, trainable: PyTree, batch: Rollouts) -> tuple[Array, Array]:
        """Returns (activations that predict the samples' tokens [R, N, D], log-probabilities of these [R, N])."""
        tokens, targets = jnp.asarray(batch.tokens), jnp.asarray(batch.targets)
        state = self.method.graft(trainable, tokens.shape[0])
        hidden, _ = functional.hidden(self.model, params, tokens, state, valid=jnp.asarray(batch.valid))
        begin = tokens.shape[1] - targets.shape[1] - 1
        hidden, counted = hidden[:, begin:-1], jnp.asarray(batch.counted)
        return hidden, token_log_probs(hidden, self.head(params), targets, counted, self.tune.loss_chunk)

    def head(self, params: Params) -> Head:
        """Returns the head of the policy, its weights gathered once."""
        held = params | gathered({"head": params["head"]})
        return lambda x: functional.logits(self.model, held, x) / self.config.temperature
