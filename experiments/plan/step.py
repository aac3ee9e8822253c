"""The training step of a config as a program with abstract arguments: nothing is computed, no weight is read."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import build, methods
from experiments.config.methods import UpscaleMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import PretrainConfig, RunConfig
from experiments.training import pretraining as pretrain
from rwkv7_jax import RWKV7, RWKV7Config, flops, sharding
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.language_model import is_matrix
from rwkv7_jax.model import init_params
from state_tuning.core import train

SIZES: dict[str, tuple[int, int, tuple[int, int, int, int]]] = {
    "0.1B": (12, 768, (64, 64, 32, 128)),
    "0.4B": (24, 1024, (64, 64, 32, 128)),
    "1.5B": (24, 2048, (96, 96, 64, 256)),
    "2.9B": (32, 2560, (96, 96, 64, 320)),
    "7.2B": (32, 4096, (128, 128, 96, 480)),
}
"""Layers, width and LoRA ranks (w, a, v, g) of the released models."""


class Step(NamedTuple):
    """A jitted step, its abstract arguments with shardings, and these in named groups for the table."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    groups: dict[str, Any]
    model: RWKV7Config
    rows: int
    length: int
    flops: float
    """Model FLOPs (`rwkv7_jax.flops`)."""


def dimensions(size: str, dtype: str, remat: str, implementation: str | None) -> RWKV7Config:
    """A released model.

    Raises:
      UsageError: there is none of this size.
    """
    if size not in SIZES:
        raise UsageError(f"size {size!r} is unknown: give one of {', '.join(SIZES)}, or leave it out for the config's")
    n_layer, n_embd, (w, a, v, g) = SIZES[size]
    ranks: dict[str, Any] = {"decay_lora": w, "aaa_lora": a, "mv_lora": v, "gate_lora": g}
    compute: dict[str, Any] = {"dtype": dtype, "remat": remat, "wkv_implementation": implementation}
    return RWKV7Config(65536, n_layer, n_embd, **ranks, **compute)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes with the shardings of the table."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        sharding.shardings(tree, mesh),
    )


def tuning(config: RunConfig, model: RWKV7Config, mesh: Mesh) -> Step:
    """A step of state tuning on frozen weights, matrices in the compute dtype; the mesh must be set.

    Raises:
      UsageError: the method needs text to be set up.
    """
    if isinstance(config.method, UpscaleMethod):
        raise UsageError("method: an upscaling map is fitted to text with real weights: plan standard, dbp or baseline")
    shapes = jax.eval_shape(init(model), jax.random.key(0))
    weights = abstract(jax.tree_util.tree_map_with_path(partial_cast(model.dtype), shapes), mesh)
    settings = build.tune_config(config.tune)
    chosen = methods.build(config.method, RWKV7(model), weights, settings, lambda tokens: None, 0)
    function = train.make_train_step(chosen.model, chosen.optimizer, settings, chosen.method, chosen.correlate)
    tuned = abstract(jax.eval_shape(lambda: train.init(chosen.optimizer, chosen.method.init())), mesh)
    rows, length = config.data.batch_size, padded_length(config.data.max_length)
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "loss_mask": jnp.float32, "valid": jnp.bool_}
    batch = {name: _rows(mesh, (rows, length), kind) for name, kind in kinds.items()}
    groups = {"frozen weights": weights, "state and optimiser": tuned, "batch": batch}
    cost = flops.tuning(model) * rows * length
    return Step(function, (weights, tuned, batch), groups, model, rows, length, cost)


def pretraining(config: PretrainConfig, model: RWKV7Config, mesh: Mesh) -> Step:
    """A step of training from scratch, weights and moments in float32; the mesh must be set."""
    program = pretrain.make_program(config, model)
    state = abstract(jax.eval_shape(program.init, jax.random.key(0)), mesh)
    names = ("tokens", "tokens_segment_ids", "tokens_positions")
    batch = {name: _rows(mesh, (config.batch_size, config.length + 1), jnp.int32) for name in names}
    groups = {"weights": state.params, "optimiser": state.opt_state, "batch": batch}
    rows, length = config.batch_size, config.length
    cost = flops.training(model) * rows * length
    return Step(program.step, (state, batch), groups, model, rows, length, cost)


def make(config: Any, size: str | None, mesh: Mesh) -> Step:
    """The step of a config, with the dimensions of a released model if `size` names one.

    Raises:
      UsageError: an unknown size, a method that cannot be planned, or rows that the mesh does not divide.
    """
    rows = config.data.batch_size if isinstance(config, RunConfig) else config.batch_size
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        key = "data.batch_size" if isinstance(config, RunConfig) else "batch_size"
        raise UsageError(f"a batch of {rows} rows cannot be cut over data x fsdp = {parts} chips: change --{key}")
    if isinstance(config, PretrainConfig):
        own = pretrain.make_model(config).config
        return pretraining(config, dimensions(size, config.dtype, config.remat, "auto") if size else own, mesh)
    dtype = "bfloat16" if config.model.dtype == "auto" else config.model.dtype
    if size:
        return tuning(config, dimensions(size, dtype, config.model.remat, config.model.wkv or "auto"), mesh)
    from rwkv7_jax import checkpoint

    own = checkpoint.load(build.checkpoint_path(config.model.checkpoint), lazy=True).config
    compute: dict[str, Any] = {"dtype": dtype, "remat": config.model.remat, "wkv_implementation": "auto"}
    return tuning(config, dataclasses.replace(own, **compute), mesh)


def partial_cast(dtype: str) -> Callable[[Any, Any], jax.ShapeDtypeStruct]:
    """(path, leaf) -> the leaf as `build` would place it: matrices in the compute dtype, the rest float32."""

    def one(at: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype if is_matrix(at) else jnp.float32)

    return one


def init(model: RWKV7Config) -> Callable[[Any], Any]:
    """key -> parameters."""
    return partial(init_params, RWKV7(model))


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.row_sharding(mesh))
