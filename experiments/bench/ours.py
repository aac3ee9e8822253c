"""This project's side of the comparison: prefill, decoding and the import."""

import dataclasses
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.inputs import FIRST, GREEDY, PREFILL, PROMPT, SAMPLED, STEP, Timed, decoded, tokens
from rwkv7_jax import RWKV7, SamplingParams, functional, generate, unstack_blocks, zero_state
from rwkv7_jax import checkpoint as files
from rwkv7_jax.dtypes import BITS, Quantise, on_device, placed, quantised
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.generate import for_decoding
from rwkv7_jax.generation.weights import few
from rwkv7_jax.model import split_layers

PEAKED = 5.0
"""Standard deviation of the logits that are sampled from: random weights make them flatter than a trained model."""


def load(checkpoint: Path, dtype: str) -> tuple[RWKV7, Params]:
    """Loads a checkpoint as `LanguageModel.load` does.

    Args:
      checkpoint: the file.
      dtype: "float32", "bfloat16", "int8" and "int4" for quantised matrices beside float32, "int8 bfloat16" and
        "int4 bfloat16" for those whose products are computed in bfloat16; "float32 wide": see `needing_float32`.

    Returns:
      (model, its weights, stacked).
    """
    loaded = files.load(checkpoint, lazy=True)
    matrices, products = dtype.split()[0], dtype.split()[-1]
    config = on_device(loaded.config, "bfloat16" if products == "bfloat16" else "float32")
    quantise = cast(Quantise, matrices if matrices in BITS else "none")
    params = placed(quantised(loaded.params, quantise), config.dtype)
    return RWKV7(config), needing_float32(params) if products == "wide" else params


def needing_float32(params: Params) -> Params:
    """Returns float32 weights with the last bit of one number of each matrix changed: bfloat16 holds them no more."""

    def one(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.ndim < 2 else leaf.at[..., 0, 0].set(jnp.nextafter(leaf[..., 0, 0], jnp.inf))

    return jax.tree.map(one, params)


def prefill(dtype: str, checkpoint: Path, last_only: bool) -> Timed:
    """Returns the reading of a prompt, and the logits after it."""
    model, params = load(checkpoint, dtype)
    model, params = RWKV7(dataclasses.replace(model.config, scan_layers=False)), unstack_blocks(params)
    state = zero_state(model.config, 1)
    prompt = jnp.asarray([tokens(PREFILL, model.config.vocab_size)], jnp.int32)
    read = jax.jit(lambda p, t, s: functional.forward(model, p, t, s, last_only=last_only))
    result = read(params, prompt, state)[0][0, -1].tolist()
    return Timed({"": lambda: jax.block_until_ready(read(params, prompt, state))}, result)


def importing(checkpoint: Path) -> Timed:
    """Returns the reading of the .pth alone: every tensor is touched, as a copy to a device would."""
    return Timed(
        {"": lambda: sum(float(leaf.reshape(-1)[0]) for leaf in jax.tree.leaves(files.load(checkpoint).params))}, []
    )


def decoding(dtype: str, rows: int, checkpoint: Path) -> Timed:
    """Returns the bare step and generation of some sequences, and the logits of the first one after the prompt."""
    model, params = for_decoding(*load(checkpoint, dtype), few_rows=few(rows))
    prompt = tokens(PROMPT, model.config.vocab_size)
    step = jax.jit(functional.step, static_argnums=0, donate_argnums=3)
    layers = split_layers(zero_state(model.config, rows))
    logits, after = step(model, params, jnp.asarray([prompt] * rows, jnp.int32), layers)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]

    held = [after]

    def steps() -> jax.Array:
        current, out = held.pop(), logits
        for _ in range(decoded(STEP, rows)):
            out, current = step(model, params, token, current)
        held.append(current)
        return out.block_until_ready()

    def text(settings: SamplingParams) -> list[list[int]]:
        return generate(model, params, [prompt] * rows, None, jax.random.key(0), settings, eos_id=None).tokens

    greedy = SamplingParams(temperature=0, max_new_tokens=decoded(GREEDY, rows))
    temperature = float(np.std(logits[0])) / PEAKED
    sampled = SamplingParams(temperature=temperature, top_p=0.85, max_new_tokens=decoded(SAMPLED, rows))
    first = SamplingParams(temperature=0, max_new_tokens=1)
    calls = {STEP: steps, FIRST: lambda: text(first), GREEDY: lambda: text(greedy), SAMPLED: lambda: text(sampled)}
    return Timed(calls, logits[0].tolist(), weight_bytes(params))


def weight_bytes(params: Params) -> int:
    """Returns the bytes of all weights but the embedding; of quantised ones those of integers and scales."""
    return sum(leaf.nbytes for name, part in params.items() if name != "emb" for leaf in jax.tree.leaves(part))


def bandwidth() -> Timed:
    """Returns a sum over a large array, and its bytes."""
    numbers = jnp.ones(1 << 27, jnp.float32)
    total = jax.jit(jnp.sum)
    return Timed({"": lambda: total(numbers).block_until_ready()}, [float(numbers.nbytes)])
