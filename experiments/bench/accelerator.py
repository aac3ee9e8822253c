"""Whole models on an accelerator, in `rwkv7 bench gpu`: decoding of many sequences, and MFU of a state-tuning step.

Random weights in the dimensions of released models, drawn on the device in bfloat16. No time is given for logits that
disagree between reading a prompt at once and token by token, or for a loss that is not finite.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from experiments.bench.inputs import PROMPT, tokens
from experiments.bench.model import TOLERANCE
from experiments.bench.ours import weight_bytes
from experiments.plan.step import dimensions
from pallas_kernels.bench.gpu import Section
from rwkv7_jax import RWKV7, RWKV7Config, flops, functional, zero_state
from rwkv7_jax.dtypes import is_matrix
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.generate import for_decoding
from rwkv7_jax.generation.weights import few
from rwkv7_jax.model import init_params, split_layers
from state_tuning.core import train
from state_tuning.core.objective import Example, collate

PUBLISHED = {("1.5B", 320, "NVIDIA H100"): 28578.0, ("1.5B", 320, "NVIDIA H200"): 32289.0}
"""Tokens a second that another project published, by size, sequences and device."""


class Work(NamedTuple):
    """What is measured of one model: numbers of sequences that are decoded; rows and tokens of a tuning step."""

    size: str
    config: RWKV7Config
    streams: tuple[int, ...]
    rows: int
    length: int
    steps: int


def sections(tiny: bool) -> list[Section]:
    """Returns the parts of the report. tiny: a rehearsal with a model of two layers."""
    if tiny:
        small = RWKV7Config(512, 2, 128, dtype="bfloat16", remat="block")
        work = [Work("tiny", small, (1, 3), 2, 32, 2)]
    else:
        work = [
            Work("1.5B", dimensions("1.5B", "bfloat16", "block", "auto"), (1, 320), 8, 4096, 64),
            Work("0.4B", dimensions("0.4B", "bfloat16", "block", "auto"), (), 16, 4096, 64),
        ]
    return [partial(rows, one) for one in work]


def rows(work: Work) -> Iterator[Mapping[str, object]]:
    """Measures one model; what fails says why."""
    params = random_params(work.config)
    jobs: list[tuple[dict[str, object], Callable[[], dict[str, object]]]] = [
        ({"name": work.size, "task": "decode", "sequences": count}, partial(decoding, work, params, count))
        for count in work.streams
    ]
    shape = {"sequences": work.rows, "tokens": work.length}
    jobs.append(({"name": work.size, "task": "state-tuning step", **shape}, partial(tuning, work, params)))
    for row, job in jobs:
        try:
            row |= job()
        except Exception as failure:  # memory that is not enough, say: the message is the result
            row["failed"] = " ".join(str(failure).split())[:200]
        yield row


def random_params(config: RWKV7Config) -> Params:
    """Draws weights on the device: matrices in bfloat16, the rest in float32, as a checkpoint is placed."""
    shapes = jax.eval_shape(partial(init_params, RWKV7(config)), jax.random.key(0))
    paths, tree = jax.tree.flatten_with_path(shapes)

    def draw() -> PyTree:
        leaves = []
        for index, (path, leaf) in enumerate(paths):
            dtype = jnp.bfloat16 if is_matrix(path) else jnp.float32
            scale = jnp.asarray(leaf.shape[-1] ** -0.5 if len(leaf.shape) > 1 else 0.2, dtype)
            leaves.append(scale * jax.random.normal(jax.random.key(index), leaf.shape, dtype))
        return jax.tree.unflatten(tree, leaves)

    return jax.jit(draw)()


def decoding(work: Work, params: Params, count: int) -> dict[str, object]:
    """Decodes greedily, all sequences together.

    Raises:
      ValueError: the logits depend on how the prompt is read.
    """
    model, weights = for_decoding(RWKV7(work.config), params, few_rows=few(count))
    read = jax.jit(functional.step, static_argnums=0)

    def greedy(weights: Params, token: jax.Array, layers: list) -> tuple[jax.Array, jax.Array, list]:
        logits, layers = functional.step(model, weights, token, layers)
        return logits, jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None], layers

    step = jax.jit(greedy, donate_argnums=2)
    prompt = jnp.asarray([tokens(PROMPT, work.config.vocab_size)] * count, jnp.int32)
    wanted, _ = read(model, weights, prompt, split_layers(zero_state(model.config, count)))
    layers = split_layers(zero_state(model.config, count))
    logits, token = wanted, prompt[:, :1]
    for index in range(PROMPT):
        logits, token, layers = step(weights, prompt[:, index : index + 1], layers)
    difference = float(jnp.max(jnp.abs(logits - wanted)) / jnp.max(jnp.abs(wanted)))
    if not difference <= TOLERANCE["bfloat16"]:
        raise ValueError(f"wrong: logits token by token differ by {difference:.1e}")
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(work.steps):
            logits, token, layers = step(weights, token, layers)
        token.block_until_ready()
        best = min(best, (time.perf_counter() - begin) / work.steps)
    found: dict[str, object] = {
        "error": difference,
        "seconds": best,
        "tokens_per_second": count / best,
        "weight_bytes": weight_bytes(weights),
    }
    kind = jax.devices()[0].device_kind
    published = [speed for (*case, chip), speed in PUBLISHED.items() if case == [work.size, count] and chip in kind]
    return found | ({"times_published": count / best / published[0]} if published else {})


def tuning(work: Work, params: Params) -> dict[str, object]:
    """Takes steps of standard state tuning.

    Raises:
      ValueError: the loss is not finite.
    """
    model, tune = RWKV7(work.config), train.TuneConfig()
    optimizer, method = train.make_optimizer(tune), train.standard(model, tune)
    step, state = train.make_train_step(model, optimizer, tune, method), train.init(optimizer, method.init())
    text = np.asarray(tokens(work.length + 1, work.config.vocab_size), np.int32)
    batch = collate([Example(np.roll(text, shift), 1, 0) for shift in range(work.rows)], work.length)
    state, metrics = step(params, state, batch)
    loss, best = float(metrics["loss"]), float("inf")
    if not np.isfinite(loss):
        raise ValueError(f"wrong: the loss is {loss}")
    for _ in range(3):
        begin = time.perf_counter()
        state, metrics = step(params, state, batch)
        jax.block_until_ready(metrics)
        best = min(best, time.perf_counter() - begin)
    speed = work.rows * work.length / best
    return {
        "seconds": best, "tokens_per_second": speed, "loss": loss,
        "mfu": flops.mfu(speed, flops.tuning(work.config), jax.devices()[:1]),
    }  # fmt: skip
