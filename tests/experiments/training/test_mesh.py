"""Pre-training and every method of state tuning on meshes of eight simulated devices: the series of one device.

`RWKV7_ALL_MESHES=1` tries every method on every mesh shape; by default some meet one shape each.
"""

import dataclasses
import functools
import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import methods
from experiments.config.methods import BaselineMethod, DBPMethod, StandardMethod, UpscaleDBPMethod, UpscaleMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import MeshConfig, PretrainConfig
from experiments.data.packing import Batches
from experiments.evaluation import evaluator
from experiments.training import distributed, pretraining
from rwkv7_jax import RWKV7, RWKV7Config, sharding, zero_state
from state_tuning.core import objective, train

SHAPES = {
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (1, 1, 8),
    "all": (2, 2, 2),
    "sequence": (1, 1, 1, 8),
    "sequence and data": (4, 1, 1, 2),
    "sequence and all": (1, 2, 2, 2),
}
METHODS = {
    "standard": StandardMethod(),
    "residual": UpscaleMethod(size=6, tokens=64),
    "recurrent": UpscaleMethod(size=6, map="recurrent", tokens=64),
    "literal": UpscaleMethod(size=6, map="literal", tokens=64, bandwidth=0.5, allow_unstable=True),
    "dbp": DBPMethod(sample=1.0),
    "whitened": DBPMethod(sample=0.25, form="whitened"),
    "literal_dbp": DBPMethod(form="literal"),
    "both": UpscaleDBPMethod(size=6, tokens=64),
    "offset": BaselineMethod(name="state_offset"),
    "prefix": BaselineMethod(name="prefix", prefix=4),
    "lora": BaselineMethod(name="lora", rank=2),
}
ALL = bool(os.environ.get("RWKV7_ALL_MESHES"))
SOME = [
    ("standard", "fsdp"),
    ("standard", "all"),
    ("residual", "tensor"),
    ("both", "all"),
    ("lora", "data"),
    ("standard", "sequence"),
    ("both", "sequence and all"),
]
ALONG = {str(m): m for m in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(m) == 8 and m[3] > 1}
"""Every mesh of eight devices that cuts the tokens of a row."""
PAIRS = [*itertools.product(METHODS, SHAPES), *(("standard", shape) for shape in ALONG)] if ALL else SOME
CONFIG = RWKV7Config(
    vocab_size=64, n_layer=2, n_embd=32, head_size=4, dim_ffn=64, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=8
)
# eps: Adam makes a full step of a gradient that is nothing but rounding; this much of it does not count.
TUNE = train.TuneConfig(learning_rate=0.01, steps=3, warmup=1, eps=1e-3)
PRETRAIN = PretrainConfig(
    n_layer=2, n_embd=32, head_size=4, lora=8, gate_lora=8, steps=4, batch_size=8, length=64, warmup=1
)


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """All devices here."""


@functools.cache
def weights() -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda key: RWKV7(CONFIG).init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(CONFIG, 1))["params"],
        jax.random.key(0),
    )

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        norm = name.endswith("weight") and "ln" in name
        return (norm + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch_of(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 17, 8)
    examples = [objective.Example(rng.integers(1, 64, n + 1).astype(np.int32), 2, 0) for n in sizes]
    return dict(objective.collate(examples, 16))


def tuned(method: str, mesh: Any, settings: train.TuneConfig = TUNE) -> tuple[list[float], Any]:
    params = weights()
    places = jax.tree.map(lambda leaf: None, params) if mesh is None else sharding.shardings(params, mesh)
    params = jax.tree.map(sharding.place, params, places, is_leaf=lambda leaf: leaf is None)
    chosen = methods.build(METHODS[method], RWKV7(CONFIG), params, settings, lambda tokens: batch_of(9), 0)
    step = train.make_train_step(chosen.model, chosen.optimizer, settings, chosen.method, chosen.correlate)
    state, losses = train.init(chosen.optimizer, chosen.method.init()), []
    for index in range(settings.steps):
        state, metrics = step(params, state, distributed.Spread(mesh, 8).put(batch_of(index)))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() <= 2  # pyright: ignore[reportFunctionMemberAccess]
    return losses, sharding.host(state.trainable)


@functools.cache
def tuned_on_one_device(method: str) -> tuple[list[float], Any]:
    return tuned(method, None)


def assert_as_on_one_device(method: str, losses: list[float], state: Any) -> None:
    wanted, wanted_state = tuned_on_one_device(method)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    for got, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(wanted_state), strict=True):
        np.testing.assert_allclose(got, leaf, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("method", "shape"), PAIRS)
def test_a_method_on_a_mesh(method, shape):
    with distributed.session(MeshConfig(*(SHAPES | ALONG)[shape])) as mesh:
        losses, state = tuned(method, mesh)
    assert_as_on_one_device(method, losses, state)


def test_rows_in_segments_that_the_mesh_does_not_divide():
    """Segments of 11 tokens, each cut over four devices; two micro-batches."""
    with distributed.session(MeshConfig(2, 1, 1, 4)) as mesh:
        losses, state = tuned("standard", mesh, dataclasses.replace(TUNE, segment=11, accumulate=2, loss_chunk=2))
    assert_as_on_one_device("standard", losses, state)


def test_held_out_losses_of_rows_cut_along_their_tokens():
    examples = [objective.Example(np.arange(1, n, dtype=np.int32), 1, 0) for n in (9, 20, 33, 3, 14)]
    params, state = weights(), zero_state(CONFIG, None)
    state = state._replace(wkv=jnp.asarray(np.random.default_rng(3).normal(size=state.wkv.shape), jnp.float32))

    def losses(params: Any) -> np.ndarray:
        return evaluator.make_scorer(RWKV7(CONFIG)).nll(params, state, objective.collate(examples, 37))[0]

    wanted = losses(params)
    with distributed.session(MeshConfig(1, 1, 2, 4)) as mesh:
        places = sharding.shardings(params, mesh)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(losses(jax.tree.map(sharding.place, params, places)), wanted, rtol=1e-5)


def pretrained(mesh: Any, config: PretrainConfig = PRETRAIN) -> list[float]:
    program = pretraining.make_program(pretraining.make_model(config), config)
    spread = distributed.Spread(mesh, config.batch_size)
    data = Batches(config, 0, spread.rows)
    state, losses = program.init(jax.random.key(0)), []
    for _ in range(config.steps):
        state, metrics = program.step(state, spread.put(next(data)))
        losses.append(float(metrics["loss"]))
    assert program.step._cache_size() == 1
    return losses


@functools.cache
def pretrained_on_one_device() -> list[float]:
    return pretrained(None)


@pytest.mark.parametrize("shape", SHAPES if ALL else ["all", "sequence"])
def test_pre_training_on_a_mesh(shape):
    with distributed.session(MeshConfig(*SHAPES[shape])) as mesh:
        np.testing.assert_allclose(pretrained(mesh), pretrained_on_one_device(), rtol=1e-5)


def test_rows_that_the_mesh_does_not_divide_are_refused():
    with distributed.session(MeshConfig(8, 1, 1)) as mesh, pytest.raises(UsageError, match="12 rows cannot be cut"):
        distributed.Spread(mesh, 12)


def test_rows_shorter_than_the_mesh_are_refused():
    with distributed.session(MeshConfig(sequence=8)) as mesh:
        distributed.check_length(mesh, "length", 8)
        with pytest.raises(UsageError, match=r"7 tokens .* sequence = 8 .* --length or --mesh.sequence"):
            distributed.check_length(mesh, "length", 7)
    assert distributed.describe(mesh) == "8 devices (data 1 x fsdp 1 x tensor 1 x sequence 8)"


def test_sizes_that_do_not_fit_are_one_line():
    with pytest.raises(UsageError, match=r"data=3.* 8 devices.*--mesh.data"), distributed.session(MeshConfig(3)):
        pass
