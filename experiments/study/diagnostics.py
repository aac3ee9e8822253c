"""What is looked at beside the numbers of the table: the condition number of C~ over steps, and |q_t| against t."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.config.methods import DBPMethod, StandardMethod, UpscaleMethod
from experiments.methods import calibration_batch
from experiments.study.lab import Lab, Side
from rwkv7_jax import RWKV7, State
from rwkv7_jax.wkv_state import Residual
from state_tuning.core import surgery, train
from state_tuning.core.objective import Batch, collate
from state_tuning.dbp import correlations as probe
from state_tuning.dbp import queries as influence

ROWS, LEAST_ROWS = 32, 8
"""Texts whose |q_t| is averaged, and how many of them must still run at t."""
DAMPING = DBPMethod().damping


class Conditions:
    """Watches a run of S_0: at every `every`-th step the condition number of C~ = R C R^T on the whole batch.

    C is fresh (not the running mean that R was learnt from), brought to trace K and damped as `dbp` does; R is the
    optimiser's, the identity for plain Adam.
    """

    def __init__(self, correlate: probe.Correlate, params: Any, every: int):
        self.correlate, self.params, self.every = correlate, params, every
        self.found: list[tuple[int, list[float]]] = []
        """(steps taken, log10 of the condition number by layer, mean over heads)"""

    def __call__(self, step: int, tuned: train.TuneState, batch: Batch) -> None:
        if step % self.every:
            return
        c = jax.device_get(self.correlate(self.params, tuned.trainable, batch).wkv)
        inner: Any = getattr(tuned.opt_state, "inner", None)
        r = jax.device_get(inner.r.wkv) if hasattr(inner, "r") else None
        self.found.append((step, np.round(log_conditions(np.asarray(c), r), 4).tolist()))


def log_conditions(c: np.ndarray, r: np.ndarray | None) -> np.ndarray:
    """log10 of the condition number of R C R^T [L], mean over heads; c, r: [L, H, K, K], None for the identity."""
    c = np.asarray(c, np.float64)
    size = c.shape[-1]
    c = c * (size / np.trace(c, axis1=-2, axis2=-1)[..., None, None]) + DAMPING * np.eye(size)
    if r is not None:
        r = np.asarray(r, np.float64)
        c = r @ c @ r.swapaxes(-1, -2)
    values = np.linalg.eigvalsh(c)
    return np.log10(values[..., -1] / values[..., 0]).mean(-1)


def watchable(lab: Lab, row: str) -> bool:
    """Whether a row trains S_0 alone, by an optimiser that sees C or could."""
    learned = lab.config.rows[row]
    kinds = (StandardMethod, DBPMethod)
    form = getattr(learned.method, "form", "dbp")
    return learned.model == "student" and type(learned.method) in kinds and form != "literal"


def correlations(lab: Lab) -> probe.Correlate:
    """The jitted measurement of C for S_0 on whole batches; make it once."""
    return jax.jit(probe.correlations(lab.student.lm.model, _standard(lab), 1.0))


def _standard(lab: Lab) -> train.Method:
    return train.standard(lab.student.lm.model.config, train.TuneConfig())


def spectra(lab: Lab) -> dict[str, dict[str, float]]:
    """What trained matrices read: {"q" or an upscaled row's name: how E[x x^T] of its input x is spread}."""
    lm, seed = lab.student.lm, lab.config.seeds[0]
    batch = calibration_batch(lm.tokenizer, list(lab.jobs.values()), lab.config.data, UpscaleMethod().tokens)
    found = {"q": spread(jax.device_get(correlations(lab)(lm.params, _standard(lab).init(), batch).wkv))}
    for name, row in lab.config.rows.items():
        if type(row.method) is UpscaleMethod and row.model == "student" and row.method.map == "residual":
            method = lab.program(name, seed).chosen.method
            c = jax.jit(probe.correlations(lm.model, method, 1.0))(lm.params, method.init(), batch)
            found[name] = spread(jax.device_get(getattr(c.wkv, "s_ext")))  # noqa: B009
    return found


def spread(c: np.ndarray) -> dict[str, float]:
    """The largest eigenvalue's share of the trace and the participation ratio (tr C)^2 / tr C^2 of C [L, H, K, K], mean
    over layers and heads: 1 and 1 where all x point in one direction, 1 / K and K where C is a multiple of I."""
    values = np.maximum(np.linalg.eigvalsh(np.asarray(c, np.float64)), 0.0)
    total = values.sum(-1)
    share, ratio = values[..., -1] / total, np.square(total) / np.square(values).sum(-1)
    return {"largest": round(float(share.mean()), 4), "participation": round(float(ratio.mean()), 2)}


def queries(lab: Lab, task: str, states: dict[str, State]) -> dict[str, dict[str, list[list[float]]]]:
    """{state's name: {"q": |q_t| [L][T], "psi": |psi(r_t)| [L][T] where the memory is upscaled}} on training texts."""
    examples = sorted(lab.examples(task)[:ROWS], key=lambda e: len(e.tokens))
    length = len(examples[-LEAST_ROWS].tokens) - 1
    batch = collate(examples, len(examples[-1].tokens) - 1)
    found = {}
    for name, state in states.items():
        norms = jax.device_get(_norms(lab.student, state, batch))
        found[name] = {key: np.round(x[:, :length], 5).tolist() for key, x in norms.items() if x is not None}
    return found


def _norms(side: Side, state: State, batch: Batch) -> dict[str, Any]:
    data = [jnp.asarray(batch[name]) for name in ("tokens", "valid")]
    return _measured(side.lm.model, side.lm.params, state, *data)


@partial(jax.jit, static_argnums=0)
def _measured(model: RWKV7, params: Any, state: State, tokens: Array, valid: Array) -> dict[str, Any]:
    apply: Any = model.apply
    start = surgery.broadcast(state, tokens.shape[0])
    start = start._replace(wkv=probe.Recorder(start.wkv))
    last = apply({"params": params}, tokens, start, valid=valid, method="hidden")[1].wkv
    x = last.seen

    def one(layer):
        r, log_w, k, kk, iclr = layer
        return mean_norm(influence.state_queries(r, log_w, k, -kk, kk * iclr, valid=valid), valid)

    q = jax.lax.map(one, (x.r, x.log_w, x.k, x.kk, x.iclr))
    psi = jax.vmap(lambda m, s: mean_norm(m.features(s), valid))(last.s, x) if isinstance(last.s, Residual) else None
    return {"q": q, "psi": psi}


def mean_norm(z: Float[Array, "B T H K"], valid: Array) -> Float[Array, "T"]:
    """|z_t|, mean over heads and the rows that are valid at t."""
    norms = jnp.linalg.norm(z.astype(jnp.float32), axis=-1).mean(-1)
    used = valid.astype(jnp.float32)
    return (norms * used).sum(0) / jnp.maximum(used.sum(0), 1.0)
