"""Laws of the model: state in, state out; padding, resets and batch neighbours change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, State, unstack_blocks, zero_state

CONFIG = RWKV7Config(48, 3, 32, head_size=8, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=8)
BATCH, TIME = 2, 11


def noisy(params, key, scale=0.2):
    """Weights away from the zeros of the official initialisation, so that every path matters."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def official():
    model = RWKV7(CONFIG)
    init = jax.jit(lambda key: model.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(CONFIG, 1)))
    return init(jax.random.key(0))["params"]


@pytest.fixture(scope="module")
def params(official):
    return noisy(official, jax.random.key(1))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(2), (BATCH, TIME), 0, CONFIG.vocab_size)


@pytest.fixture(scope="module")
def state():
    keys = jax.random.split(jax.random.key(3), 3)
    return State(*(0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, zero_state(CONFIG, BATCH), strict=True)))


@functools.partial(jax.jit, static_argnames=("config", "last_only"))
def apply(params, tokens, state, valid=None, reset=None, *, config=CONFIG, last_only=False):
    variables = {"params": params}
    return RWKV7(config).apply(variables, tokens, state, valid=valid, reset=reset, last_only=last_only)


def close(left, right, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_two_calls_equal_one(params, tokens, state, cut):
    logits, end = apply(params, tokens, state)
    first, middle = apply(params, tokens[:, :cut], state)
    second, last = apply(params, tokens[:, cut:], middle)
    close((jnp.concatenate([first, second], axis=1), last), (logits, end))


def test_token_by_token_equals_one_call(params, tokens, state):
    logits, end = apply(params, tokens, state)
    pieces = []
    for t in range(TIME):
        piece, state = apply(params, tokens[:, t : t + 1], state)
        pieces.append(piece)
    close((jnp.concatenate(pieces, axis=1), state), (logits, end))


def test_padding_anywhere_changes_nothing(params, tokens, state):
    logits, end = apply(params, tokens, state)
    places = np.stack([np.sort(np.random.default_rng(row).permutation(TIME + 6)[:TIME]) for row in range(BATCH)])
    valid = np.zeros((BATCH, TIME + 6), bool)
    padded = np.full((BATCH, TIME + 6), 7, np.int32)
    np.put_along_axis(valid, places, True, axis=1)
    np.put_along_axis(padded, places, np.asarray(tokens), axis=1)
    got, last = apply(params, jnp.asarray(padded), state, jnp.asarray(valid))
    close((np.take_along_axis(np.asarray(got), places[:, :, None], axis=1), last), (logits, end))


def test_gradients_do_not_see_padding(params, tokens, state):
    places = jnp.asarray([[0, 2, 3, 4, 7, 8, 9, 10, 12, 13, 15], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]])
    rows = jnp.arange(BATCH)[:, None]
    valid = jnp.zeros((BATCH, TIME + 6), bool).at[rows, places].set(True)
    padded = jnp.full((BATCH, TIME + 6), 7).at[rows, places].set(tokens)

    def loss(params, state, tokens, valid):
        logits, end = apply(params, tokens, state, valid)
        logits = logits if valid is None else jnp.take_along_axis(logits, places[:, :, None], axis=1)
        return jnp.sum(jnp.sin(logits)) + sum(jnp.sum(jnp.cos(leaf)) for leaf in end)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
    close(grad(params, state, padded, valid), grad(params, state, tokens, None), 1e-4)


def test_row_of_padding_alone_keeps_the_state(params, tokens, state):
    _, end = apply(params, tokens, state, jnp.zeros((BATCH, TIME), bool))
    close(end, state, 0)


def test_reset_starts_from_the_zero_state(params, tokens, state):
    reset = jnp.zeros((BATCH, TIME), bool).at[:, 5].set(True)
    logits, end = apply(params, tokens, state, None, reset)
    before, _ = apply(params, tokens[:, :5], state)
    after, last = apply(params, tokens[:, 5:], zero_state(CONFIG, BATCH))
    close((logits, end), (jnp.concatenate([before, after], axis=1), last))


def test_reset_on_padding_still_resets(params, tokens, state):
    place = jnp.zeros((BATCH, TIME), bool).at[:, 5].set(True)
    logits, end = apply(params, tokens, state, ~place, place)
    after, last = apply(params, tokens[:, 6:], zero_state(CONFIG, BATCH))
    close((logits[:, 6:], end), (after, last))
    _, end = apply(params, tokens[:, :6], state, ~place[:, :6], place[:, :6])
    close(end, zero_state(CONFIG, BATCH), 0)


def test_rows_are_independent(params, tokens, state):
    logits, end = apply(params, tokens, state)
    other, last = apply(params, tokens.at[1].set(0), jax.tree.map(lambda x: x.at[:, 1].set(5.0), state))
    assert jnp.array_equal(logits[0], other[0])
    assert jnp.array_equal(end.wkv[:, 0], last.wkv[:, 0])


def test_unrolled_layers_equal_scanned(params, tokens, state):
    unrolled = dataclasses.replace(CONFIG, scan_layers=False)
    close(apply(unstack_blocks(params), tokens, state, config=unrolled), apply(params, tokens, state))


def test_remat_changes_no_gradient(params, tokens, state):
    def loss(state, remat):
        model = RWKV7(dataclasses.replace(CONFIG, remat=remat))
        return jnp.sum(jnp.sin(model.apply({"params": params}, tokens, state)[0]))

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    for policy in ("dots", "block"):
        close(grad(state, policy), grad(state, "none"))


def test_last_only_gives_the_last_valid_token(params, tokens, state):
    logits, _ = apply(params, tokens, state)
    valid = jnp.arange(TIME)[None] < jnp.array([[4], [TIME]])
    last, _ = apply(params, tokens, state, valid, last_only=True)
    close(last[:, 0], jnp.stack([logits[0, 3], logits[1, -1]]))
    last, _ = apply(params, tokens, state, last_only=True)
    close(last[:, 0], logits[:, -1])


def test_single_layer_model_has_no_value_residual(tokens):
    config = dataclasses.replace(CONFIG, n_layer=1)
    init = functools.partial(RWKV7(config).init, {"params": jax.random.key(0)})
    params = jax.eval_shape(init, tokens, zero_state(config, BATCH))["params"]
    assert "blocks" not in params
    assert "v0" not in params["block_0"]["att"]


def test_bfloat16_compute_keeps_a_float32_state(params, tokens):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    logits, end = apply(params, tokens, zero_state(config, BATCH), config=config)
    exact, _ = apply(params, tokens, zero_state(CONFIG, BATCH))
    assert logits.dtype == jnp.float32
    assert (end.wkv.dtype, end.att_shift.dtype) == (jnp.float32, jnp.bfloat16)
    error = jnp.linalg.norm(logits - exact) / jnp.linalg.norm(exact)
    assert 0 < error < 0.05


def test_bfloat16_products_beside_float32_activations(params, tokens):
    """The form for a CPU: closer to float32 than bfloat16 activations are, in a row of one token too."""
    mixed = dataclasses.replace(CONFIG, dtype="bfloat16", activations="float32")
    logits, end = apply(params, tokens, zero_state(mixed, BATCH), config=mixed)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((logits, end))} == {"float32"}
    exact, _ = apply(params, tokens, zero_state(CONFIG, BATCH))
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    rounded, _ = apply(params, tokens, zero_state(half, BATCH), config=half)
    errors = [float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact)) for x in (logits, rounded)]
    assert 0 < errors[0] < min(0.02, errors[1])
    state = zero_state(mixed, 1)
    for at in range(3):
        one, state = apply(params, tokens[:1, at : at + 1], state, config=mixed)
        np.testing.assert_allclose(one[0, 0], logits[0, at], rtol=0.02, atol=0.02 * float(jnp.abs(logits).max()))


def test_gradients_pass_through_bfloat16_products(params, tokens):
    mixed = dataclasses.replace(CONFIG, dtype="bfloat16", activations="float32")

    def loss(wkv, weights, config):
        return jnp.square(apply(weights, tokens, zero_state(config, BATCH)._replace(wkv=wkv), config=config)[0]).sum()

    found, wanted = (jax.grad(loss, argnums=(0, 1))(zero_state(CONFIG, BATCH).wkv, params, c) for c in (mixed, CONFIG))
    for a, b in zip(
        jax.tree.leaves((found[0], found[1]["head"])), jax.tree.leaves((wanted[0], wanted[1]["head"])), strict=True
    ):
        assert jnp.linalg.norm(a - b) < 0.05 * jnp.linalg.norm(b)


def test_official_initialisation(official):
    params = official
    later, first = params["blocks"]["att"], params["block_0"]["att"]
    assert not jnp.any(later["output"]["weight"])
    assert not jnp.any(params["blocks"]["ffn"]["value"]["weight"])
    np.testing.assert_allclose(params["block_0"]["att"]["ln_x"]["weight"], (1 / 3) ** 0.7, rtol=1e-6)
    np.testing.assert_allclose(later["ln_x"]["weight"][1], 1.0, rtol=1e-6)
    assert first["w0"][0] == pytest.approx(-6 + 0.5 - 2.5)
    assert first["x_r"][1] == pytest.approx(1 - (1 / 32) ** 0.2)
    assert later["x_k"][1, 1] == pytest.approx(1 - (1 / 32) ** (0.7 / 3))
    up = later["a2"][0]
    np.testing.assert_allclose(up @ up.T, 0.01 * jnp.eye(8), atol=1e-6)
    assert jnp.abs(later["key"]["weight"]).max() <= 0.05 * 32**-0.5


def test_config_refuses_a_width_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="multiple of head_size"):
        RWKV7Config(10, 1, 30, head_size=8)
