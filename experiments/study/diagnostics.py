"""What is measured beside the numbers of the table: the condition number of C~ over steps, and |q_t| against t."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.config.methods import DBPMethod, UpscaleMethod
from experiments.methods import calibration_batch
from experiments.study.resources import Resources
from rwkv7_jax import RWKV7, State, functional
from rwkv7_jax.functional import Params
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.wkv_state import Residual
from state_tuning.core import surgery, train
from state_tuning.core.objective import Batch, collate
from state_tuning.dbp import DecorrelatedState, correlations, state_queries

TEXTS, LEAST_TEXTS = 32, 8
"""Texts whose |q_t| is averaged, and how many of them must still run at t."""
DAMPING = DBPMethod().damping


class ConditionRecorder:
    """Records the condition number of C~ = R C R^T on the whole batch, at every `every`-th step of a run of S_0.

    C is fresh (not the running mean that R was learnt from), brought to trace K and damped as `dbp` does; R is the
    optimiser's, the identity for plain Adam.
    """

    def __init__(self, correlate: train.Correlate, params: Params, every: int):
        self.correlate, self.params, self.every = correlate, params, every
        self.found: list[tuple[int, list[float]]] = []
        """(steps taken, log10 of the condition number by layer, mean over heads)"""

    def __call__(self, step: int, tuned: train.TuneState, batch: Batch) -> None:
        if step % self.every:
            return
        c = jax.device_get(self.correlate(self.params, tuned.trainable, batch).wkv)
        inner = getattr(tuned.opt_state, "inner", None)
        r = jax.device_get(inner.r.wkv) if isinstance(inner, DecorrelatedState) else None
        self.found.append((step, np.round(log_conditions(np.asarray(c), r), 4).tolist()))


def log_conditions(c: Float[np.ndarray, "L H K K"], r: Float[np.ndarray, "L H K K"] | None) -> Float[np.ndarray, "L"]:
    """Computes log10 of the condition number of R C R^T by layer, mean over heads; r None is the identity."""
    c = np.asarray(c, np.float64)
    size = c.shape[-1]
    c = c * (size / np.trace(c, axis1=-2, axis2=-1)[..., None, None]) + DAMPING * np.eye(size)
    if r is not None:
        r = np.asarray(r, np.float64)
        c = r @ c @ r.swapaxes(-1, -2)
    values = np.linalg.eigvalsh(c)
    return np.log10(values[..., -1] / values[..., 0]).mean(-1)


def make_correlate(model: RWKV7) -> train.Correlate:
    """Returns the jitted measurement of C for S_0 on whole batches; make it once."""
    return jax.jit(correlations.make_correlate(model, _standard(model), 1.0))


def _standard(model: RWKV7) -> train.Method:
    return train.standard(model.config, train.TuneConfig())


def spectra(resources: Resources) -> dict[str, dict[str, float]]:
    """Measures what trained matrices read: {"q" or an upscaled method: how E[x x^T] of its input x is spread}."""
    lm, seed = resources.student.lm, resources.first_seed
    batch = calibration_batch(lm.tokenizer, list(resources.jobs.values()), resources.data, UpscaleMethod().tokens)
    correlate = make_correlate(lm.model)
    found = {"q": spread(jax.device_get(correlate(lm.params, _standard(lm.model).init(), batch).wkv))}
    for name, learned in resources.methods.items():
        settings = learned.method
        if type(settings) is UpscaleMethod and learned.model == "student" and settings.map == "residual":
            method = resources.program(name, seed).chosen.method
            c = jax.jit(correlations.make_correlate(lm.model, method, 1.0))(lm.params, method.init(), batch)
            found[name] = spread(jax.device_get(getattr(c.wkv, "s_ext")))  # noqa: B009
    return found


def spread(c: Float[np.ndarray, "L H K K"]) -> dict[str, float]:
    """Computes the largest eigenvalue's share of the trace and the participation ratio (tr C)^2 / tr C^2.

    Means over layers and heads: 1 and 1 where all x point in one direction, 1 / K and K where C is a multiple of I.
    """
    values = np.maximum(np.linalg.eigvalsh(np.asarray(c, np.float64)), 0.0)
    total = values.sum(-1)
    share, ratio = values[..., -1] / total, np.square(total) / np.square(values).sum(-1)
    return {"largest": round(float(share.mean()), 4), "participation": round(float(ratio.mean()), 2)}


class QueryNorms(NamedTuple):
    """Norms by layer and token, mean over heads and texts."""

    psi: Float[Array, "L T"] | None
    """|psi(r_t)| where the state is upscaled."""
    q: Float[Array, "L T"]
    """|q_t|."""


def queries(resources: Resources, task: str, states: dict[str, State]) -> dict[str, dict[str, list[list[float]]]]:
    """Measures {state's name: {"q": |q_t| [L][T], "psi": |psi(r_t)| [L][T] where it is upscaled}} on training texts."""
    examples = sorted(resources.examples(task)[:TEXTS], key=lambda e: len(e.tokens))
    length = len(examples[-LEAST_TEXTS].tokens) - 1
    batch = collate(examples, len(examples[-1].tokens) - 1)
    found = {}
    for name, state in states.items():
        norms = jax.device_get(query_norms(resources.student.lm, state, batch))._asdict()
        found[name] = {key: np.round(x[:, :length], 5).tolist() for key, x in norms.items() if x is not None}
    return found


def query_norms(lm: LanguageModel, state: State, batch: Batch) -> QueryNorms:
    """Measures the norms of the queries of a batch from a state."""
    return _query_norms(lm.model, lm.params, state, jnp.asarray(batch["tokens"]), jnp.asarray(batch["valid"]))


@partial(jax.jit, static_argnums=0)
def _query_norms(
    model: RWKV7, params: Params, state: State, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]
) -> QueryNorms:
    start = surgery.broadcast(state, tokens.shape[0])
    start = start._replace(wkv=correlations.Recorder(start.wkv))  # pyright: ignore[reportArgumentType]
    last = functional.hidden(model, params, tokens, start, valid=valid)[1].wkv
    assert isinstance(last, correlations.Recorder)
    x = last.seen

    def one(layer: tuple[Array, ...]) -> Array:
        r, log_w, k, kk, iclr = layer
        return mean_norm(state_queries(r, log_w, k, -kk, kk * iclr, valid=valid), valid)

    q = jax.lax.map(one, (x.r, x.log_w, x.k, x.kk, x.iclr))
    psi = jax.vmap(lambda m, s: mean_norm(m.features(s), valid))(last.s, x) if isinstance(last.s, Residual) else None
    return QueryNorms(psi, q)


def mean_norm(z: Float[Array, "B T H K"], valid: Bool[Array, "B T"]) -> Float[Array, "T"]:
    """Computes |z_t|, mean over heads and the texts that are valid at t."""
    norms = jnp.linalg.norm(z.astype(jnp.float32), axis=-1).mean(-1)
    used = valid.astype(jnp.float32)
    return (norms * used).sum(0) / jnp.maximum(used.sum(0), 1.0)
