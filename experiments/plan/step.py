"""The training step of a config as a program with abstract arguments: nothing is computed, no weight is read."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Key, PyTree

from experiments import build, methods
from experiments.config.methods import MethodConfig, RewardMethod, UpscaleMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, ModelConfig, PretrainConfig, TuneConfig
from experiments.training import pretraining as pretrain
from experiments.training.distributed import check_length
from rwkv7_jax import RWKV7, RWKV7Config, checkpoint, flops, sharding
from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.dtypes import BITS, Quantise, is_linear, is_matrix
from rwkv7_jax.functional import Params
from rwkv7_jax.model import init_params
from rwkv7_jax.quantisation import quantised_shape
from state_tuning.core import train
from state_tuning.core.objective import Batch

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "block"]

SIZES: dict[str, tuple[int, int, tuple[int, int, int, int]]] = {
    "0.1B": (12, 768, (64, 64, 32, 128)),
    "0.4B": (24, 1024, (64, 64, 32, 128)),
    "1.5B": (24, 2048, (96, 96, 64, 256)),
    "2.9B": (32, 2560, (96, 96, 64, 320)),
    "7.2B": (32, 4096, (128, 128, 96, 480)),
}
"""Layers, width and LoRA ranks (w, a, v, g) of the released models."""
NEEDS_TEXT = "method: an upscaling map is fitted to text with real weights: plan standard, dbp or baseline"


class Knobs(NamedTuple):
    """How a config calls the settings that change a step's memory."""

    batch: str
    length: str
    remat: str
    accumulate: str
    accumulated: int
    """Micro-batches of a step."""


class Step(NamedTuple):
    """A jitted step, its abstract arguments with shardings, and these in named groups for the table."""

    function: Callable[..., PyTree]
    arguments: tuple[PyTree, ...]
    groups: dict[str, PyTree]
    model: RWKV7Config
    batch_size: int
    length: int
    flops: float
    """Model FLOPs (`rwkv7_jax.flops`)."""
    knobs: Knobs


def dimensions(size: str, dtype: Dtype, remat: Remat, implementation: str | None) -> RWKV7Config:
    """Returns the config of a released model.

    Raises:
      UsageError: there is none of this size.
    """
    if size not in SIZES:
        raise UsageError(f"size {size!r} is unknown: give one of {', '.join(SIZES)}, or leave it out for the config's")
    n_layer, n_embd, (w, a, v, g) = SIZES[size]
    return RWKV7Config(
        65536, n_layer, n_embd, decay_lora=w, aaa_lora=a, mv_lora=v, gate_lora=g,
        dtype=dtype, remat=remat, wkv_implementation=implementation,
    )  # fmt: skip


def tuned_model(model: ModelConfig, size: str | None) -> RWKV7Config:
    """Returns the dimensions of the model to tune: a released size, or those of the config's checkpoint."""
    dtype: Dtype = "bfloat16" if model.dtype == "auto" else model.dtype
    if size:
        return dimensions(size, dtype, model.remat, model.wkv or "auto")
    own = checkpoint.load(build.checkpoint_path(model.checkpoint), lazy=True).config
    return dataclasses.replace(own, dtype=dtype, remat=model.remat, wkv_implementation="auto")


def tuning(
    model: ModelConfig, data: DataConfig, tune: TuneConfig, method: MethodConfig, size: str | None, mesh: Mesh
) -> Step:
    """Returns a step of state tuning on frozen weights, matrices in the compute dtype; the mesh must be set.

    Raises:
      UsageError: an unknown size, a method that is fitted to text or learns from rewards, or a batch that the mesh does
        not divide.
    """
    _check_batch("data.batch_size", data.batch_size, mesh)
    check_length(mesh, "data.max_length", data.max_length)
    if isinstance(method, UpscaleMethod):
        raise UsageError(NEEDS_TEXT)
    if isinstance(method, RewardMethod):
        raise UsageError(f"method.kind {method.kind}: only steps that learn from text can be planned")
    config = tuned_model(model, size)
    shapes = jax.eval_shape(init(config), jax.random.key(0))
    weights = abstract(jax.tree_util.tree_map_with_path(placed_shape(config.dtype, model.quantize), shapes), mesh)
    settings = build.tune_config(tune)
    chosen = methods.build(method, RWKV7(config), weights, settings, _no_text, 0)
    function = train.make_train_step(chosen.model, chosen.optimizer, settings, chosen.method, chosen.correlate)
    tuned = abstract(jax.eval_shape(lambda: train.init(chosen.optimizer, chosen.method.init())), mesh)
    length = padded_length(data.max_length)
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "loss_mask": jnp.float32, "valid": jnp.bool_}
    batch = {name: _batched(mesh, (data.batch_size, length), dtype) for name, dtype in dtypes.items()}
    groups = {"frozen weights": weights, "state and optimiser": tuned, "batch": batch}
    cost = flops.tuning(config) * data.batch_size * length
    knobs = Knobs("data.batch_size", "data.max_length", "model.remat", "tune.accumulate", tune.accumulate)
    return Step(function, (weights, tuned, batch), groups, config, data.batch_size, length, cost, knobs)


def pretraining(config: PretrainConfig, size: str | None, mesh: Mesh) -> Step:
    """Returns a step of training from scratch, weights and moments in float32; the mesh must be set.

    Raises:
      UsageError: an unknown size, or a batch that the mesh does not divide.
    """
    _check_batch("batch_size", config.batch_size, mesh)
    check_length(mesh, "length", config.length)
    own = pretrain.make_model(config).config
    model = dimensions(size, config.dtype, config.remat, "auto") if size else own
    program = pretrain.make_program(RWKV7(model), config)
    state = abstract(jax.eval_shape(program.init, jax.random.key(0)), mesh)
    names = ("tokens", "tokens_segment_ids", "tokens_positions")
    batch = {name: _batched(mesh, (config.batch_size, config.length + 1), jnp.int32) for name in names}
    groups = {"weights": state.params, "optimiser": state.opt_state, "batch": batch}
    cost = flops.training(model) * config.batch_size * config.length
    knobs = Knobs("batch_size", "length", "remat", "accumulate", config.accumulate)
    return Step(program.step, (state, batch), groups, model, config.batch_size, config.length, cost, knobs)


def abstract(tree: PyTree, mesh: Mesh) -> PyTree[jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes with the shardings of the table."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        sharding.shardings(tree, mesh),
    )


def placed_shape(dtype: str, quantise: Quantise = "auto") -> Callable[[Sequence[PyTree], Array], PyTree]:
    """Returns (path, leaf) -> the leaf as a model is loaded: matrices quantised or in `dtype`, the rest float32."""
    bits = BITS.get(quantise)

    def one(path: Sequence[PyTree], leaf: Array) -> PyTree:
        if bits and is_linear(path):
            return quantised_shape(leaf.shape, bits)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if is_matrix(path) else jnp.float32)

    return one


def init(model: RWKV7Config) -> Callable[[Key[Array, ""]], Params]:
    """Returns key -> parameters."""
    return partial(init_params, RWKV7(model))


def _check_batch(setting: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UsageError if the mesh does not divide the batch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise UsageError(
            f"a batch of {batch_size} sequences cannot be cut over data x fsdp = {parts} chips: "
            f"change --{setting}, or cut the tokens of each with --mesh.sequence"
        )


def _no_text(tokens: int) -> Batch:
    """Stands for the calibration text, which a plan does not have."""
    raise UsageError(NEEDS_TEXT)


def _batched(mesh: Mesh, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.row_sharding(mesh))
