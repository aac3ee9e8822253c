"""Decorrelated backpropagation (DBP) as an optax transform: right-preconditioning learnt from input correlations.

DBP (Dalm et al. 2024, arXiv 2405.02385; Ahmad 2024, arXiv 2407.10780) feeds a layer with `x~ = R x` and learns R by

    R <- R - rate [(1 - kappa) offdiag(C~) + kappa diag(C~ - I)] R,      C~ = E[x~ x~^T],  R_0 = I.

A matrix W that acts on x as `W = W~ R` has the gradient `G R^T` with respect to W~, and a step dW~ moves W by dW~ R. So
the forward pass can stay as it is: `decorrelated` hands the wrapped optimiser `G R^T` and multiplies its update by R. A
gradient step thereby becomes `-eta G R^T R`, and full whitening, R^T R = C^-1, is one-sided K-FAC. For a state tuned by
this project W is S_0 and x is q_t (see `queries`), or W is S_ext and x is psi(r_t); `make_correlate` measures C.

The transforms know nothing of states: they take any pytree of matrices [..., M, K], for example

    optimizer = dbp.decorrelated(optax.adam(1e-2), rate=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim == 2, p))
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(grads, opt_state, params, correlations=c)    # c[leaf] = E[x x^T], [..., K, K]
"""

import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from state_tuning.dbp.preconditioner import decorrelate, identity_like, inverse_root, precondition, product

__all__ = [
    "DecorrelatedState",
    "condition_numbers",
    "decorrelate",
    "decorrelated",
    "inverse_root",
    "precondition",
    "whitened",
]

Learn = Callable[[Array, Array, Int[Array, ""]], Array]
"""(R, running mean of C, updates so far) -> R"""
Mask = PyTree | Callable[[PyTree], PyTree] | None


class DecorrelatedState(NamedTuple):
    """State of `decorrelated` and `whitened`; `r`, `mean` and `looks` are None at leaves that pass untouched."""

    inner_state: optax.OptState
    """Of the wrapped optimiser."""
    r: PyTree
    """R [..., K, K] float32 of every matrix, the identity at start."""
    mean: PyTree
    """Running mean [..., K, K] float32 of C brought to trace K, damped; the identity before the first."""
    count: Int[Array, ""]
    """Updates so far."""
    looks: PyTree
    """The count of C [..., 1, 1] int32 in each running mean; those that are zero or not finite are left out."""


def decorrelated(
    inner: optax.GradientTransformation,
    rate: optax.ScalarOrSchedule = 0.1,
    kappa: ArrayLike = 0.5,
    every: ArrayLike = 1,
    decay: ArrayLike = 0.9,
    damping: ArrayLike = 1e-3,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps any optimiser in decorrelated backpropagation; with rate 0 it is that optimiser bit for bit.

    Before each use R learns from the running mean of `C K / tr C + damping I` (so rates do not depend on the scale of
    x). Two guards keep it bounded: the bracket of the rule is cut to Frobenius norm 1, so that for rate < 1 R stays
    invertible, and R is scaled to `tr C~ = K`, so that R x has the mean square of x and `inner` keeps its step size in
    the output (gain normalisation). A correlation that is zero or not finite is ignored. A gradient entry that
    is not finite spoils its whole row, at rate 0 too: optax.zero_nans belongs before this transform.

    Args:
      inner: the optimiser, learning rate included; sees `G R^T`. Weight decay belongs after this transform.
      rate: step size of R in [0, 1), or a schedule of the number of updates.
      kappa: 0 decorrelates, 1 normalises variances, between them R whitens.
      every: R learns at every `every`-th update, from the first on; a whole number.
      decay: of the running mean of C, which is the plain mean of the first 1 / (1 - decay); 0 takes each C alone.
      damping: added to the unit mean eigenvalue of C, at least 0; bounds the condition number that is undone.
      mask: a pytree of bools like params, or a function that makes it; False leaves pass to `inner` untouched, as do
        leaves with fewer than two axes. None: all matrices.

    Returns:
      A transform whose update takes `correlations`, a pytree like params with C = E[x x^T], `[..., K, K]`, in each
      matrix's place (None: R stays), or a function () -> that pytree, called only when R learns. It and all other
      extra arguments are handed to `inner` too. `update(g, state, params, correlations=None, **extra)`.

    Raises:
      ValueError: a setting is out of range; while tracing, a C has the wrong shape or is complex.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params, grads = jnp.zeros((3, 2)), jnp.ones((3, 2))
      >>> optimizer = decorrelated(optax.sgd(1.0), rate=0.1)
      >>> c = jnp.array([[1.0, 0.5], [0.5, 1.0]])
      >>> updates, state = optimizer.update(grads, optimizer.init(params), params, correlations=c)
      >>> updates.shape, state.r.shape
      ((3, 2), (2, 2))
    """
    check(every=every, decay=decay, damping=damping)
    return _right_preconditioned(inner, rule(rate, kappa), every, decay, damping, mask)


def whitened(
    inner: optax.GradientTransformation,
    every: ArrayLike = 1,
    decay: ArrayLike = 0.9,
    damping: ArrayLike = 1e-3,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps any optimiser in exact whitening: `R = C^(-1/2)` of the running mean, by eigendecomposition, tr C~ = K.

    The exact control of `decorrelated`.

    Args:
      inner: the optimiser, learning rate included; sees `G R^T`.
      every: R is made anew at every `every`-th update, from the first on; a whole number.
      decay: of the running mean of C, which is the plain mean of the first 1 / (1 - decay); 0 takes each C alone.
      damping: added to the unit mean eigenvalue of C; with 0 see `inverse_root` for a singular C.
      mask: which leaves are preconditioned, as for `decorrelated`.

    Returns:
      A transform whose update takes `correlations`, as that of `decorrelated`.

    Raises:
      ValueError: a setting is out of range; while tracing, a C has the wrong shape or is complex.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params, grads = jnp.zeros((1, 2)), jnp.array([[1.0, 1.0]])
      >>> optimizer = whitened(optax.sgd(1.0), damping=0.0)
      >>> c = jnp.array([[1.6, 0.0], [0.0, 0.4]])
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params, correlations=c)  # - grads C^-1
      >>> [round(x, 3) for x in updates[0].tolist()]
      [-0.625, -2.5]
    """
    check(every=every, decay=decay, damping=damping)
    return _right_preconditioned(inner, lambda r, mean, count: inverse_root(mean), every, decay, damping, mask)


def rule(rate: optax.ScalarOrSchedule, kappa: ArrayLike) -> Learn:
    """Returns `decorrelate` with its settings, as a function (R, mean of C, count) -> R."""
    check(rate=rate, kappa=kappa)

    def learn(r: Array, mean: Array, count: Int[Array, ""]) -> Array:
        step = rate(count) if callable(rate) else rate
        return decorrelate(r, mean, jnp.asarray(step, jnp.float32), jnp.asarray(kappa, jnp.float32))

    return learn


def condition_numbers(state: DecorrelatedState) -> PyTree:
    """Computes the condition number of C~ for every matrix, from the running mean of C; DBP brings it towards one.

    Args:
      state: of `decorrelated` or `whitened`, after some updates.

    Returns:
      A tree like `state.r`, its leaves [...]; one for a matrix that has learnt nothing yet.
    """

    def one(r: Array, mean: Array) -> Array:
        values = jnp.linalg.eigvalsh(precondition(r, mean))
        return values[..., -1] / values[..., 0]

    return jax.tree.map(one, state.r, state.mean)


def _right_preconditioned(
    inner: optax.GradientTransformation,
    learn: Learn,
    every: ArrayLike,
    decay: ArrayLike,
    damping: ArrayLike,
    mask: Mask,
) -> optax.GradientTransformationExtraArgs:
    """The transform around `inner` whose R is `learn(R, mean of C, count)`."""
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> DecorrelatedState:
        return initialized(inner.init(params), identities(params, mask))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, correlations: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, DecorrelatedState]:
        state = observed(learn, state, correlations, every, decay, damping)
        seen = apply_right(updates, jax.tree.map(lambda x: jnp.swapaxes(x, -1, -2), state.r))
        moved, inner_state = inner.update(seen, state.inner_state, params, correlations=correlations, **extra)
        return apply_right(moved, state.r), state._replace(inner_state=inner_state, count=increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def initialized(inner_state: optax.OptState, r: PyTree) -> DecorrelatedState:
    """Returns the state at the first update; `r` is copied."""
    counts = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-2], 1, 1), jnp.int32), r)
    r, mean = (jax.tree.map(jnp.copy, r) for _ in range(2))
    return DecorrelatedState(inner_state, r, mean, jnp.zeros((), jnp.int32), counts)


def increment(count: Int[Array, "*L"]) -> Int[Array, "*L"]:
    """Returns count + 1, without overflow."""
    return jnp.asarray(optax.safe_increment(count))


def observed(
    learn: Learn,
    state: DecorrelatedState,
    correlations: PyTree,
    every: ArrayLike,
    decay: ArrayLike,
    damping: ArrayLike,
) -> DecorrelatedState:
    """Returns the state with R, mean and their counts after one update, unchanged where nothing is to be learnt."""
    if correlations is None:
        return state

    def one(r: Array | None, mean: Array | None, count: Array | None, c: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        if r is None or mean is None or count is None or c is None:
            return r, mean, count
        if c.shape != r.shape:
            raise ValueError(f"correlations: a matrix with R {r.shape} needs C of that shape, got {c.shape}")
        if jnp.iscomplexobj(c):
            raise ValueError(f"correlations: C must be real, got {c.dtype}")
        times = count.astype(jnp.float32)
        keep = jnp.minimum(jnp.asarray(decay, jnp.float32), times / (times + 1))
        trace = jnp.trace(c.astype(jnp.float32), axis1=-2, axis2=-1)[..., None, None]
        ridge = jnp.asarray(damping, jnp.float32)
        usual = c.astype(jnp.float32) * (r.shape[-1] / trace) + ridge * identity_like(r)
        average = keep * mean + (1 - keep) * usual
        new = learn(r, average, state.count)
        finite = jnp.isfinite(new) & jnp.isfinite(average)
        sound = (trace > 0) & finite.all((-2, -1), keepdims=True)
        return jnp.where(sound, new, r), jnp.where(sound, average, mean), jnp.where(sound, increment(count), count)

    old = (state.r, state.mean, state.looks)

    def learning() -> tuple[PyTree, ...]:
        c = correlations() if callable(correlations) else correlations
        leaves, structure = jax.tree.flatten(state.r, is_leaf=_is_none)
        others = (structure.flatten_up_to(tree) for tree in (state.mean, state.looks, c))
        new = [one(*matrix) for matrix in zip(leaves, *others, strict=True)]
        return tuple(structure.unflatten([parts[i] for parts in new]) for i in range(3))

    r, mean, counts = jax.lax.cond(state.count % _period(every) == 0, learning, lambda: old)
    return state._replace(r=r, mean=mean, looks=counts)


def identities(params: PyTree, mask: Mask = None) -> PyTree:
    """Returns an identity [..., K, K] float32 for every matrix [..., M, K] that `mask` lets through, else None."""
    chosen = mask(params) if callable(mask) else mask

    def one(leaf: PyTree, yes: bool | Array = True) -> Array | None:
        if not yes or getattr(leaf, "ndim", 0) < 2:
            return None
        size = leaf.shape[-1]
        return jnp.broadcast_to(jnp.eye(size, dtype=jnp.float32), (*leaf.shape[:-2], size, size))

    trees = (params,) if chosen is None else (params, chosen)
    return jax.tree.map(one, *trees, is_leaf=_is_masked)


def apply_right(tree: PyTree, r: PyTree) -> PyTree:
    """Computes X R for every matrix X, at least in float32, returned in X's dtype; leaves without R as they are."""

    def one(x: PyTree, r: Array | None) -> PyTree:
        if r is None or _is_masked(x):
            return x
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(x.dtype, jnp.float32)
        return product(x.astype(dtype), r.astype(dtype)).astype(x.dtype)

    return jax.tree.map(one, tree, r, is_leaf=_is_masked)


def _is_none(leaf: object) -> bool:
    return leaf is None


def _is_masked(leaf: object) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _period(every: ArrayLike) -> Int[Array, ""]:
    return jnp.asarray(every).astype(jnp.int32)


def check(
    rate: optax.ScalarOrSchedule = 0.0,
    kappa: ArrayLike = 0.0,
    every: ArrayLike = 1,
    decay: ArrayLike = 0.0,
    damping: ArrayLike = 0.0,
) -> None:
    """Checks the ranges of settings that are plain numbers (others are schedules, or injected arrays).

    Raises:
      ValueError: one is out of range.
    """
    ranges = (
        ("rate", rate, lambda x: 0 <= x < 1, "at least 0 and below 1"),
        ("kappa", kappa, lambda x: 0 <= x <= 1, "between 0 and 1"),
        ("every", every, lambda x: x >= 1 and x % 1 == 0, "a whole number, at least 1"),
        ("decay", decay, lambda x: 0 <= x <= 1, "between 0 and 1"),
        ("damping", damping, lambda x: 0 <= x < float("inf"), "at least 0 and finite"),
    )
    for name, value, good, text in ranges:
        if isinstance(value, numbers.Real) and not good(value):
            raise ValueError(f"dbp: {name} is {value}, it must be {text}")
