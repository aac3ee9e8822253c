"""Streamed weights: the product of few and of many rows, its gradients, and the weights of a model that lie so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, LanguageModel, RWKV7Config, functional, quantisation, streamed, zero_state
from rwkv7_jax.dtypes import quantised
from rwkv7_jax.generation.weights import decoding_shapes, few, for_decoding
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
