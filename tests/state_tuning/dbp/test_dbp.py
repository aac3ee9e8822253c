"""DBP: the rule, its identity with the inner optimiser, and the contract that optax's own transforms keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, zero_state
from state_tuning.core import objective, train
from state_tuning.dbp import correlations as probe
from state_tuning.dbp import literal, transform
from tests.rwkv7_jax.test_model import noisy

PARAMS = {"w": jnp.zeros((2, 3, 4), jnp.float32), "half": jnp.zeros((5, 4), jnp.bfloat16), "b": jnp.zeros(3)}
TRANSFORMS = {
    "decorrelated": functools.partial(transform.decorrelated, rate=0.3, decay=0.0),
    "whitened": transform.whitened,
}


def correlated(seed=0, size=4, lead=(), spread=3.0):
    """A random correlation matrix with eigenvalues over `spread` orders of magnitude."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(*lead, size, size)))[0]
    values = np.logspace(0, -spread, size)
    return jnp.asarray(np.einsum("...ij,j,...kj->...ik", basis, values, basis), jnp.float32)


def correlations(seed=0):
    return {"w": correlated(seed, lead=(2,)), "half": correlated(seed + 1), "b": None}


def gradients(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), PARAMS)


def run(optimizer, steps=4, c=None, params=PARAMS):
    """Updates of every step and the last state."""
    with jax.numpy_dtype_promotion("standard"):
        state, out = optimizer.init(params), []
        update = jax.jit(optimizer.update)
        for i in range(steps):
            updates, state = update(gradients(i), state, params, **({} if c is None else {"correlations": c}))
            out.append(updates)
    return out, state


@functools.cache
def plain():
    return run(optax.adam(0.1))[0]


def same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_rate_zero_is_the_inner_optimiser_bit_for_bit():
    moved, state = run(transform.decorrelated(optax.adam(0.1), rate=0.0), c=correlations())
    same(moved, plain())
    np.testing.assert_array_equal(state.r["w"], np.broadcast_to(np.eye(4), (2, 4, 4)))
    same(run(transform.decorrelated(optax.adam(0.1)))[0], plain())


@pytest.mark.parametrize("dtype", ["complex64", "float64", "float16"])
def test_rate_zero_is_the_inner_optimiser_in_any_dtype(dtype):
    rng = np.random.default_rng(0)
    real, imaginary = rng.normal(size=(2, 3, 4))
    with jax.enable_x64(True):
        g = jnp.asarray(real + 1j * imaginary if dtype == "complex64" else real, dtype)
        optimizer = transform.decorrelated(optax.sgd(1.0), rate=0.0)
        same(optimizer.update(g, optimizer.init(g), g, correlations=correlated())[0], -g)


@pytest.mark.parametrize("size", [1.0, 40.0])
def test_one_step_of_the_rule(size):
    """R - rate [(1 - kappa) offdiag(C~) + kappa diag(C~ - I)] R, the bracket of norm 1 at most, in float64."""
    rng = np.random.default_rng(1)
    r = np.eye(4) + 0.1 * rng.normal(size=(4, 4))
    c = size * (0.1 * np.asarray(correlated(2, spread=1.0), np.float64) + 0.2 * np.eye(4))
    after = r @ c @ r.T
    bracket = 0.7 * (after - np.diag(np.diag(after))) + 0.3 * np.diag(np.diag(after) - 1)
    norm = np.linalg.norm(bracket)
    assert (norm > 1) == (size > 1)
    new = r - 0.2 * bracket / max(norm, 1) @ r
    new *= np.sqrt(4 / np.trace(new @ c @ new.T))
    found = transform.decorrelate(*(jnp.asarray(x, jnp.float32) for x in (r, c, 0.2, 0.3)))
    np.testing.assert_allclose(found, new, rtol=1e-5, atol=1e-6)


def test_the_update_is_right_preconditioned():
    """With plain gradient descent the update is -eta G R^T R."""
    (update, *_), state = run(transform.decorrelated(optax.sgd(0.5), rate=0.3), steps=1, c=correlations())
    g, r = np.asarray(gradients(0)["w"], np.float64), np.asarray(state.r["w"], np.float64)
    np.testing.assert_allclose(update["w"], -0.5 * g @ np.swapaxes(r, -1, -2) @ r, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(update["b"], -0.5 * gradients(0)["b"])


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_the_condition_number_falls_monotonically(spread):
    c = {"w": correlated(3, lead=(2,), spread=spread)}
    optimizer = transform.decorrelated(optax.sgd(1.0), rate=0.3, damping=0.0)
    state = optimizer.init({"w": PARAMS["w"]})
    update = jax.jit(optimizer.update)
    numbers = [np.full(2, 10.0**spread)]
    for _ in range(40):
        _, state = update({"w": gradients(0)["w"]}, state, None, correlations=c)
        numbers.append(np.asarray(transform.condition_numbers(state)["w"]))
    numbers = np.stack(numbers)
    assert (np.diff(numbers, axis=0) <= 1e-4 * numbers[:-1]).all()
    assert (numbers[-1] < 0.3 * numbers[0]).all()


def test_the_gain_keeps_the_mean_square_of_the_input():
    _, state = run(transform.decorrelated(optax.sgd(1.0), rate=0.9, decay=0.0), steps=6, c=correlations(5))
    power = np.trace(transform.precondition(state.r["w"], state.mean["w"]), axis1=-2, axis2=-1)
    np.testing.assert_allclose(power, 4, rtol=1e-4)


def test_exact_whitening():
    """R C R^T = I after the first step, and the gradient is G C^-1 up to the scale of C."""
    c = correlations(4)
    _, state = run(transform.whitened(optax.sgd(1.0), damping=0.0), steps=1, c=c)
    white = transform.precondition(state.r["w"], state.mean["w"])
    np.testing.assert_allclose(white, np.broadcast_to(np.eye(4), (2, 4, 4)), atol=2e-3)
    np.testing.assert_allclose(jnp.trace(state.mean["w"], axis1=-2, axis2=-1), 4, rtol=1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, 0.0])
def test_bad_correlations_teach_nothing(bad):
    c = jax.tree.map(lambda x: jnp.full_like(x, bad), correlations())
    for make in TRANSFORMS.values():
        moved, state = run(make(optax.adam(0.1)), c=c)
        same(moved, plain())
        np.testing.assert_array_equal(state.mean["half"], np.eye(4))


def test_the_mean_is_of_the_correlations_that_taught():
    """The plain mean of the first 1 / (1 - decay), matrix by matrix, then a fading one; brought to trace K, damped."""
    optimizer = transform.decorrelated(
        optax.sgd(1.0), rate=lambda count: jnp.where(count < 6, 0.0, 0.3), decay=0.7, damping=0.2
    )
    params = {"w": PARAMS["w"]}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(3):
        _, state = update(params, state)
    mean, times = np.stack([np.eye(4)] * 2), np.zeros((2, 1, 1), np.int32)
    for i in range(7):
        c = np.array(correlated(i, lead=(2,)))
        unit = c * (4 / np.trace(c, axis1=1, axis2=2)[:, None, None]) + 0.2 * np.eye(4)
        sound = np.array([i not in (0, 1, 4), i != 2])[:, None, None]
        keep = np.minimum(0.7, times / (times + 1))
        mean, times = np.where(sound, keep * mean + (1 - keep) * unit, mean), times + sound
        c[~sound[:, 0, 0], 0, 1] = np.nan
        _, state = update(params, state, correlations={"w": jnp.asarray(c)})
        np.testing.assert_allclose(state.mean["w"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.looks["w"], times)
    assert np.isfinite(state.r["w"]).all()


def test_whitening_learns_from_a_singular_correlation():
    c, p = jnp.diag(jnp.array([0.0, 3.0, 0.0, 1.0])), jnp.zeros((3, 4))
    optimizer = transform.whitened(optax.sgd(1.0), damping=0.0)
    _, state = optimizer.update(p, optimizer.init(p), correlations=c)
    np.testing.assert_allclose(transform.precondition(state.r, c), np.diag([0, 1, 0, 1]), atol=1e-3)


def test_the_state_maps_like_parameters():
    """Over a leading axis by vmap, and leaf by leaf with the rank of its matrix by optax.tree_map_params."""
    optimizer = transform.decorrelated(optax.sgd(1.0), rate=0.3)
    p, g, c = PARAMS["w"], gradients(0)["w"], correlated(lead=(2,))
    state = jax.vmap(optimizer.init)(p)
    mapped = jax.vmap(lambda g, state, c: optimizer.update(g, state, correlations=c))(g, state, c)
    whole = optimizer.update(g, optimizer.init(p), correlations=c)
    np.testing.assert_allclose(mapped[0], whole[0], rtol=1e-6)
    same(mapped[1].looks, whole[1].looks)
    ranks = optax.tree_map_params(optimizer, lambda leaf: leaf.ndim, whole[1])
    assert (ranks.r, ranks.mean, ranks.looks) == (3, 3, 3)


def test_every_learns_at_every_nth_update_and_calls_only_then():
    optimizer = transform.decorrelated(optax.sgd(1.0), every=3)
    state, before = optimizer.init(PARAMS), None
    changed = []
    for i in range(5):
        _, state = optimizer.update(gradients(i), state, PARAMS, correlations=lambda: correlations())
        changed.append(before is None or bool((state.r["w"] != before).any()))
        before = state.r["w"]
    assert changed == [True, False, False, True, False]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_contract_of_optax(name):
    """Dtypes kept, no recompilation, extra arguments handed on, chain, masked, MultiSteps, schedules."""
    make, seen = TRANSFORMS[name], []

    def spy_update(updates, state, params=None, *, value, **extra):
        seen.append((value, sorted(extra)))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), spy_update)
    make(spy).update(PARAMS, make(spy).init(PARAMS), PARAMS, correlations=correlations(), value=3.0, other=1)
    assert seen == [(3.0, ["correlations", "other"])]

    bare, state = run(make(optax.sgd(1.0)), c=correlations())
    assert jax.tree.map(lambda x: x.dtype, bare[-1]) == jax.tree.map(lambda x: x.dtype, PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.r)} == {jnp.dtype(jnp.float32)}
    optimizer = make(optax.adam(0.1))
    step, state = jax.jit(optimizer.update), optimizer.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for i in range(3):
            _, state = step(gradients(i), state, PARAMS, correlations=correlations(i))
    assert step._cache_size() == 1

    chained, _ = run(optax.chain(optax.identity(), make(optax.identity()), optax.scale(-1.0)), c=correlations())
    same(chained, bare)
    mask = {"w": True, "half": False, "b": False}
    masked, _ = run(optax.masked(make(optax.sgd(1.0)), mask), c=correlations())
    same(masked[-1]["w"], bare[-1]["w"])
    same(masked[-1]["half"], gradients(3)["half"])
    own, _ = run(make(optax.sgd(1.0), mask=mask), c=correlations())
    same(own[-1]["w"], bare[-1]["w"])
    same(own[-1]["half"], -gradients(3)["half"])
    many = optax.MultiSteps(make(optax.sgd(1.0)), every_k_schedule=2)
    moved, _ = run(many.gradient_transformation(), c=correlations())
    assert not np.any(moved[0]["w"])
    assert np.any(moved[1]["w"])


def test_hyperparameters_can_be_injected_and_scheduled():
    injected = optax.inject_hyperparams(transform.decorrelated)(optax.sgd(1.0), rate=0.3, decay=0.0)
    expected, _ = run(transform.decorrelated(optax.sgd(1.0), rate=0.3, decay=0.0), c=correlations())
    moved, state = run(injected, c=correlations())
    assert float(state.hyperparams["rate"]) == np.float32(0.3)
    np.testing.assert_allclose(moved[-1]["w"], expected[-1]["w"], rtol=1e-6)
    off = transform.decorrelated(optax.adam(0.1), rate=lambda count: jnp.where(count < 0, 0.5, 0.0))
    same(run(off, c=correlations())[0], plain())


def test_any_tree_and_shapes_without_values():
    params = (jnp.zeros((2, 3)), [jnp.zeros(()), None, jnp.zeros((4, 1, 2, 2))])
    optimizer = transform.decorrelated(optax.sgd(1.0))
    state = jax.eval_shape(optimizer.init, params)
    assert [leaf.shape for leaf in jax.tree.leaves(state.r)] == [(3, 3), (4, 1, 2, 2)]
    c = (jnp.eye(3), [None, None, jnp.broadcast_to(jnp.eye(2), (4, 1, 2, 2))])
    updates, _ = optimizer.update(params, optimizer.init(params), params, correlations=c)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_mistakes_are_one_line():
    for wrong, line in (
        ({"rate": 2.0}, "dbp: rate is 2.0, it must be at least 0 and below 1"),
        ({"rate": 1.0}, "rate is 1"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"kappa": -1}, "kappa is -1"),
        ({"kappa": np.float32(3)}, "kappa is 3"),
        ({"every": 0}, "every is 0"),
        ({"every": np.int64(0)}, "every is 0"),
        ({"every": 1.5}, "every is 1.5, it must be a whole number, at least 1"),
        ({"decay": np.float64(1.5)}, "decay is 1.5"),
        ({"damping": -1}, "damping is -1"),
    ):
        for make in (transform.decorrelated, transform.whitened)[: 1 if {"rate", "kappa"} & wrong.keys() else 2]:
            with pytest.raises(ValueError, match=line):
                make(optax.sgd(1.0), **wrong)
    optimizer = transform.decorrelated(optax.sgd(1.0))
    with pytest.raises(ValueError, match=r"needs C of that shape, got \(3, 3\)"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), correlations=correlations() | {"half": jnp.eye(3)})
    with pytest.raises(ValueError, match="C must be real, got complex64"):
        optimizer.update(
            PARAMS, optimizer.init(PARAMS), correlations=correlations() | {"half": jnp.eye(4, dtype=jnp.complex64)}
        )


CONFIG = RWKV7Config(31, 1, 16, head_size=4, decay_lora=4, aaa_lora=4, mv_lora=4, gate_lora=4)
MODEL = RWKV7(CONFIG)
TUNE = train.TuneConfig(learning_rate=0.05, warmup=1, loss_chunk=8, clip_norm=0.0)


@pytest.fixture(scope="module")
def params():
    init = jax.jit(lambda key: MODEL.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(CONFIG, 1)))
    return noisy(init(jax.random.key(0))["params"], jax.random.key(1))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(2)
    rows = [objective.Example(rng.integers(1, 31, 14).astype(np.int32), 3, 0) for _ in range(4)]
    return objective.collate(rows, 13)


def test_the_probe_sees_only_its_sample(params, batch):
    method = train.standard(CONFIG, TUNE)
    correlate = jax.jit(probe.make_correlate(MODEL, method, sample=0.5))

    def seen(row):
        """C with other tokens in one of the four rows."""
        tokens = jnp.asarray(batch["tokens"])
        return correlate(params, method.init(), batch | {"tokens": tokens.at[row].set(tokens[row, ::-1])}).wkv

    np.testing.assert_array_equal(seen(2), seen(3))
    assert np.any(seen(1) != seen(2))


def trajectory(params, batch, optimizer, method=None, steps=9):
    """Losses and the last state of a few steps, compiled once."""
    method = method or train.standard(CONFIG, TUNE)
    step = train.make_train_step(MODEL, optimizer, TUNE, method, probe.make_correlate(MODEL, method, sample=0.5))
    tuned, losses = train.init(optimizer, method.init()), []
    for _ in range(steps):
        tuned, metrics = step(params, tuned, batch)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    return losses, tuned


@pytest.fixture(scope="module")
def adam_losses(params, batch):
    return trajectory(params, batch, train.make_optimizer(TUNE))[0]


def late(count):
    """Learn nothing in the first three updates: until then the inner optimiser, bit for bit."""
    return jnp.where(count < 3, 0.0, 0.3)


def test_the_step_feeds_dbp_from_the_probe(params, batch, adam_losses):
    losses, tuned = trajectory(params, batch, transform.decorrelated(train.make_optimizer(TUNE), rate=late))
    assert losses[:4] == adam_losses[:4]
    assert losses[4:] != adam_losses[4:]
    assert losses[-1] < losses[0] - 0.05
    numbers = np.asarray(transform.condition_numbers(tuned.opt_state).wkv)
    raw = np.linalg.cond(np.asarray(tuned.opt_state.mean.wkv))
    assert (numbers < raw).all()


def test_literal_dbp_reads_through_r(params, batch, adam_losses):
    method = literal.method(train.standard(CONFIG, TUNE))
    optimizer = literal.decorrelated(train.make_optimizer(TUNE), rate=late)
    losses, tuned = trajectory(params, batch, optimizer, method)
    assert losses[:4] == adam_losses[:4]
    assert losses[-1] < losses[0] - 0.05
    scaled, r = tuned.trainable
    assert np.any(np.asarray(r.wkv) != np.eye(4))
    np.testing.assert_allclose(r.wkv, tuned.opt_state.r.wkv, rtol=1e-6, atol=1e-6)
    product = np.einsum("lhvi,lhik->lhvk", scaled.wkv, r.wkv)
    np.testing.assert_allclose(method.full(tuned.trainable).wkv, product, rtol=1e-5, atol=1e-6)
