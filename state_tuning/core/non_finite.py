"""Non-finite updates: flags computed inside the step, and the host's message that names layer and step.

`optax.apply_if_finite` applies a bad update after a number of them in a row. Here a bad update is never applied; the
host raises after too many in a row.
"""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from rwkv7_jax.functional import Params
from rwkv7_jax.state import State

Tree = TypeVar("Tree")
Metrics = Mapping[str, ArrayLike]
"""What a step measures, by name."""
PLACES = ("att_shift", "wkv", "ffn_shift")
"""The parts of a state in the order in which a layer computes them."""
_MEANING = {
    "att_shift": "in the input of layer {0} (the output of the layer below, or the embedding)",
    "wkv": "in the time mix of layer {0}",
    "ffn_shift": "in the output of the time mix of layer {0}",
}

ADVICE = "lower the learning rate or check weights and data"

__all__ = [
    "NonFiniteError",
    "all_finite",
    "check_finite",
    "keep_if_finite",
    "layer_flags",
    "skip_message",
    "state_flags",
]


class NonFiniteError(ValueError):
    """Too many steps in a row with a non-finite loss or gradient; `check_finite` raises it.

    Example:
      >>> try:
      ...     check_finite({"applied": False, "consecutive": 5}, step=12)
      ... except NonFiniteError as error:
      ...     print(str(error).partition(": ")[0])
      step 12
    """


def state_flags(state: State) -> Bool[Array, "L 3"]:
    """Returns which parts of each layer's final state (batched) are finite, in the order of `PLACES`.

    A NaN at any token stays in wkv until the end of the sequence, so the first False names where it arose.

    Args:
      state: batched, as the model returns it after the last token.

    Returns:
      [L, 3], True where all values are finite.

    Example:
      >>> from rwkv7_jax import State
      >>> shift, wkv = jnp.zeros((2, 1, 4)), jnp.zeros((2, 1, 1, 4, 4))
      >>> state_flags(State(shift, shift, wkv.at[1, 0, 0, 2, 3].set(jnp.nan))).tolist()
      [[True, True, True], [True, False, True]]
    """
    return jnp.stack([layer_flags(getattr(state, name)) for name in PLACES], axis=1)


def layer_flags(tree: PyTree) -> Bool[Array, "L"]:
    """Returns whether every leaf of a tree is finite, for each layer.

    Args:
      tree: at least one leaf; all of them [L, ...], as gradients of a trainable tree are.

    Returns:
      [L], True where all values of a layer are finite.

    Example:
      >>> layer_flags({"s": jnp.array([[1.0, 2.0], [3.0, jnp.inf]])}).tolist()
      [True, False]
    """
    return jnp.stack([_finite_per_layer(leaf) for leaf in jax.tree.leaves(tree)]).all(0)


def weight_flags(params: Params) -> Bool[Array, "L"]:
    """Returns whether all that belongs to a layer is finite, in a tree like the model's weights (`block_0` and stacked
    or single later blocks), for each layer."""
    single = [name for name in params if name.startswith("block_")]
    flags = [all_finite(params[name])[None] for name in sorted(single, key=lambda name: int(name[6:]))]
    stacked = [layer_flags(params["blocks"])] if "blocks" in params else []
    return jnp.concatenate([*flags, *stacked])


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Returns whether every floating-point leaf of a tree is finite.

    Args:
      tree: any pytree of arrays with a floating-point leaf; integers are finite.

    Returns:
      A bool scalar.

    Example:
      >>> bool(all_finite({"loss": jnp.float32(1.0), "step": jnp.int32(3)})), bool(all_finite(jnp.array([jnp.nan])))
      (True, False)
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def select(ok: Bool[Array, "*S"], new: Tree, old: Tree) -> Tree:
    """Returns `new` where `ok`, else `old` bit for bit; leaves with fewer axes than `ok` are those of `new`."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b) if ok.ndim <= a.ndim else a, new, old)


def keep_if_finite(new: Tree, old: Tree, *causes: PyTree) -> tuple[Tree, Bool[Array, ""]]:
    """Applies an update only if it is sound.

    Args:
      new: the state after the update.
      old: the state before it.
      *causes: other trees that must be finite too, as loss and gradients.

    Returns:
      (`new` if it and all `causes` are finite, else `old` bit for bit; whether they are).

    Example:
      >>> import jax.numpy as jnp
      >>> kept, applied = keep_if_finite(jnp.array([1.0, jnp.nan]), jnp.array([1.0, 2.0]))
      >>> kept.tolist(), bool(applied)
      ([1.0, 2.0], False)
    """
    ok = all_finite((*causes, new))
    return select(ok, new, old), ok


def skip_message(metrics: Metrics, step: int, batch: int | None = None) -> str | None:
    """Describes a skipped update in one line.

    Reading the metrics waits for the step to finish.

    Args:
      metrics: those of `train.make_train_step`. Those of other steps need `applied`; without `state_finite` and
        `grad_finite` no layer is named.
      step: number of the step.
      batch: the number that its batch was drawn as, if it is another.

    Returns:
      The line, which names step, batch and layer; None if the update was applied.

    Example:
      >>> metrics = {"applied": False, "loss": 1.0, "state_finite": np.ones((2, 3), bool)}
      >>> skip_message(metrics | {"grad_finite": np.array([False, True])}, step=7)
      'step 7: update skipped, first non-finite value in the gradient of layer 0'
    """
    if jax.device_get(metrics["applied"]):
        return None
    place = f"step {step}" if batch is None else f"step {step}, batch {batch}"
    return f"{place}: update skipped, first non-finite value {_where(metrics)}"


def check_finite(metrics: Metrics, step: int, limit: int = 5) -> str | None:
    """Describes a skipped update as `skip_message` does, and ends a run of too many of them.

    Args:
      metrics: those of `train.make_train_step`, or of another step with `applied` and `consecutive`.
      step: number of the step.
      limit: skipped updates in a row that are too many.

    Returns:
      The line; None if the update was applied.

    Raises:
      NonFiniteError: `limit` or more updates in a row were skipped.

    Example:
      >>> check_finite({"applied": True, "consecutive": 0}, step=1)
      >>> check_finite({"applied": False, "consecutive": 2}, step=9)
      'step 9: update skipped, first non-finite value in a place that this step does not tell'
    """
    message = skip_message(metrics, step)
    if message is None:
        return None
    notfinite_count = int(jax.device_get(metrics["consecutive"]))
    if notfinite_count >= limit:
        raise NonFiniteError(f"{message}; {notfinite_count} in a row: {ADVICE}")
    return message


def _where(metrics: Metrics) -> str:
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
