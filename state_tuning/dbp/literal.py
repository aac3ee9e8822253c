"""Literal DBP: R inside the forward pass, which reads `y_t = y_t^0 + S~ R q_t` and so changes whenever R learns.

Offered beside `dbp.decorrelated`, which makes the same steps on S_0 = S~ R but never changes the function by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from state_tuning.core.train import Method
from state_tuning.dbp import transform

__all__ = ["Rotated", "decorrelated", "method"]


class Rotated(NamedTuple):
    """A trainable tree S~ and, for each of its matrices, the R through which it is read (None at other leaves)."""

    scaled: PyTree
    """S~, a tree like the inner method's."""
    r: PyTree
    """R [..., K, K] float32 for each of its matrices, the identity at start."""


def method(inner: Method) -> Method:
    """Returns the method `inner` with every matrix X of its trainable tree replaced by X~ R; no gradient reaches R.

    Args:
      inner: any method.

    Returns:
      A method of `Rotated` trees, to be moved by `decorrelated` of this module.
    """

    def product(trainable: Rotated) -> PyTree:
        return transform.apply_right(trainable.scaled, jax.lax.stop_gradient(trainable.r))

    def init() -> Rotated:
        scaled = inner.init()
        return Rotated(scaled, transform.identities(scaled))

    inner_full = inner.full
    full = inner_full and (lambda trainable: inner_full(product(trainable)))
    return Method(init, lambda trainable, batch_size: inner.graft(product(trainable), batch_size), full)


def decorrelated(
    inner: optax.GradientTransformation,
    rate: optax.ScalarOrSchedule = 0.1,
    kappa: ArrayLike = 0.5,
    every: ArrayLike = 1,
    decay: ArrayLike = 0.9,
    damping: ArrayLike = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transform for trees of `method`: `inner` moves S~, the rule moves R.

    Args:
      inner: the optimiser of S~, learning rate included.
      rate: step size of R in [0, 1), or a schedule of the number of updates.
      kappa: 0 decorrelates, 1 normalises variances, between them R whitens.
      every: R learns at every `every`-th update, from the first on; a whole number.
      decay: of the running mean of C; 0 takes each C alone.
      damping: added to the unit mean eigenvalue of C, at least 0.

    Returns:
      A transform whose update takes `correlations`, a tree like `Rotated.r` with C in each matrix's place.

    Raises:
      ValueError: a setting is out of range.
    """
    transform.check(every=every, decay=decay, damping=damping)
    inner = optax.with_extra_args_support(inner)
    learn = transform.rule(rate, kappa)

    def init(params: PyTree) -> transform.DecorrelatedState:
        return transform.initialized(inner.init(params.scaled), params.r)

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree = None,
        *,
        correlations: PyTree = None,
        **extra: PyTree,
    ) -> tuple[Rotated, transform.DecorrelatedState]:
        new = transform.observed(learn, state, correlations, every, decay, damping)
        scaled = None if params is None else params.scaled
        moved, inner_state = inner.update(updates.scaled, state.inner_state, scaled, correlations=correlations, **extra)
        step = jax.tree.map(jnp.subtract, new.r, state.r if params is None else params.r)
        return Rotated(moved, step), new._replace(inner_state=inner_state, count=transform.increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
