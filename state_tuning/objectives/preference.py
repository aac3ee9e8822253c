"""Direct preference optimisation of an initial state (DPO, arXiv 2305.18290).

Of pairs (prompt x, chosen y, rejected z), with pi the model from the tuned S_0 and pi_0 the model from the start:

    minimise  - mean log sigmoid(beta [log pi(y|x) - log pi_0(y|x) - log pi(z|x) + log pi_0(z|x)])

Log-probabilities are sums over the completion's tokens, the end token included. The start's are computed once, before.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from rwkv7_jax import functional
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core import objective, train
from state_tuning.core.objective import Batch, Example
from state_tuning.core.train import Method, Metrics, TuneConfig, TuneState, guarded_update

__all__ = ["Pair", "dpo", "encode_pairs", "make_preference_step", "pair_batch", "start_nll"]

PreferenceStep = Callable[[Params, TuneState, Batch, Float[Array | np.ndarray, "R"]], tuple[TuneState, Metrics]]


class Pair(NamedTuple):
    """Two completions of a prompt, the better one first."""

    prompt: str
    """What both follow; may be empty."""
    chosen: str
    """The better completion."""
    rejected: str
    """The other one."""


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[Pair], max_length: int | None = None
) -> list[tuple[Example, Example]]:
    """Encodes both completions of each pair after its prompt, with the end token.

    Args:
      tokenizer: text to token ids.
      pairs: the pairs.
      max_length: positions of a sequence at most, see `objective.encode_example`.

    Returns:
      (chosen, rejected) of each pair.

    Raises:
      ValueError: both completions of a pair are the same.
    """
    found = []
    for index, (prompt, chosen, rejected) in enumerate(pairs):
        if chosen == rejected:
            raise ValueError(f"pair {index}: chosen and rejected are the same text")
        both = (objective.encode_example(tokenizer, prompt, text, max_length) for text in (chosen, rejected))
        found.append(tuple(both))
    return found


def pair_batch(pairs: Sequence[tuple[Example, Example]], length: int) -> Batch:
    """Collates B pairs to 2 B rows: the chosen completions, then the rejected ones in the same order.

    Args:
      pairs: of `encode_pairs`.
      length: T, positions of each row.

    Returns:
      The batch [2 B, T].

    Raises:
      ValueError: a sequence has more than length + 1 tokens, or there is no pair.
    """
    return objective.collate([row for part in zip(*pairs, strict=True) for row in part], length)


def dpo(log_ratio: Float[Array, "R"], beta: float) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Computes the loss of each pair.

    Args:
      log_ratio: log pi - log pi_0 of 2 B completions, the chosen ones first, nats.
      beta: how far the policy may go from the start.

    Returns:
      (losses [B], margins beta (chosen - rejected) [B]).

    Example:
      >>> losses, margins = dpo(jnp.array([1.0, -1.0]), beta=0.5)
      >>> round(float(losses[0]), 4), float(margins[0])
      (0.3133, 1.0)
    """
    chosen, rejected = jnp.split(log_ratio, 2)
    margins = beta * (chosen - rejected)
    return jax.nn.softplus(-margins), margins


def make_preference_step(
    model: RWKV7, optimizer: optax.GradientTransformation, tune: TuneConfig, method: Method, beta: float = 0.1
) -> PreferenceStep:
    """Returns a jitted `step(params, tuned, batch, start) -> (tuned, metrics)`; `tuned` (see `train.init`) is donated.

    `batch` is of `pair_batch`, `start` [2 B] the summed NLL of its rows from the start: the first output of
    `train.make_eval_step(model, tune, method, per_row=True)` for the start's tree. Metrics: those of
    `train.guarded_update`, `margin` (mean) and `preferred`, the share of pairs whose margin is above 0.

    Args:
      model: the model's description.
      optimizer: any optax transform.
      tune: settings, of which `loss_chunk` and `l2` are used.
      method: what is trained.
      beta: see the module.

    Returns:
      The step.

    Raises:
      ValueError: beta is not above 0, or the settings ask for micro-batches or segments.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, it must be above 0")
    require_whole(tune)

    def step(
        params: Params, tuned: TuneState, batch: Batch, start: Float[Array | np.ndarray, "R"]
    ) -> tuple[TuneState, Metrics]:
        def loss(trainable: PyTree) -> tuple[Array, tuple[Array, Array]]:
            nll = row_nll(model, params, method.graft(trainable, batch["tokens"].shape[0]), batch, tune.loss_chunk)
            losses, margins = dpo(jnp.asarray(start) - nll, beta)
            penalty = tune.l2 * sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(trainable))
            return losses.mean() + penalty, (margins.mean(), (margins > 0).mean())

        (value, (margin, preferred)), grads = jax.value_and_grad(loss, has_aux=True)(tuned.trainable)
        tuned, metrics = guarded_update(optimizer, tuned, value, grads)
        return tuned, metrics | {"margin": margin, "preferred": preferred}

    return jax.jit(step, donate_argnums=1)


def require_whole(tune: TuneConfig) -> None:
    """Checks that a step takes its batch as a whole.

    Raises:
      ValueError: micro-batches or segments are asked for.
    """
    if tune.accumulate > 1 or tune.segment:
        raise ValueError("this objective takes a batch as a whole: leave accumulate at 1 and segment at 0")


def row_nll(model: RWKV7, params: Params, state: PyTree, batch: Batch, chunk: int) -> Float[Array, "R"]:
    """Computes the NLL of each row's completion from a batched state, nats; its gradient reaches the state alone."""
    data = {name: jnp.asarray(batch[name]) for name in ("tokens", "targets", "loss_mask", "valid")}
    hidden, _ = functional.hidden(model, params, data["tokens"], state, valid=data["valid"])
    return objective.chunked_sums(
        hidden,
        lambda x: functional.logits(model, params, x),
        data["targets"],
        data["loss_mask"],
        chunk=chunk,
        frozen_head=True,
    )[0]


def start_nll(model: RWKV7, params: Params, method: Method, tune: TuneConfig, batch: Batch) -> Float[np.ndarray, "R"]:
    """Computes what the step of `make_preference_step` takes as `start`: the NLL of each row from the method's start.

    Args:
      model: the model's description.
      params: its weights.
      method: what is trained.
      tune: settings.
      batch: of `pair_batch`.

    Returns:
      The summed NLL of each row [2 B], nats, on the host.
    """
    evaluate = train.make_eval_step(model, tune, method, per_row=True)
    return np.asarray(evaluate(params, method.init(), batch)[0])
