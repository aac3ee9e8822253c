"""This project's side of the comparison: prefill, decode, a state-tuning step and the import."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench.inputs import DECODE, PREFILL, TUNE, tokens


def generation(task: str, checkpoint: Path) -> tuple[Callable[[], Any], list[float]]:
    """(function to time, logits after the prefill) of this project."""
    import jax
    import jax.numpy as jnp

    from rwkv7_jax import RWKV7, unstack_blocks, zero_state
    from rwkv7_jax import checkpoint as files

    loaded = files.load(checkpoint)
    config = dataclasses.replace(loaded.config, scan_layers=False)
    model, params = (
        RWKV7(config),
        unstack_blocks(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)),
    )
    state = zero_state(config, 1)
    prompt = jnp.asarray([tokens(PREFILL, config.vocab_size)], jnp.int32)
    step = jax.jit(lambda p, t, s: model.apply({"params": p}, t, s, last_only=task != "prefill, all logits"))
    logits, after = step(params, prompt, state)
    result = logits[0, -1].tolist()
    if task.startswith("prefill"):
        return lambda: jax.block_until_ready(step(params, prompt, state)), result

    def decode():
        token, current = jnp.argmax(logits[:, -1:], axis=-1), after
        for _ in range(DECODE):
            out, current = step(params, token, current)
            token = jnp.argmax(out[:, -1:], axis=-1)
        return token.block_until_ready()

    return decode, result


def tuning(who: str, checkpoint: Path) -> tuple[Callable[[], Any], list[float]]:
    """(one loss and gradient to S_0 over a text of TUNE tokens, [loss]): ours, or a naive lax.scan model."""
    import jax
    import jax.numpy as jnp

    from rwkv7_jax import RWKV7, zero_state
    from rwkv7_jax import checkpoint as files
    from state_tuning.core.objective import chunked_sums, completion_loss

    loaded = files.load(checkpoint)
    config = dataclasses.replace(loaded.config, wkv_implementation=None if who == "ours" else "scan")
    model, zero = RWKV7(config), zero_state(config, 1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)
    text = jnp.asarray([tokens(TUNE + 1, config.vocab_size)], jnp.int32)
    mask = jnp.ones((1, TUNE), jnp.float32)

    def loss(wkv, params):
        variables, state = {"params": params}, zero._replace(wkv=wkv)
        if who == "ours":
            hidden, _ = model.apply(variables, text[:, :-1], state, method="hidden")
            head = lambda x: model.apply(variables, x, method="logits")  # noqa: E731
            nll, count = chunked_sums(hidden, head, text[:, 1:], mask, frozen_head=True)
            return nll.sum() / count.sum()
        if who == "token-by-token scan":

            def one(state, token):
                logits, state = model.apply(variables, token[None, None], state)
                return state, logits[:, 0]

            _, logits = jax.lax.scan(one, state, text[0, :-1])
            return completion_loss(jnp.moveaxis(logits, 0, 1), text[:, 1:], mask)
        return completion_loss(model.apply(variables, text[:, :-1], state)[0], text[:, 1:], mask)

    grad = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(grad(zero.wkv, params)), [float(grad(zero.wkv, params)[0])]


def importing(checkpoint: Path) -> tuple[Callable[[], Any], list[float]]:
    """Reading the .pth alone: every tensor is touched, as a copy to a device would."""
    import jax

    from rwkv7_jax import checkpoint as files

    return lambda: sum(float(leaf.reshape(-1)[0]) for leaf in jax.tree.leaves(files.load(checkpoint).params)), []
