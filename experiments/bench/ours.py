"""This project's side of the comparison: prefill, decode and the import."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.bench.inputs import DECODE, PREFILL, Timed, tokens
from rwkv7_jax import RWKV7, functional, unstack_blocks, zero_state
from rwkv7_jax import checkpoint as files


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
