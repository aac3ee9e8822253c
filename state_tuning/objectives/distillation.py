"""Distillation of a larger model into an initial state: its next-token distributions are the targets.

    minimise  mean_t [(1 - hard) D(student_t, teacher_t)  -  hard log p(token_t)]

over the completions' tokens, D as in `divergences`: forward KL by default, for texts that the student did not write.
The teacher is a model in this process (exact), or a server that lists its likeliest tokens.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from rwkv7_jax import functional
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from state_tuning.core import objective, surgery
from state_tuning.core.objective import Batch
from state_tuning.core.train import Method, Metrics, TuneConfig, TuneState, guarded_update
from state_tuning.objectives import divergences
from state_tuning.objectives.divergences import Exact, Kind, Target
from state_tuning.objectives.preference import require_whole

__all__ = ["exact_target", "make_distillation_step", "make_measure"]

DistillationStep = Callable[[Params, TuneState, Batch, Target], tuple[TuneState, Metrics]]


def exact_target(model: RWKV7, params: Params, batch: Batch, state: State | None = None) -> Exact:
    """Reads a batch with the teacher: its whole distribution at every position.

    Args:
      model: the teacher's description.
      params: its weights.
      batch: sequences [R, T] in tokens that both models share.
      state: the unbatched state that the teacher starts from; None is the zero state.

    Returns:
      The target, for the step of `make_distillation_step` or for `divergence_sums`.
    """
    start = zero_state(model.config, None) if state is None else state
    return Exact(model, params, read(model, params, start, batch))


@partial(jax.jit, static_argnums=0)
def read(model: RWKV7, params: Params, state: State, batch: Batch) -> Array:
    """Computes a model's activations [R, T, D] on a batch, from an unbatched state."""
    tokens, valid = jnp.asarray(batch["tokens"]), jnp.asarray(batch["valid"])
    rows, zero = surgery.broadcast(state, tokens.shape[0]), zero_state(model.config, tokens.shape[0])
    rows = rows._replace(
        att_shift=rows.att_shift.astype(zero.att_shift.dtype), ffn_shift=rows.ffn_shift.astype(zero.ffn_shift.dtype)
    )
    return functional.hidden(model, params, tokens, rows, valid=valid)[0]


def make_distillation_step(
    model: RWKV7,
    optimizer: optax.GradientTransformation,
    tune: TuneConfig,
    method: Method,
    *,
    kind: Kind = "forward",
    mixture: float = 0.5,
    hard: float = 0.0,
) -> DistillationStep:
    """Returns a jitted `step(params, tuned, batch, target) -> (tuned, metrics)`; `tuned` (see `train.init`) is donated.

    Metrics: those of `train.guarded_update`, `divergence` and `nll` (nats per token), and `tokens`. Where a list says
    nothing of a position, this has no divergence; the mean is over all others.

    Args:
      model: the student's description.
      optimizer: any optax transform.
      tune: settings, of which `loss_chunk` is used.
      method: what is trained.
      kind: which divergence.
      mixture: b of `mixed`.
      hard: share of the NLL of the text's own tokens.

    Returns:
      The step.

    Raises:
      ValueError: unknown kind, a share outside of 0 to 1, or settings that ask for micro-batches or segments.
    """
    divergences.check(kind, mixture)
    if not 0 <= hard <= 1:
        raise ValueError(f"hard is {hard}, it must lie between 0 and 1")
    require_whole(tune)

    def step(params: Params, tuned: TuneState, batch: Batch, target: Target) -> tuple[TuneState, Metrics]:
        data = {name: jnp.asarray(batch[name]) for name in ("tokens", "targets", "loss_mask", "valid")}
        mask = divergences.counted(target, data["loss_mask"])

        def head(x: Array) -> Array:
            return functional.logits(model, params, x)

        def loss(trainable: PyTree) -> tuple[Array, tuple[Array, Array]]:
            state = method.graft(trainable, data["tokens"].shape[0])
            hidden, _ = functional.hidden(model, params, data["tokens"], state, valid=data["valid"])
            sums = divergences.divergence_sums(
                hidden, head, target, data["loss_mask"], kind=kind, mixture=mixture, chunk=tune.loss_chunk
            )
            soft, nll = objective.mean(sums.sum(), mask.sum()), jnp.zeros((), jnp.float32)
            if hard:
                total, count = objective.chunked_sums(
                    hidden, head, data["targets"], data["loss_mask"], chunk=tune.loss_chunk, frozen_head=True
                )
                nll = objective.mean(total.sum(), count.sum())
            return (1 - hard) * soft + hard * nll, (soft, nll)

        (value, (soft, nll)), grads = jax.value_and_grad(loss, has_aux=True)(tuned.trainable)
        tuned, metrics = guarded_update(optimizer, tuned, value, grads)
        return tuned, metrics | {"divergence": soft, "nll": nll, "tokens": mask.sum()}

    return jax.jit(step, donate_argnums=1)


def make_measure(
    model: RWKV7, method: Method, tune: TuneConfig, *, kind: Kind = "forward", mixture: float = 0.5
) -> Callable[[Params, PyTree, Batch, Target], tuple[Array, Array, Array, Array]]:
    """Returns a jitted `measure(params, trainable, batch, target)`, for held-out text: sums to be added over batches.

    Args:
      model: the student's description.
      method: what is trained.
      tune: settings, of which `loss_chunk` is used.
      kind: which divergence.
      mixture: b of `mixed`.

    Returns:
      The function. It returns (summed divergence, summed NLL in nats, positions that have a divergence, tokens that
      have an NLL), scalars.
    """

    def measure(params: Params, trainable: PyTree, batch: Batch, target: Target) -> tuple[Array, Array, Array, Array]:
        data = {name: jnp.asarray(batch[name]) for name in ("tokens", "targets", "loss_mask", "valid")}
        mask = data["loss_mask"]

        def head(x: Array) -> Array:
            return functional.logits(model, params, x)

        state = method.graft(trainable, data["tokens"].shape[0])
        hidden, _ = functional.hidden(model, params, data["tokens"], state, valid=data["valid"])
        options = {"chunk": tune.loss_chunk, "frozen_head": False}
        sums = divergences.divergence_sums(hidden, head, target, mask, kind=kind, mixture=mixture, **options)
        nll, count = objective.chunked_sums(hidden, head, data["targets"], mask, **options)
        return sums.sum(), nll.sum(), divergences.counted(target, mask).sum(), count.sum()

    return jax.jit(measure)
