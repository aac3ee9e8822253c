"""Training RWKV-7 from scratch on the pocket world's text, as `rwkv7 pretrain` does.

Documents are packed whole into rows and each starts from the zero state. Muon with a cosine schedule; the embedded
models were made by it. An interrupted run resumes with the same command and gives the same weights.
"""

import dataclasses
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree
from optax.contrib import MuonDimensionNumbers, muon

from experiments.config.loop import LoopConfig
from experiments.config.pretraining import DimensionsConfig, OptimizationConfig
from experiments.config.schema import PretrainConfig, digest, resolved
from experiments.data.packing import Batches, pocket_tokenizer
from experiments.reporting.json_text import json_text
from experiments.training import distributed, loop
from experiments.training.metrics_log import MetricsLog, Row
from experiments.training.preemption import Interrupt
from rwkv7_jax import RWKV7, RWKV7Config, checkpoint, flops, functional, zero_state
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.functional import Params
from rwkv7_jax.model import init_params
from rwkv7_jax.sharding import gathered, host, pin, whole
from state_tuning.core import non_finite, objective
from state_tuning.core.accumulate import accumulated

BOOKKEEPING = ("output", "save_dtype", "mesh", *(field.name for field in dataclasses.fields(LoopConfig)))
HELD_OUT_SEED, HELD_OUT_BATCHES = 10**6, 4
WEIGHTS_FILE = "model.safetensors"

Batch = dict[str, Int[Array, "B T"]]


class TrainState(NamedTuple):
    """Weights and optimiser state."""

    params: Params
    opt_state: optax.OptState


class Program(NamedTuple):
    """The jitted functions of a run."""

    init: Callable[[Key[Array, ""]], TrainState]
    """key -> TrainState"""
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    """(TrainState, batch) -> (TrainState, metrics); the state is donated; a non-finite update leaves it as it was.
    metrics: loss (mean, nats per token), applied, state_finite [L,3], grad_finite [L]"""
    loss: Callable[[Params, Batch], Float[Array, ""]]
    """(params, batch) -> mean loss"""


def make_optimizer(config: OptimizationConfig) -> optax.GradientTransformation:
    """Returns clipping, then Muon for the blocks' matrices and Adam for all else, or Adam alone; linear warm-up, cosine
    decay.

    Muon multiplies whole matrices, so under fsdp they are gathered for it; Adam's update sends nothing.

    Source: https://kellerjordan.github.io/posts/muon.
    """

    def schedule(peak: float) -> optax.Schedule:
        end = max(config.steps, config.warmup + 1)  # a run that ends in the warm-up has no decay, as in tuning
        return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, end, peak * config.final_rate)

    if config.optimizer == "adam":
        update = optax.adamw(
            schedule(config.learning_rate),
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: _by_leaf(params, lambda name, ndim: _matrix_axes(name, ndim) is not None),
        )
        return optax.chain(optax.clip_by_global_norm(1.0), update)
    update = muon(
        schedule(config.muon_rate),
        weight_decay=config.weight_decay,
        adam_learning_rate=schedule(config.learning_rate),
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=partial(_by_leaf, choose=_matrix_axes),
    )
    return optax.chain(optax.clip_by_global_norm(1.0), update)


def _by_leaf(params: PyTree, choose: Callable[[str, int], object]) -> PyTree:
    """A tree like the weights, each leaf chosen by its path and number of axes."""
    return jax.tree_util.tree_map_with_path(lambda at, leaf: choose(jax.tree_util.keystr(at), leaf.ndim), params)


def _matrix_axes(name: str, ndim: int) -> MuonDimensionNumbers | None:
    """Input and output axis of a block's matrix, after the axis of stacked layers; None for any other leaf."""
    rank = ndim - name.startswith("['blocks']")
    if rank != 2 or not name.startswith("['block") or "r_k" in name:
        return None
    return MuonDimensionNumbers(*((-1, -2) if "weight" in name else (-2, -1)))


def make_model(config: DimensionsConfig) -> RWKV7:
    """Returns the model of these dimensions, with the vocabulary of the pocket world's tokenizer."""
    return RWKV7(
        RWKV7Config(
            pocket_tokenizer().vocab_size,
            config.n_layer,
            config.n_embd,
            config.head_size,
            decay_lora=config.lora,
            aaa_lora=config.lora,
            mv_lora=config.lora,
            gate_lora=config.gate_lora,
            dtype=config.dtype,
            remat=config.remat,
        )
    )


def make_program(model: RWKV7, config: OptimizationConfig) -> Program:
    """Returns a model's jitted init, step and loss."""
    optimizer = make_optimizer(config)

    def init(key: Key[Array, ""]) -> TrainState:
        params = init_params(model, key)
        return pin(TrainState(params, optimizer.init(params)))

    def sums(params: Params, batch: Batch) -> tuple[Array, tuple[Array, Array]]:
        tokens, segment = batch["tokens"], batch["tokens_segment_ids"]
        same = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
        starts = jnp.pad(segment[:, 1:-1] != segment[:, :-2], ((0, 0), (1, 0)), constant_values=True)
        state = zero_state(model.config, tokens.shape[0])
        hidden, last = functional.hidden(model, params, tokens[:, :-1], state, reset=starts)
        wanted = (tokens[:, 1:], same.astype(jnp.float32))
        if config.loss_chunk:
            head = partial(functional.logits, model, params | gathered({"head": params["head"]}))
            nll, count = objective.chunked_sums(hidden, head, *wanted, chunk=config.loss_chunk)
        else:
            nll, count = objective.completion_sums(functional.logits(model, params, hidden), *wanted)
        bad = (~non_finite.state_flags(jax.lax.stop_gradient(last))).astype(jnp.int32)
        return nll.sum(), (count.sum(), bad)

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        total, (count, _) = sums(params, batch)
        return objective.mean(total, count)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        data = jax.tree.map(jnp.asarray, batch)
        (total, (count, bad)), grads = accumulated(sums, state.params, data, config.accumulate)
        grads = jax.tree.map(lambda leaf: objective.mean(leaf, count), grads)
        with jax.numpy_dtype_promotion("standard"):  # optax's bias corrections mix int32 counts with float32
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = TrainState(cast(Params, optax.apply_updates(state.params, updates)), opt_state)
        value = objective.mean(total, count)
        kept, ok = non_finite.keep_if_finite(new, state, value, grads)
        metrics = {
            "loss": value,
            "applied": ok,
            "state_finite": bad == 0,
            "grad_finite": non_finite.weight_flags(grads),
        }
        return pin(kept), whole(metrics)

    return Program(jax.jit(init), jax.jit(step, donate_argnums=0), jax.jit(loss))


def pretrain(
    config: PretrainConfig, interrupt: Interrupt | None = None, mesh: Mesh | None = None
) -> Generator[Row, None, None]:
    """Trains to the end, yielding each logged row; writes config, metrics, checkpoints and FOLDER/model.safetensors.

    Args:
      config: all settings.
      interrupt: what tells that a signal came; None: one of its own, which hears none.
      mesh: the one that is set, if any (see `distributed.session`).
    """
    use_compilation_cache(config.compilation_cache)
    folder, model = config.folder, make_model(config)
    program = make_program(model, config)
    spread = distributed.Spread(mesh, config.batch_size)
    distributed.check_length(mesh, "length", config.length)
    stream = Batches(config, config.seed + HELD_OUT_SEED, spread.rows)
    held_out = [spread.put(next(stream)) for _ in range(HELD_OUT_BATCHES)]
    folder.mkdir(parents=True, exist_ok=True)

    def validate(state: TrainState) -> dict[str, float]:
        losses = [float(program.loss(state.params, one)) for one in held_out]
        return {"validation_loss": sum(losses) / len(losses)}

    task = loop.Task(
        "pretrain",
        program.step,
        Batches(config, config.seed, spread.rows),
        config.steps,
        digest(resolved(config, without=BOOKKEEPING)),
        tokens=lambda batch: config.batch_size * (config.length + 1),
        put=spread.put,
        flops=flops.training(model.config),
        evaluate=validate,
        evaluate_every=config.validate_every,
        title=config.name,
    )
    place = loop.Place(folder, folder, MetricsLog(folder / "metrics.jsonl"), interrupt or Interrupt())
    rows = loop.train(task, program.init(jax.random.key(config.seed)), config, place)
    if distributed.is_lead():
        write_text(folder / "config.json", json_text(resolved(config), indent=1) + "\n")
    state = yield from rows
    export(folder / WEIGHTS_FILE, state.params, config.save_dtype)


def export(path: Path, params: Params, dtype: Literal["float32", "bfloat16"]) -> None:
    """Writes the weights in released names; all processes have to call it together."""
    chosen = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    weights = jax.tree.map(lambda leaf: leaf.astype(chosen), host(params))
    if distributed.is_lead():
        checkpoint.save(path, weights)
