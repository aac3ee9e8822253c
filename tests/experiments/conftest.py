"""A tiny random model over bytes and its files, for everything that runs whole experiments."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import distributed
from experiments.build import Built, build
from experiments.config import ModelConfig
from rwkv7_jax import RWKV7, RWKV7Config, checkpoint, zero_state


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A safetensors file of two layers of width 8; every weight random, so that the state matters."""
    config = RWKV7Config(
        vocab_size=256, n_layer=2, n_embd=8, head_size=4, decay_lora=2, aaa_lora=2, mv_lora=2, gate_lora=2
    )
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(lambda key: RWKV7(config).init({"params": key}, tokens, zero_state(config, 1))["params"])
    rng = np.random.default_rng(1)
    noise = lambda leaf: np.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), np.float32)  # noqa: E731
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoint.save(path, jax.tree.map(noise, jax.device_get(init(jax.random.key(0)))))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: pathlib.Path) -> Built:
    """The tiny model, built."""
    return build(ModelConfig(checkpoint=str(tiny_checkpoint), wkv="scan"))


@pytest.fixture(autouse=True, scope="module")
def one_device() -> Iterator[None]:
    """Runs use one of the simulated devices; a test module that wants them all has a fixture of this name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "devices", lambda: jax.devices()[:1])
        yield
