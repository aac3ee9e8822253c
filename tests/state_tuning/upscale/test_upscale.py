"""Kernel upscaling: the pre-trained function at zero, affine in its matrices, exact lift, files and generation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, State, unstack_blocks, zero_state
from rwkv7_jax.checkpoint import CheckpointError, export_state, load_state, save_state
from rwkv7_jax.generation.generate import SamplingParams, generate
from rwkv7_jax.wkv_state import WKV, WKV_STATES, Residual, Streams, WKVState, attend, gaussian
from state_tuning import upscale
from state_tuning.core import objective, surgery, train
from state_tuning.dbp import correlations as probe
from state_tuning.dbp.queries import state_queries
from state_tuning.upscale import stability
from state_tuning.upscale.fitting import Upscale
from tests.rwkv7_jax.test_model import noisy

CONFIG = RWKV7Config(31, 2, 16, head_size=4, decay_lora=4, aaa_lora=4, mv_lora=4, gate_lora=4)
MODEL = RWKV7(CONFIG)
TUNE = train.TuneConfig(loss_chunk=8)
SIZE = 9
KINDS = tuple(upscale.TRAINED)


@pytest.fixture(scope="module")
def params():
    init = jax.jit(lambda key: MODEL.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(CONFIG, 1)))
    return noisy(init(jax.random.key(0))["params"], jax.random.key(1))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(2)
    rows = [objective.Example(rng.integers(1, 31, n).astype(np.int32), 3, 0) for n in (14, 9, 14)]
    return objective.collate(rows, 13)


@functools.cache
def setting(kind):
    return Upscale(map=kind, size=SIZE, allow_unstable=True)


@pytest.fixture(scope="module")
def fitted(params, batch):
    return {kind: upscale.fit(MODEL, params, batch, setting(kind), jax.random.key(3)) for kind in KINDS}


@functools.partial(jax.jit, static_argnames="config")
def apply(params, tokens, state, valid=None, reset=None, *, config=CONFIG):
    return RWKV7(config).apply({"params": params}, tokens, state, valid=valid, reset=reset)


def random_streams(rows=2, time=8, heads=2, size=4):
    rng = np.random.default_rng(5)
    r, k, v, kk = (rng.normal(size=(rows, time, heads, size)) for _ in range(4))
    kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
    log_w, iclr = -0.6 * rng.uniform(size=r.shape), rng.uniform(size=r.shape)
    return Streams(*(jnp.asarray(x, jnp.float32) for x in (r, log_w, k, v, kk, iclr)))


def random_matrices(tree, key, size=0.3):
    """The trainable tree with noise in every matrix."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize(("kind", "scan_layers"), [("residual", True), ("residual", False), ("recurrent", True)])
def test_at_zero_it_is_the_pre_trained_function_bit_for_bit(params, batch, fitted, kind, scan_layers):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    params = params if scan_layers else unstack_blocks(params)
    method = upscale.method(fitted[kind], TUNE, setting(kind))
    plain, last = apply(params, batch["tokens"], zero_state(CONFIG, 3), batch["valid"], config=config)
    lifted, end = apply(params, batch["tokens"], method.graft(method.init(), 3), batch["valid"], config=config)
    np.testing.assert_array_equal(plain, lifted)
    np.testing.assert_array_equal(last.wkv, end.wkv.s)
    assert isinstance(end.wkv, WKVState)


def test_the_output_is_affine_in_both_matrices():
    """y_t = y_t^0 + S_0 q_t + S_ext psi(r_t), with psi from its formula."""
    x = random_streams()
    rng = np.random.default_rng(6)
    s, s_ext, supports = (
        jnp.asarray(rng.normal(size=(2, 2, *shape)), jnp.float32) for shape in ((4, 4), (4, 5), (5, 4))
    )
    gamma = jnp.asarray(rng.uniform(0.1, 0.5, (2, 2)), jnp.float32)
    y, _ = attend(Residual(s, s_ext, supports, gamma), x, WKV())
    plain, _ = WKV()(x, jnp.zeros_like(s))
    q = state_queries(x.r, x.log_w, x.k, -x.kk, x.kk * x.iclr)
    gap = np.asarray(x.r, np.float64)[:, :, :, None] - np.asarray(supports, np.float64)[:, None]
    psi = np.exp(-np.asarray(gamma, np.float64)[:, None, :, None] * np.square(gap).sum(-1))
    affine = plain + np.einsum("bhvk,bthk->bthv", s, q, dtype=np.float64)
    affine = affine + np.einsum("bhvf,bthf->bthv", np.asarray(s_ext, np.float64), psi)
    np.testing.assert_allclose(y, affine, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("implementation", ["scan", "chunked"])
def test_the_exact_lift_has_zero_error(implementation):
    """Halves, whose sums and products are exact in float32: no order of summation can hide a difference."""
    rng, op = np.random.default_rng(7), WKV(implementation=implementation)
    x = Streams(*(jnp.asarray(rng.integers(-2, 3, (2, 4, 2, 4)) / 2, jnp.float32) for _ in range(6)))
    x = x._replace(log_w=jnp.zeros_like(x.r))
    s = jnp.asarray(rng.integers(-2, 3, (2, 2, 4, 4)), jnp.float32)
    y, last = op(x, s)
    lifted, end = op(upscale.pad(x, SIZE), jnp.pad(s, ((0, 0),) * 3 + ((0, SIZE - 4),)))
    np.testing.assert_array_equal(y, lifted)
    np.testing.assert_array_equal(last, end[..., :4])
    assert not np.any(end[..., 4:])


def test_the_exact_lift_holds_with_decay():
    x, s = random_streams(), jnp.ones((2, 2, 4, 4), jnp.float32)
    y, last = WKV()(x, s)
    lifted, end = WKV()(upscale.pad(x, SIZE), jnp.pad(s, ((0, 0),) * 3 + ((0, SIZE - 4),)))
    np.testing.assert_allclose(y, lifted, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(last, end[..., :4], rtol=2e-6, atol=2e-6)
    assert not np.any(end[..., 4:])


@pytest.mark.parametrize("kind", KINDS)
def test_two_calls_equal_one(fitted, kind):
    x, memory = random_streams(heads=4), fitted[kind].state.wkv
    trained = {name: getattr(memory, name) for name in upscale.TRAINED[kind]}
    memory = memory._replace(**random_matrices(trained, jax.random.key(8)))
    memory = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], (2, *leaf.shape[1:])), memory)
    run = jax.jit(attend)
    whole, end = run(memory, x, WKV())
    first, middle = run(memory, jax.tree.map(lambda z: z[:, :4], x), WKV())
    second, last = run(middle, jax.tree.map(lambda z: z[:, 4:], x), WKV())
    np.testing.assert_allclose(whole, jnp.concatenate([first, second], 1), rtol=2e-5, atol=2e-5)
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_a_reset_forgets_the_extension_too(params, batch, fitted):
    method = upscale.method(fitted["residual"], TUNE, setting("residual"))
    state = method.graft(random_matrices(method.init(), jax.random.key(9)), 3)
    reset = jnp.zeros((3, 13), bool).at[:, 6].set(True)
    logits, end = apply(params, batch["tokens"], state, reset=reset)
    fresh, _ = apply(params, batch["tokens"][:, 6:], zero_state(CONFIG, 3))
    np.testing.assert_allclose(logits[:, 6:], fresh, rtol=2e-5, atol=2e-5)
    assert not np.any(end.wkv.s_ext)


def test_tuning_moves_the_extension_and_lowers_the_loss(params, batch, fitted):
    method = upscale.method(fitted["residual"], TUNE, setting("residual"))
    optimizer = train.make_optimizer(dataclasses.replace(TUNE, learning_rate=0.05, warmup=1))
    step = train.make_train_step(MODEL, optimizer, TUNE, method)
    tuned, losses = train.init(optimizer, method.init()), []
    for _ in range(8):
        tuned, metrics = step(params, tuned, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert np.any(tuned.trainable.wkv.s_ext)
    assert tuned.trainable.wkv.supports is None
    assert step._cache_size() == 1
    full = method.full(tuned.trainable)
    np.testing.assert_array_equal(full.wkv.supports, fitted["residual"].state.wkv.supports)
    np.testing.assert_array_equal(full.wkv.s_ext, tuned.trainable.wkv.s_ext)


def test_only_the_chosen_parts_are_trained(fitted):
    base = dataclasses.replace(setting("residual"), tune_base=False)
    trainable = upscale.method(fitted["residual"], dataclasses.replace(TUNE, tune_shifts=True), base).init()
    assert trainable.wkv.s is None
    assert trainable.att_shift.shape == (2, 16)
    assert surgery.size(trainable) == 2 * 4 * 4 * (SIZE - 4) + 2 * 2 * 16


def test_a_saved_state_carries_its_map_and_generates(params, fitted, tmp_path):
    method = upscale.method(fitted["residual"], TUNE, setting("residual"))
    state = method.full(random_matrices(method.init(), jax.random.key(10)))
    save_state(tmp_path / "up.safetensors", state, metadata={"method": "upscale"})
    loaded = load_state(tmp_path / "up.safetensors", config=CONFIG)
    assert loaded.metadata["memory"] == "residual"
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(loaded.state), strict=True):
        np.testing.assert_array_equal(a, b)
    prompts, settings = [[5, 6, 7], [8]], SamplingParams(temperature=0.0, max_new_tokens=4)
    without = state._replace(wkv=state.wkv._replace(s_ext=jnp.zeros_like(state.wkv.s_ext)))
    one, rows, other = (
        generate(MODEL, params, prompts, start, jax.random.key(0), settings, eos_id=None)
        for start in (loaded.state, surgery.broadcast(state, 2), without)
    )
    assert one.tokens == rows.tokens
    np.testing.assert_array_equal(one.state.wkv.s_ext[:, 1], state.wkv.s_ext)
    assert np.abs(one.logits - other.logits).max() > 0.01


@pytest.mark.parametrize("kind", ["recurrent", "literal"])
def test_the_other_memories_round_trip_too(fitted, kind, tmp_path):
    state = fitted[kind].state
    save_state(tmp_path / "x.safetensors", state, metadata={})
    back = load_state(tmp_path / "x.safetensors").state
    assert type(back.wkv) is WKV_STATES[kind]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_tools_cannot_take_an_upscaled_state(fitted, tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.pth: no other tool reads an upscaled state \(residual\)"):
        export_state(tmp_path / "x.pth", fitted["residual"].state, layout="value_key")


@pytest.mark.parametrize("change", ["missing", "shape", "kind"])
def test_a_damaged_map_is_one_line(fitted, tmp_path, change):
    from rwkv7_jax.checkpoint import read_state_tensors, safetensors, states

    path = tmp_path / "x.safetensors"
    save_state(path, fitted["residual"].state, metadata={})
    tensors, metadata = read_state_tensors(path)
    name = "blocks.1.att.memory.gamma"
    if change == "missing":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:1]
    else:
        metadata["memory"] = "magic"
    metadata["state_hash"] = states.state_hash(tensors)
    safetensors.write(path, tensors, metadata)
    line = {
        "missing": "memory.gamma",
        "shape": r"memory\.gamma has shape \[1\]",
        "kind": "unknown kind of WKV state 'magic'",
    }
    with pytest.raises(CheckpointError, match=line[change]) as error:
        load_state(path)
    assert "\n" not in str(error.value)


def test_the_maps_are_as_described(fitted):
    """Lifted decays and rates keep their range, removal keys have length one; literal phi(w) is a similarity."""
    x = random_streams(rows=1, heads=4)
    layer = jax.tree.map(lambda leaf: leaf[0][None], fitted["recurrent"].state.wkv)
    lifted = layer.lifted(x)
    np.testing.assert_allclose(np.linalg.norm(lifted.kk, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(lifted.k, axis=-1), np.linalg.norm(x.k, axis=-1), rtol=1e-5)
    assert lifted.r.shape[-1] == lifted.iclr.shape[-1] == SIZE
    assert float(lifted.log_w.min()) >= float(x.log_w.min())
    assert float(lifted.log_w.max()) <= float(x.log_w.max())
    assert 0 <= float(lifted.iclr.min()) <= float(lifted.iclr.max()) <= 1
    assert float(stability.criterion(lifted).max()) < 0.65
    literal = jax.tree.map(lambda leaf: leaf[0][None], fitted["literal"].state.wkv)
    phi = gaussian(x.k, literal.supports[:, :, 2], literal.gamma[:, :, 2])
    np.testing.assert_allclose(literal.lifted(x).k, phi, rtol=1e-5)


def calibration(count=40, heads=2):
    """Streams [L, N, H, K] of random tokens."""
    return random_streams(rows=2, time=count, heads=heads)


def test_only_valid_tokens_are_calibrated_on():
    rng = np.random.default_rng(8)
    valid = rng.random((3, 7)) < 0.5
    numbers = np.where(valid, np.arange(21).reshape(3, 7), np.nan).astype(np.float32)
    streams = Streams(*[jnp.asarray(numbers[None, :, :, None, None])] * 6)
    picked = upscale.sample_tokens(streams, jnp.asarray(valid), 99, jax.random.key(0)).r
    assert sorted(np.ravel(picked)) == sorted(numbers[valid])
    assert upscale.sample_tokens(streams, jnp.asarray(valid), 4, jax.random.key(0)).v.shape == (1, 4, 1, 1)


def test_features_are_centred_on_what_they_were_calibrated_on():
    x = calibration()
    found = upscale.lift(CONFIG, x, Upscale(map="recurrent"), SIZE, jax.random.key(4))
    directions = np.concatenate([z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x.kk, x.r)], axis=1)
    gap = directions[:, :, :, None] - np.asarray(found.supports)[:, None]
    psi = np.exp(-np.asarray(found.gamma)[:, None, :, None] * np.square(gap).sum(-1))
    np.testing.assert_allclose(found.centre, psi.mean(1), rtol=1e-4, atol=1e-6)


def test_the_way_back_from_features_gives_the_values():
    """As many supports as tokens: the ridge regression of v on phi(v) nearly interpolates."""
    x = calibration(count=SIZE)
    found = upscale.lift(CONFIG, x, Upscale(map="literal"), SIZE, jax.random.key(4))
    supports, gamma = np.asarray(found.supports)[:, :, 5], np.asarray(found.gamma)[:, :, 5]
    gap = np.asarray(x.v)[:, :, :, None] - supports[:, None]
    phi = np.exp(-gamma[:, None, :, None] * np.square(gap).sum(-1))
    back = np.einsum("lhvm,lnhm->lnhv", np.asarray(found.out), phi)
    assert np.linalg.norm(back - x.v) < 0.02 * np.linalg.norm(x.v)


def test_stability_is_that_of_the_worst_token():
    x = calibration()
    memory = Residual(*(jnp.zeros((2, 2, *shape)) for shape in ((4, 4), (4, 5), (5, 4), ())))
    w, iclr, kk = (np.asarray(z, np.float64) for z in (np.exp(x.log_w), x.iclr, x.kk))
    wanted = (iclr * kk**2 / (1 + w)).sum(-1).max(1)
    np.testing.assert_allclose(stability.worst(memory, x), wanted, rtol=1e-5)


def test_alpha_is_the_strength_of_what_was_tuned(fitted):
    half = dataclasses.replace(TUNE, alpha=0.5)
    trainable = random_matrices(upscale.method(fitted["residual"], TUNE, setting("residual")).init(), jax.random.key(5))
    full = upscale.method(fitted["residual"], half, setting("residual")).full(trainable)
    np.testing.assert_array_equal(full.wkv.s_ext, 0.5 * trainable.wkv.s_ext)
    np.testing.assert_array_equal(full.wkv.supports, fitted["residual"].state.wkv.supports)


def test_the_literal_map_refuses_early_and_says_why(params, batch):
    strict = dataclasses.replace(setting("literal"), bandwidth=1.0, allow_unstable=False)
    line = (
        r"^literal upscaling to 9: unstable in layer \d, head \d: sum iclr kk\^2 / \(1 \+ w\) is [\d.]+, must be below"
    )
    with pytest.raises(ValueError, match=line) as error:
        upscale.fit(MODEL, params, batch, strict, jax.random.key(3))
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_one_line(params, batch):
    for wrong, line in (
        ({"size": 4}, "must be above the head size 4"),
        ({"size": 99}, "calibration tokens, there are"),
    ):
        with pytest.raises(ValueError, match=line):
            upscale.fit(MODEL, params, batch, Upscale(**wrong), jax.random.key(0))
    with pytest.raises(ValueError, match="bandwidth is -1"):
        Upscale(bandwidth=-1.0)


def test_correlations_of_queries_and_features(params, batch, fitted):
    """The probe's C is the mean over valid tokens of q q^T and psi psi^T."""
    method = upscale.method(fitted["residual"], TUNE, setting("residual"))
    trainable = method.init()
    c = jax.jit(probe.make_correlate(MODEL, method, sample=1.0))(params, trainable, batch)
    x = probe.record(MODEL, params, batch)
    valid = np.asarray(batch["valid"])
    layer = jax.tree.map(lambda leaf: leaf[1], x)
    q = state_queries(
        layer.r, layer.log_w, layer.k, -layer.kk, layer.kk * layer.iclr, valid=jnp.asarray(batch["valid"])
    )
    row = jax.tree.map(lambda leaf: leaf[1], method.graft(trainable, 3).wkv)
    for found, z in ((c.wkv.s, q), (c.wkv.s_ext, gaussian(layer.r, row.supports, row.gamma))):
        z = np.asarray(z)[valid]
        np.testing.assert_allclose(found[1], np.einsum("nhi,nhj->hij", z, z) / len(z), rtol=2e-5, atol=1e-6)
    assert c.att_shift is None
    assert isinstance(c, State)
