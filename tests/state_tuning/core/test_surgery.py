"""The laws of the state algebra, by property."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax import State
from rwkv7_jax.wkv_state import Residual
from state_tuning.core import surgery

laws = settings(max_examples=8)
weights = st.floats(-2, 2, width=32)


@st.composite
def states(draw, count: int = 1):
    """Random unbatched states of one shape."""
    layers, heads, size = draw(st.sampled_from([(1, 2, 4), (3, 1, 3), (4, 2, 5)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = heads * size

    def one():
        shift = (layers, width)
        parts = (rng.normal(size=shape) for shape in (shift, shift, (layers, heads, size, size)))
        return State(*(jnp.asarray(part, jnp.float32) for part in parts))

    return one() if count == 1 else tuple(one() for _ in range(count))


def assert_same(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    jax.tree.map(np.testing.assert_array_equal, x, y)


def assert_near(x, y, tolerance=1e-6):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), x, y)


def upscaled(seed):
    """A state with a residual map; its matrices go by the seed, its map does not."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    s, s_ext = (jnp.asarray(rng.normal(size=(2, 1, 3, n)), jnp.float32) for n in (3, 4))
    supports, gamma = (jnp.asarray(fixed.uniform(size=shape), jnp.float32) for shape in ((2, 1, 4, 3), (2, 1)))
    shift = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    return State(shift, shift, Residual(s, s_ext, supports, gamma))


def test_the_map_of_an_upscaled_state_is_neither_scaled_nor_mixed():
    x, y = upscaled(1), upscaled(2)
    half = surgery.scale(x, 0.5).wkv
    np.testing.assert_array_equal(half.s_ext, 0.5 * x.wkv.s_ext)
    assert_same((half.supports, half.gamma), (x.wkv.supports, x.wkv.gamma))
    assert_near(surgery.diff(x, y), surgery.mix([x, y], [1, -1]))
    mean = surgery.mix([x, y], [0.5, 0.5]).wkv
    assert_near(mean, x.wkv._replace(s=(x.wkv.s + y.wkv.s) / 2, s_ext=(x.wkv.s_ext + y.wkv.s_ext) / 2))
    trainable, frozen = surgery.split(x, ("wkv/s", "wkv/s_ext"))
    assert_same(surgery.graft(surgery.scale(trainable, 1), frozen), x)
    other = y._replace(wkv=y.wkv._replace(gamma=2 * y.wkv.gamma))
    with pytest.raises(ValueError, match=r"state 1 has another map \(wkv/gamma\)"):
        surgery.mix([x, other], [1, 1])
    for refused in (surgery.info, lambda state: surgery.truncate_rank(state, 1)):
        with pytest.raises(ValueError, match="the state is upscaled"):
            refused(x)


def zeros_like(state):
    return jax.tree.map(jnp.zeros_like, state)


@laws
@given(states(), st.sets(st.sampled_from(State._fields)))
def test_graft_undoes_split(state, names):
    for where in (tuple(names), lambda path: path in names):
        trainable, frozen = surgery.split(state, where)
        assert {name for name in State._fields if getattr(trainable, name) is not None} == names
        assert surgery.size(trainable) + surgery.size(frozen) == surgery.size(state)
        assert_same(surgery.graft(trainable, frozen), state)
        assert_same(surgery.graft(frozen, trainable), state)


@laws
@given(states(2))
def test_graft_prefers_the_trainable_leaf(pair):
    x, y = pair
    assert_same(surgery.graft(x, y), x)
    assert_same(surgery.graft(surgery.split(x, "wkv")[0], y), y._replace(wkv=x.wkv))


def test_split_reaches_into_nested_trees():
    tree = {"a": {"b": jnp.ones(2), "c": jnp.zeros(2)}, "d": jnp.ones(1)}
    trainable, frozen = surgery.split(tree, lambda path: path.startswith("a/"))
    assert frozen["a"] == {"b": None, "c": None}
    assert trainable["d"] is None
    assert_same(surgery.graft(trainable, frozen), tree)


def test_split_refuses_an_unknown_name():
    state = State(*(jnp.zeros((1, 1)),) * 3)
    with pytest.raises(ValueError, match=r"no leaf 'kv' .* att_shift, ffn_shift, wkv"):
        surgery.split(state, "kv")


@laws
@given(states(), st.integers(1, 3))
def test_broadcast_rows_are_the_state(state, batch_size):
    batched = surgery.broadcast(state, batch_size)
    for row in range(batch_size):
        assert_same(jax.tree.map(lambda leaf, row=row: leaf[:, row], batched), state)
    gradient = jax.grad(lambda s: sum(leaf.sum() for leaf in jax.tree.leaves(surgery.broadcast(s, batch_size))))(state)
    assert_same(gradient, jax.tree.map(lambda leaf: jnp.full_like(leaf, batch_size), state))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_broadcast_shares_no_memory(batch_size):
    host = State(*(np.ones((2, 64), np.float32), np.ones((2, 64), np.float32), np.ones((2, 4, 16, 16), np.float32)))
    device = jax.tree.map(jnp.array, host)
    from_host, from_device = surgery.broadcast(host, batch_size), surgery.broadcast(device, batch_size)
    host.wkv[:] = 7.0
    assert (np.asarray(from_host.wkv) == 1.0).all()
    jax.tree.map(lambda leaf: leaf.delete(), from_device)
    assert_same(device.wkv, jnp.ones_like(device.wkv))


def test_broadcast_can_be_donated():
    shift = jnp.zeros((2, 8))
    batched = surgery.broadcast(State(shift, shift, jnp.zeros((2, 1, 8, 8))), 3)
    jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)(batched)
    assert not shift.is_deleted()


@laws
@given(states(3), weights, weights)
def test_mix_laws(triple, a, b):
    x, y, z = triple
    assert_same(surgery.mix([x], [1]), x)
    assert_same(surgery.mix([x, y], [a, b]), surgery.mix([y, x], [b, a]))
    assert_near(surgery.mix([surgery.mix([x, y], [1, 1]), z], [a, b]), surgery.mix([x, y, z], [a, a, b]), 1e-5)


@laws
@given(states(2))
def test_diff_laws(pair):
    x, y = pair
    assert_same(surgery.diff(x, x), zeros_like(x))
    assert_same(surgery.diff(x, zeros_like(x)), x)
    assert_same(surgery.diff(x, y), surgery.mix([x, y], [1, -1]))
    assert_near(surgery.mix([y, surgery.diff(x, y)], [1, 1]), x)


@laws
@given(states(), weights, weights)
def test_scale_laws(state, a, b):
    assert_same(surgery.scale(state, 1), state)
    assert_same(surgery.scale(state, 0), zeros_like(state))
    assert_same(surgery.scale(state, a), surgery.mix([state], [a]))
    assert_near(surgery.scale(surgery.scale(state, a), b), surgery.scale(state, a * b), 1e-5)


def test_mixing_needs_one_weight_a_state_and_one_shape():
    x, y = ({"wkv": jnp.zeros((n, 2))} for n in (1, 3))
    with pytest.raises(ValueError, match="2 states with 1 weights"):
        surgery.mix([x, x], [1])
    with pytest.raises(ValueError, match="0 states"):
        surgery.mix([], [])
    with pytest.raises(ValueError, match=r"wkv of shape \(3, 2\), the first has \(1, 2\)"):
        surgery.mix([x, y], [1, 1])
    with pytest.raises(ValueError, match="another structure"):
        surgery.diff(x, {"other": x["wkv"]})


@laws
@given(states(), st.data())
def test_select_layers_laws(state, data):
    n_layer = state.wkv.shape[0]
    chosen = data.draw(st.sets(st.integers(0, n_layer - 1)))
    others = [layer - n_layer for layer in range(n_layer) if layer not in chosen]
    kept = surgery.select_layers(state, chosen)
    assert_same(surgery.select_layers(state, range(n_layer)), state)
    assert_same(surgery.mix([kept, surgery.select_layers(state, others)], [1, 1]), state)
    assert_same(surgery.select_layers(kept, chosen), kept)
    with pytest.raises(ValueError, match=f"no layer {n_layer} "):
        surgery.select_layers(state, [n_layer])


@laws
@given(states(), st.data())
def test_truncate_rank_is_the_nearest_of_its_rank(state, data):
    size = state.wkv.shape[-1]
    assert_near(surgery.expand(surgery.truncate_rank(state, size)), state, 1e-5)
    rank = data.draw(st.integers(1, size))
    factored = surgery.truncate_rank(state, rank)
    assert factored.u.shape[-1] == factored.w.shape[-2] == rank
    low = surgery.expand(factored)
    left_out = np.linalg.svd(np.asarray(state.wkv, np.float64), compute_uv=False)[..., rank:]
    error = np.square(np.asarray(low.wkv, np.float64) - np.asarray(state.wkv, np.float64)).sum((-2, -1))
    np.testing.assert_allclose(error, np.square(left_out).sum(-1), rtol=1e-4, atol=1e-8)
    assert_near(surgery.expand(surgery.truncate_rank(low, rank)), low, 1e-5)
    with pytest.raises(ValueError, match=f"rank {size + 1} is not in 1..{size}"):
        surgery.truncate_rank(state, size + 1)


@laws
@given(states(), weights)
def test_info_is_homogeneous(state, a):
    before, after = surgery.info(state), surgery.info(surgery.scale(state, a))
    for name in ("att_shift_norm", "ffn_shift_norm", "wkv_norm", "wkv_max"):
        np.testing.assert_allclose(after[name], abs(a) * before[name], rtol=1e-5, atol=1e-30)
    flat = np.asarray(state.wkv, np.float64).reshape(state.wkv.shape[0], -1)
    np.testing.assert_allclose(before["wkv_norm"], np.sqrt(np.square(flat).sum(1)))


def test_info_counts_the_rank_of_a_head():
    wkv = np.zeros((3, 2, 4, 4), np.float32)
    wkv[0, 1] = np.outer(np.arange(4), np.ones(4))
    wkv[1, 0] = 3 * np.eye(4)
    info = surgery.info(State(np.zeros((3, 8)), np.zeros((3, 8)), wkv))
    np.testing.assert_allclose(info["wkv_rank"], [1, 4, 0], rtol=1e-6)
    np.testing.assert_array_equal(info["wkv_max"], [3, 3, 0])


def test_surgery_works_under_jit_vmap_and_grad():
    rng = np.random.default_rng(3)
    shapes = ((4, 6), (4, 6), (4, 2, 3, 3))
    x, y = (State(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)) for _ in range(2))

    def algebra(x, y, alpha):
        mixed = surgery.mix([surgery.scale(x, alpha), surgery.diff(x, y)], [alpha, 0.5])
        trainable, frozen = surgery.split(surgery.select_layers(mixed, [0, -1]), "wkv")
        return surgery.expand(surgery.truncate_rank(surgery.graft(trainable, frozen), 2))

    plain = algebra(x, y, jnp.float32(0.7))
    assert_near(jax.jit(algebra)(x, y, jnp.float32(0.7)), plain, 1e-5)
    alphas = jnp.asarray([0.7, 0.2])
    assert_near(jax.tree.map(lambda leaf: leaf[0], jax.vmap(algebra, (None, None, 0))(x, y, alphas)), plain, 1e-5)

    def norm(x):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(surgery.broadcast(surgery.scale(x, 0.5), 3)))

    assert_near(jax.grad(norm)(x), jax.tree.map(lambda leaf: 1.5 * leaf, x))
