"""The peers' side of the comparison (`pip install -e ".[peers]"`). JAX is imported where keras-hub needs it alone."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from experiments.bench.inputs import DECODE, PREFILL, PROMPT, SHAPES, Decode, Timed, tokens


def _rwkv_pip_model(checkpoint: Path):
    """Returns PyPI rwkv's model, float32 on CPU; its settings are variables of the environment."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    from rwkv.model import RWKV

    return RWKV(model=str(checkpoint.with_suffix("")), strategy="cpu fp32")


def rwkv_pip(task: str, checkpoint: Path) -> Timed:
    """Returns PyPI rwkv's (function to time, logits after the prefill), float32 on CPU."""
    model = _rwkv_pip_model(checkpoint)
    import torch  # pyright: ignore[reportMissingImports]

    prompt = tokens(PREFILL, model.args.vocab_size)
    logits, state = model.forward(prompt, None)

    def decode() -> int:
        token, current = int(torch.argmax(logits)), [leaf.clone() for leaf in state]
        for _ in range(DECODE):
            out, current = model.forward([token], current)
            token = int(torch.argmax(out))
        return token

    return (lambda: model.forward(prompt, None)) if task == "prefill" else decode, logits.tolist()


def decoding(who: str, task: Decode, checkpoint: Path, shape: str) -> Timed:
    """Returns a peer's (decoding of DECODE tokens a sequence, logits after the prompt)."""
    return keras_hub_steps(task.rows, shape) if who == "keras-hub" else rwkv_pip_steps(checkpoint)


def rwkv_pip_steps(checkpoint: Path) -> Timed:
    """Returns PyPI rwkv's bare steps, float32 on CPU."""
    model = _rwkv_pip_model(checkpoint)
    logits, state = model.forward(tokens(PROMPT, model.args.vocab_size), None)

    def steps() -> None:
        current = [leaf.clone() for leaf in state]
        for _ in range(DECODE):
            _, current = model.forward([5], current)

    return steps, logits.tolist()


def _keras_backbone(shape: str) -> tuple[ModuleType, Callable]:
    """Returns keras-hub on JAX, and its RWKV7 backbone with random weights."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras_hub as hub  # pyright: ignore[reportMissingImports]

    size = SHAPES[shape]
    backbone = hub.models.RWKV7Backbone(
        hidden_size=size.n_embd, head_size=64, num_layers=size.n_layer, vocabulary_size=size.vocab_size,
        intermediate_dim=4 * size.n_embd, dtype="float32",
    )  # fmt: skip
    return hub, backbone


def keras_hub_steps(rows: int, shape: str) -> Timed:
    """Returns keras-hub's steps with its cache on JAX, jitted with the cache donated, random weights, no logits."""
    size, (hub, backbone) = SHAPES[shape], _keras_backbone(shape)
    import jax
    import keras  # pyright: ignore[reportMissingImports]

    model = hub.models.RWKV7CausalLM(backbone)

    def step(weights, token, cache):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, weights, strict=True))):
            logits, _, cache = model.call_with_cache(token, cache)
        return logits, cache

    call = jax.jit(step, donate_argnums=2)
    weights, token = [variable.value for variable in model.variables], jax.numpy.full((rows, 1), 5, "int32")

    def steps() -> None:
        heads = size.n_embd // 64
        cache = [
            jax.numpy.zeros((rows, size.n_layer, heads, 64, 64)),
            jax.numpy.zeros((rows, size.n_layer, 2, 1, size.n_embd)),
        ]
        logits = None
        for _ in range(DECODE):
            logits, cache = call(weights, token, cache)
        jax.block_until_ready(logits)

    return steps, []


def keras_hub(shape: str) -> Timed:
    """Returns keras-hub's RWKV7 backbone on JAX, jitted, with random weights (speed alone is compared)."""
    _, backbone = _keras_backbone(shape)
    import jax
    import numpy as np

    ids = np.asarray([tokens(PREFILL, SHAPES[shape].vocab_size)], np.int32)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    call = jax.jit(lambda weights, rest, inputs: backbone.stateless_call(weights, rest, inputs)[0])
    weights, rest = [v.value for v in backbone.trainable_variables], [v.value for v in backbone.non_trainable_variables]
    return lambda: jax.block_until_ready(call(weights, rest, inputs)), []
