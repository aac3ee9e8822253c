"""The names of the package: lazy, complete, with one version; the commands that run it; transformations of jax."""

import pathlib
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
import rwkv7_jax
import state_tuning
from rwkv7_jax import functional, zero_state
from tests.helpers import CONFIG, MODEL, random_state, weights

ROOT = pathlib.Path(__file__).parents[2]
TOKENS = jnp.asarray([[5, 6, 7, 8], [9, 10, 11, 12]])


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_loads_neither_flax_nor_jax():
    code = "import rwkv7_jax, sys; dir(rwkv7_jax); print([n for n in ('jax', 'flax', 'numpy') if n in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_every_name_is_there():
    assert dir(rwkv7_jax) == sorted(rwkv7_jax.__all__)
    assert all(getattr(rwkv7_jax, name) is not None for name in rwkv7_jax.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        rwkv7_jax.missing  # noqa: B018


def test_every_name_has_a_docstring():
    assert [name for name in rwkv7_jax.__all__ if not getattr(rwkv7_jax, name).__doc__] == []


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert rwkv7_jax.__version__ == pallas_kernels.__version__ == state_tuning.__version__ == project["version"]


def test_the_package_runs_as_the_command():
    assert python("-m", "rwkv7_jax", "--version").stdout == f"rwkv7-jax {rwkv7_jax.__version__}\n"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["rwkv7_jax.generate"], "rwkv7 generate"),
        (["rwkv7_jax.checkpoint", "inspect", "x"], "rwkv7 inspect"),
        (["rwkv7_jax.checkpoint", "convert"], "rwkv7 convert"),
        (["rwkv7_jax.checkpoint", "state"], "rwkv7 state convert"),
        (["rwkv7_jax.checkpoint"], "rwkv7 inspect, rwkv7 convert, rwkv7 state convert"),
    ],
)
def test_old_spellings_name_the_new_command(words: list[str], command: str):
    ended = python("-m", *words)
    shown = "rwkv7_jax.generate" if "generate" in words[0] else " ".join(words[:2])
    assert (ended.returncode, ended.stderr) == (2, f"error: python -m {shown} is now: {command}\n")


def loss(state, params, tokens):
    logits, _ = functional.forward(MODEL, params, tokens, state)
    return jax.nn.log_softmax(logits)[..., 0].mean()


def test_the_model_can_be_compiled_mapped_and_differentiated():
    params = weights()
    batched = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2, 1), random_state())
    plain = loss(batched, params, TOKENS)
    np.testing.assert_allclose(jax.jit(loss)(batched, params, TOKENS), plain, rtol=1e-5)
    rows = jax.tree.map(lambda leaf: leaf[:, :, None], batched)
    mapped = jax.vmap(loss, in_axes=(1, None, 0))(rows, params, TOKENS[:, None])
    np.testing.assert_allclose(mapped.mean(), plain, rtol=1e-5)
    gradient = jax.grad(loss)(batched, params, TOKENS)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, batched)
    assert all(jnp.isfinite(leaf).all() and jnp.any(leaf) for leaf in gradient)


def test_zero_states_can_be_made_while_compiling():
    made = jax.jit(lambda: zero_state(CONFIG, 2))()
    assert made.wkv.shape == (2, 2, 2, 8, 8)
    assert all(not jnp.any(leaf) for leaf in made)
