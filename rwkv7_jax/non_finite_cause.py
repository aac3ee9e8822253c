"""Where numbers that are not finite come from, for the message where nothing can be chosen from them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from rwkv7_jax import streamed
from rwkv7_jax.checkpoint.files import some
from rwkv7_jax.checkpoint.names import released_items
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.functional import Params
from rwkv7_jax.layers import TRANSPOSED
from rwkv7_jax.sharding import host


@contextmanager
def cause_named(params: Params, states: Sequence[PyTree] = ()) -> Iterator[None]:
    """Adds to a `NonFiniteLogitsError` what it comes from, see `cause`."""
    try:
        yield
    except NonFiniteLogitsError as error:
        raise NonFiniteLogitsError(f"{error}: {cause(params, states)}") from None


def cause(params: Params, states: Sequence[PyTree] = ()) -> str:
    """Returns why an output is not finite: the weights, the initial states, or else the computation.

    Args:
      params: the model's weights, stacked or not.
      states: initial states.

    Returns:
      The cause and what to do, in one line.

    Example:
      >>> import jax.numpy as jnp
      >>> cause({"head": {"weight": jnp.array([[jnp.nan]])}})
      'NaN or infinite numbers in the weights head.weight; use a sound checkpoint'
    """
    flags = host(jax.tree.map(_finite_parts, streamed.plain(params)))
    if weights := [name.replace(TRANSPOSED, "weight") for name, sound in released_items(flags) if not np.all(sound)]:
        return f"NaN or infinite numbers in the weights {some(weights)}; use a sound checkpoint"
    if wrong := [str(number) for number, state in enumerate(states) if not _all_finite(state)]:
        number = f" number {', '.join(wrong)} of {len(states)}" if len(states) > 1 else ""
        return f"NaN or infinite numbers in the initial state{number}; use a sound one"
    return "weights and initial states are finite, so that a number overflows on the way; compute in float32"


def _finite_parts(leaf: Array | np.ndarray) -> Bool[Array, "N"]:
    """Whether each part along the first axis is finite."""
    return jnp.isfinite(leaf).all(tuple(range(1, np.ndim(leaf))))


def _all_finite(tree: PyTree) -> bool:
    return all(bool(host(jnp.isfinite(leaf).all())) for leaf in jax.tree.leaves(tree))
