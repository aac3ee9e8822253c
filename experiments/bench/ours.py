"""This project's side of the comparison: prefill, decode and the import."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.bench.inputs import DECODE, PREFILL, PROMPT, Decode, Timed, tokens
from rwkv7_jax import RWKV7, SamplingParams, functional, generate, unstack_blocks, zero_state
from rwkv7_jax import checkpoint as files
from rwkv7_jax.dtypes import on_device
from rwkv7_jax.generation.generate import for_decoding
from rwkv7_jax.model import split_layers


def generation(task: str, checkpoint: Path) -> Timed:
    """Returns (function to time, logits after the prefill)."""
    loaded = files.load(checkpoint)
    config = dataclasses.replace(loaded.config, scan_layers=False)
    model = RWKV7(config)
    params = unstack_blocks(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params))
    state = zero_state(config, 1)
    prompt = jnp.asarray([tokens(PREFILL, config.vocab_size)], jnp.int32)
    last_only = task != "prefill, all logits"
    step = jax.jit(lambda p, t, s: functional.forward(model, p, t, s, last_only=last_only))
    logits, after = step(params, prompt, state)
    result = logits[0, -1].tolist()
    if task.startswith("prefill"):
        return lambda: jax.block_until_ready(step(params, prompt, state)), result

    def decode() -> jax.Array:
        token, current = jnp.argmax(logits[:, -1:], axis=-1), after
        for _ in range(DECODE):
            out, current = step(params, token, current)
            token = jnp.argmax(out[:, -1:], axis=-1)
        return token.block_until_ready()

    return decode, result


def importing(checkpoint: Path) -> Timed:
    """Returns (reading of the .pth alone, nothing): every tensor is touched, as a copy to a device would."""
    return lambda: sum(float(leaf.reshape(-1)[0]) for leaf in jax.tree.leaves(files.load(checkpoint).params)), []


def decoding(task: Decode, checkpoint: Path) -> Timed:
    """Returns (decoding of DECODE tokens a sequence, logits of the first one after the prompt)."""
    loaded = files.load(checkpoint)
    config = on_device(loaded.config, "bfloat16" if task.dtype == "bfloat16" else "float32")
    model, params = for_decoding(RWKV7(config), loaded.params)
    del loaded
    prompt = tokens(PROMPT, config.vocab_size)
    step = jax.jit(functional.step, static_argnums=0, donate_argnums=3)
    layers = split_layers(zero_state(config, task.rows))
    logits, after = step(model, params, jnp.asarray([prompt] * task.rows, jnp.int32), layers)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]

    def steps() -> jax.Array:
        current, out = jax.tree.map(jnp.copy, after), logits
        for _ in range(DECODE):
            out, current = step(model, params, token, current)
        return out.block_until_ready()

    greedy = task.kind == "greedy"
    settings = SamplingParams(temperature=0 if greedy else 1, top_p=1 if greedy else 0.85, max_new_tokens=DECODE)

    def text() -> list[list[int]]:
        return generate(model, params, [prompt] * task.rows, None, jax.random.key(0), settings, eos_id=None).tokens

    return (steps if task.kind == "step" else text), logits[0].tolist()


def bandwidth() -> Timed:
    """Returns (sum over a large array, its bytes)."""
    numbers = jnp.ones(1 << 27, jnp.float32)
    total = jax.jit(jnp.sum)
    return lambda: total(numbers).block_until_ready(), [float(numbers.nbytes)]
