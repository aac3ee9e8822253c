"""Streamed weights: the product of few and of many rows, its gradients, and the weights of a model that lie so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, LanguageModel, RWKV7Config, functional, quantisation, streamed, zero_state
from rwkv7_jax.checkpoint.files import BFLOAT16
from rwkv7_jax.dtypes import quantised
from rwkv7_jax.generation.weights import decoding_shapes, few, for_decoding
from rwkv7_jax.layers import TRANSPOSED
from rwkv7_jax.model import init_params, split_layers, unstack_blocks
from rwkv7_jax.quantisation import quantise
from rwkv7_jax.streamed import FEW_ROWS, StreamedWeight, product

CONFIG = RWKV7Config(
    vocab_size=64, n_layer=2, n_embd=64, head_size=32, decay_lora=16, aaa_lora=16, mv_lora=16, gate_lora=32
)
KEY = jax.random.key(0)


def model(dtype: str = "float32", bits: str = "none") -> tuple[RWKV7, dict]:
    """A model whose weights are all random, so that every matrix matters."""
    params = jax.jit(init_params, static_argnums=0)(RWKV7(CONFIG), KEY)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    noise = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    params = jax.device_get(unstack_blocks(tree.unflatten(noise)))
    activations = "float32" if dtype == "bfloat16" else None
    config = dataclasses.replace(CONFIG, dtype=dtype, activations=activations, scan_layers=False)
    return RWKV7(config), quantised(params, bits)


@pytest.fixture
def given():
    """(activations [2, 3, 32], a matrix [5, 32])."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 3, 32), np.float32), rng.standard_normal((5, 32), np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_the_product_of_the_same_factors(given, dtype):
    """Few rows and many: the factors are rounded to the same dtype, and added up in float32."""
    x, matrix = given
    weight = StreamedWeight(jnp.asarray(matrix, dtype))
    exact = np.asarray(jnp.asarray(x, dtype), np.float64) @ np.asarray(weight.matrix, np.float64).T
    for repeat in (1, FEW_ROWS):
        many = jnp.tile(x, (repeat, 1, 1))
        found = jax.jit(lambda x, w: product(x, w, dtype))(many, weight)
        assert found.shape == (2 * repeat, 3, 5)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:2], exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_matrix(given, bits):
    x, matrix = given
    weight = quantise(matrix, bits)
    exact = x @ quantisation.to_numpy(weight).T
    found = jax.jit(lambda x, w: product(x, w, "float32"))(x, StreamedWeight(weight))
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_plain_product(given, dtype):
    x, matrix = (jnp.asarray(part) for part in given)

    def loss(x, matrix):
        return jnp.sum(jnp.sin(product(x, StreamedWeight(matrix), dtype)))

    def plain(x, matrix):
        rounded = x.astype(dtype).astype(jnp.float32)
        return jnp.sum(jnp.sin(rounded @ matrix.astype(jnp.float32).T))

    found = jax.jit(jax.grad(loss, (0, 1)))(x, matrix.astype(dtype))
    wanted = jax.jit(jax.grad(plain, (0, 1)))(x, matrix.astype(dtype))
    for one, other in zip(found, wanted, strict=True):
        # Two roundings to bfloat16, of the cotangent and of the result.
        bound = 2e-6 if dtype == "float32" else 2.0**-7
        one, other = (np.asarray(part, np.float32) for part in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=bound * np.abs(other).max())


def test_a_gradient_through_a_quantised_matrix(given):
    x, matrix = given
    weight = quantise(matrix)
    found = jax.jit(jax.grad(lambda x: product(x, StreamedWeight(weight), "float32").sum()))(x)
    np.testing.assert_allclose(found[0, 0], quantisation.to_numpy(weight).sum(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bits"), [("float32", "none"), ("bfloat16", "none"), ("float32", "int8"),
                                             ("bfloat16", "int8"), ("float32", "int4")])  # fmt: skip
def test_a_model_computes_what_it_does_without(monkeypatch, dtype, bits):
    """Either form, made from the other too, for few rows and many."""
    plain = model(dtype, bits)
    forms = {for_few: for_decoding(*plain, few_rows=for_few) for for_few in (True, False)}
    for for_few, (_, ready) in forms.items():
        of_the_other = for_decoding(*forms[not for_few], few_rows=for_few)[1]
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ready, of_the_other)))
    streams = {key: any(isinstance(leaf, StreamedWeight) for leaf in leaves(forms[key][1])) for key in forms}
    assert streams == {True: True, False: (dtype, bits) != ("float32", "none")}
    monkeypatch.setattr(streamed, "available", lambda: False)
    without, weights = for_decoding(*plain)
    assert not any(isinstance(leaf, StreamedWeight) for leaf in leaves(weights))
    step = jax.jit(functional.step, static_argnums=0)
    for rows in (2, FEW_ROWS + 1):
        tokens = jnp.arange(rows, dtype=jnp.int32)[:, None]
        state = split_layers(zero_state(without.config, rows))
        wanted = step(without, weights, tokens, state)[0]
        # Without these kernels a CPU multiplies a few rows by int8 numbers with 16-bit activations.
        bound = 2e-2 if dtype == "bfloat16" else 2e-3 if bits != "none" else 1e-5
        for form, params in forms.values():
            found = step(form, params, tokens, state)[0]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=bound * float(jnp.abs(wanted).max()))


def leaves(tree: dict) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, StreamedWeight))


def test_shapes_are_those_of_the_weights():
    for bits in ("none", "int8"):
        one, params = model(bits=bits)
        whole, ready = for_decoding(one, params, few_rows=True)
        parts = decoding_shapes(whole.config, ready, few_rows=True)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), parts) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), ready
        )
        streamed.prepare(parts)


def rounded(params: dict) -> dict:
    """Every number of bfloat16."""
    return jax.tree.map(lambda leaf: leaf.astype(BFLOAT16).astype(np.float32), params)


def test_float32_reads_bfloat16_numbers_as_they_are():
    """Half the bytes and the same bits, of logits, states and gradients, for few rows and many."""
    one, params = model()
    narrow, wide = rounded(params), rounded(params)
    for block in ("block_0", "block_1"):
        for name in ("key", "output"):
            wide[block]["att"][name]["weight"] = np.nextafter(wide[block]["att"][name]["weight"], np.float32(2))
    whole, ready = for_decoding(one, jax.device_put(narrow), few_rows=True)
    assert ready["block_1"]["ffn"]["key"]["weight"].matrix.dtype == BFLOAT16
    assert ready["block_1"]["att"]["w1"].matrix.dtype == BFLOAT16
    assert ready["block_1"]["att"]["x_k"].dtype == np.float32
    _, kept = for_decoding(one, jax.device_put(wide), few_rows=True)
    assert kept["block_1"]["att"]["key"]["weight"].matrix.dtype == np.float32
    assert kept["block_1"]["ffn"]["key"]["weight"].matrix.dtype == BFLOAT16

    held = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float32), ready)
    for rows in (1, 3, FEW_ROWS + 1):
        tokens = jnp.arange(rows, dtype=jnp.int32)[:, None]

        def loss(state, weights, tokens=tokens):
            logits, after = functional.step(whole, weights, tokens, state)
            return jnp.sum(jnp.sin(logits)), (logits, after)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        state = split_layers(zero_state(whole.config, rows))
        found, wanted = step(state, ready), step(state, held)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_file_of_bfloat16_and_the_model_that_is_loaded_from_it_have_one_form():
    one, params = model()
    stored = jax.tree.map(lambda leaf: leaf.astype(BFLOAT16), params)
    shapes = decoding_shapes(one.config, stored, few_rows=True)
    assert shapes["head"]["weight"].matrix.dtype == BFLOAT16
    for given in (stored, jax.device_put(rounded(params))):
        ready = for_decoding(one, given, few_rows=True)[1]
        forms = ({**tree, "emb": None} for tree in (ready, shapes))
        found, wanted = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), form) for form in forms)
        assert found == wanted
    whole = for_decoding(one, ready)[1]
    np.testing.assert_array_equal(whole["head"][TRANSPOSED], rounded(params)["head"]["weight"].T)


def test_matrices_of_many_rows_are_widened_one_after_another():
    """A program for a prompt does not hold the matrices of all layers in float32."""
    config = dataclasses.replace(CONFIG, n_layer=8, scan_layers=False)
    params = jax.device_put(rounded(jax.device_get(jax.jit(init_params, static_argnums=0)(RWKV7(config), KEY))))
    one, ready = for_decoding(RWKV7(config), params, few_rows=True)
    tokens, state = jnp.zeros((1, 2 * FEW_ROWS), jnp.int32), split_layers(zero_state(config, 1))
    program = jax.jit(functional.step, static_argnums=0).lower(one, ready, tokens, state).compile()
    layer = 4 * sum(leaf.size for leaf in jax.tree.leaves(ready["block_1"]))
    assert program.memory_analysis().temp_size_in_bytes < 3 * layer


@pytest.mark.parametrize("rows", [0, 1, FEW_ROWS + 1])
def test_gradients_of_float32_products_with_bfloat16_numbers(rows):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, 32)), jnp.float32)
    matrix = jnp.asarray(rng.standard_normal((5, 32)), jnp.bfloat16)

    def loss(x, matrix):
        return jnp.sum(jnp.sin(product(x, StreamedWeight(matrix), "float32")))

    def plain(x, matrix):
        return jnp.sum(jnp.sin(x @ matrix.astype(jnp.float32).T))

    found, wanted = (jax.jit(jax.grad(one, (0, 1)))(x, matrix) for one in (loss, plain))
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-5)
    assert found[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(*(np.asarray(part[1], np.float32) for part in (found, wanted)), rtol=2.0**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weights_that_read_wanted_rows_alone(dtype):
    """A model's step: the wanted rows have the bits of a step of all rows."""
    bits = dtype if dtype == "int8" else "none"
    one, params = for_decoding(*model("float32" if bits == "int8" else dtype, bits), few_rows=True)
    tokens, state = jnp.arange(4, dtype=jnp.int32)[:, None], split_layers(zero_state(CONFIG, 4))
    valid = jnp.asarray([False, True, False, True])

    @jax.jit
    def step(params, valid):
        return functional.step(one, params, tokens, state, valid=valid[:, None])

    wanted, found = step(params, valid), step(streamed.for_rows(params, valid), valid)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a[valid], b[valid])
    read = {tuple(leaf.wanted.tolist()) for leaf in leaves(streamed.for_rows(params, valid)) if hasattr(leaf, "wanted")}
    assert read == {(1, 4)}
    nothing = streamed.for_rows(params, jnp.zeros(4, bool))["head"]["weight"]
    assert nothing.wanted.tolist() == [0, 0]
    assert not product(jnp.ones((4, 1, 64)), nothing, one.config.dtype).any()


def test_which_rows_are_few(monkeypatch):
    assert few(1)
    assert few(FEW_ROWS)
    assert not few(FEW_ROWS + 1)
    monkeypatch.setattr(streamed, "available", lambda: False)
    assert few(1)
    assert not few(2)


def test_under_a_mesh_weights_are_not_streamed():
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert not streamed.available()
    assert streamed.available()


def test_a_language_model_takes_the_form_for_its_rows(tiny: LanguageModel):
    lm = tiny.replace(params=tiny.params)
    assert lm.for_rows(2) is lm.for_few_rows
    assert lm.for_rows(FEW_ROWS + 1) is lm.for_decoding
