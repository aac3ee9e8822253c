"""The op under vmap, remat and scan, and which backward runs when s0 alone is differentiated."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pallas_kernels import wkv7
from pallas_kernels.bench.shapes import Shape, make_example
from pallas_kernels.chunked import op as chunked

SHAPE = Shape(2, 37, 2, 8, 8)
EVERY_INPUT = tuple(range(7))


@pytest.fixture
def arrays(rng):
    return [jnp.asarray(x) for x in make_example(rng, SHAPE).inputs.values()]


@pytest.fixture
def fitting(rng, fit):
    """As `arrays`, for the implementation at hand."""
    return [jnp.asarray(x) for x in make_example(rng, fit(SHAPE)).inputs.values()]


def loss(op, *arrays):
    y, s_last = op(*arrays)
    return jnp.sum(y**2) + jnp.sum(s_last**2)


def assert_close(result, expected):
    for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(y))))


def test_vmap_equals_a_loop(implementation, fitting):
    grad = jax.grad(partial(loss, partial(wkv7, implementation=implementation)), argnums=EVERY_INPUT)
    stacked = [jnp.stack([x, 0.9 * x]) for x in fitting]
    mapped = jax.jit(jax.vmap(grad))(*stacked)
    plain = jax.jit(grad)
    for i in range(2):
        assert_close([g[i] for g in mapped], plain(*(x[i] for x in stacked)))


def test_remat_and_scan_over_layers(implementation, fitting):
    op = partial(wkv7, implementation=implementation)
    r, log_w, k, v, a, b, s0 = fitting

    def layer(x, s):
        y, s = op(r, log_w, k, x, a, b, s)
        return 0.1 * y, s

    def scanned(v, states):
        y, finals = jax.lax.scan(jax.checkpoint(layer), v, states)
        return jnp.sum(y**2) + jnp.sum(finals**2)

    def looped(v, states):
        finals = []
        for s in states:
            v, s = layer(v, s)
            finals.append(s)
        return jnp.sum(v**2) + sum(jnp.sum(s**2) for s in finals)

    states = jnp.stack([s0, -s0])
    assert_close(*(jax.jit(jax.grad(f, argnums=(0, 1)))(v, states) for f in (scanned, looped)))


def test_gradient_of_the_state_alone_equals_the_full_one(implementation, fitting):
    plain = partial(loss, partial(wkv7, implementation=implementation))
    state_only, full = (jax.jit(jax.grad(plain, argnums=n))(*fitting) for n in (6, EVERY_INPUT))
    assert_close(state_only, full[6])


def test_what_is_differentiated_may_change_from_call_to_call(arrays):
    """JAX caches the traced op; residuals whose structure depended on the call would meet the wrong backward."""
    op = partial(wkv7, implementation="chunked")
    both, last = partial(loss, op), lambda *x: jnp.sum(op(*x)[1] ** 2)
    for f, wanted in ((both, EVERY_INPUT), (both, (6,)), (last, EVERY_INPUT), (last, (6,)), (both, (3,))):
        shapes = jax.eval_shape(jax.grad(f, argnums=wanted), *arrays)
        assert [x.shape for x in shapes] == [arrays[n].shape for n in wanted]


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))],
    ids=["plain", "jit", "remat", "both"],
)
def test_cheap_backward_is_chosen_by_what_is_differentiated(wrap, arrays):
    used = set()

    def schedule(rule):
        used.add(rule)
        return chunked.by_platform(rule)

    f = wrap(partial(loss, chunked.make_op(schedule)))
    jax.eval_shape(jax.grad(f, argnums=6), *arrays)
    assert used == {"forward", "state_backward"}
    jax.eval_shape(jax.grad(f, argnums=(3, 6)), *arrays)
    assert {"forward_saving", "backward"} <= used


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_the_schedule_of_the_platform_is_lowered(platform, arrays):
    """The accelerator schedule scans over chunks, never over the 37 tokens."""
    text = export.export(jax.jit(partial(wkv7, implementation="chunked")), platforms=[platform])(*arrays).mlir_module()
    assert text.count("stablehlo.while") == 1
    assert ("dense<37>" in text) == (platform == "cpu")
