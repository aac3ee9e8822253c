"""The non-finite guard: flags computed inside the step, and the host's sentence that names layer and step.

`optax.apply_if_finite` is no guard: after a number of bad updates in a row it applies one. Here a bad update is never
applied; the host raises after too many in a row.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from rwkv7_jax.state import State

PLACES = ("att_shift", "wkv", "ffn_shift")
"""The parts of a state in the order in which a layer computes them."""
_MEANING = {
    "att_shift": "in the input of layer {0} (the output of the layer below, or the embedding)",
    "wkv": "in the time mix of layer {0}",
    "ffn_shift": "in the output of the time mix of layer {0}",
}

ADVICE = "lower the learning rate or check weights and data"


class NonFiniteError(ValueError):
    """Too many steps in a row with a non-finite loss or gradient."""


def state_flags(state: State) -> Bool[Array, "L 3"]:
    """Which parts of each layer's final state (batched) are finite, in the order of `PLACES`.

    A NaN at any token stays in wkv until the end of the row, so the first False names where it arose.
    """
    return jnp.stack([layer_flags(getattr(state, name)) for name in PLACES], axis=1)


def layer_flags(tree: Any) -> Bool[Array, "L"]:
    """Whether every leaf [L, ...] of a tree is finite, for each layer."""
    return jnp.stack([_finite_per_layer(leaf) for leaf in jax.tree.leaves(tree)]).all(0)


def weight_flags(params: Mapping[str, Any]) -> Bool[Array, "L"]:
    """Whether everything that belongs to a layer is finite, in a tree like the model's weights (`block_0` and stacked
    or single later blocks), for each layer."""
    single = [name for name in params if name.startswith("block_")]
    flags = [all_finite(params[name])[None] for name in sorted(single, key=lambda name: int(name[6:]))]
    stacked = [layer_flags(params["blocks"])] if "blocks" in params else []
    return jnp.concatenate([*flags, *stacked])


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every floating-point leaf of a tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def select(ok: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` if ok, else `old` bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def skipped(metrics: Mapping[str, Any], step: int, batch: int | None = None) -> str | None:
    """One line about a skipped update, naming step, batch (the number it was drawn as, if given) and layer; None if the
    update was applied.

    Reads the metrics of `train.make_train_step` on the host, which waits for the step to finish. Those of other steps
    need `applied`; without `state_finite` and `grad_finite` no layer is named.
    """
    if jax.device_get(metrics["applied"]):
        return None
    place = f"step {step}" if batch is None else f"step {step}, batch {batch}"
    return f"{place}: update skipped, first non-finite value {_where(metrics)}"


def check_finite(metrics: Mapping[str, Any], step: int, limit: int = 5) -> str | None:
    """As `skipped`. Raises: NonFiniteError if `limit` or more updates in a row were skipped."""
    message = skipped(metrics, step)
    if message is None:
        return None
    consecutive = int(jax.device_get(metrics["consecutive"]))
    if consecutive >= limit:
        raise NonFiniteError(f"{message}; {consecutive} in a row: {ADVICE}")
    return message


def _where(metrics: Mapping[str, Any]) -> str:
    if "state_finite" not in metrics:
        return "in a place that this step does not tell"
    forward = np.asarray(jax.device_get(metrics["state_finite"]))
    backward = np.asarray(jax.device_get(metrics["grad_finite"]))
    if not forward.all():
        layer, place = np.argwhere(~forward)[0]
        return _MEANING[PLACES[place]].format(layer)
    if not np.isfinite(jax.device_get(metrics["loss"])):
        return f"after the time mix of layer {len(forward) - 1}, the last: in its channel mix, the head or the loss"
    if not backward.all():
        return f"in the gradient of layer {np.argwhere(~backward)[-1, 0]}"
    return "in the optimiser's update, of finite gradients"


def _finite_per_layer(leaf: Array) -> Bool[Array, "L"]:
    return jnp.isfinite(leaf).all(tuple(range(1, leaf.ndim)))
