"""keras-hub's RWKV-7 on JAX with the weights of the checkpoint, float32, jitted (`pip install "rwkv7-jax[peers]"`)."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.inputs import PREFILL, PROMPT, SHAPES, STEP, Timed, decoded, tokens
from rwkv7_jax.checkpoint import pth

RENAMED = {"output": "output_layer", "emb": "token_embedding", "ln_out": "output_layer_norm"}
"""Layers that have other names there."""


def _backbone(shape: str, checkpoint: Path) -> Callable:
    """Returns keras-hub's backbone with the weights of the checkpoint."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras_hub  # pyright: ignore[reportMissingImports]

    size = SHAPES[shape]
    backbone = keras_hub.models.RWKV7Backbone(
        hidden_size=size.n_embd, head_size=64, num_layers=size.n_layer, vocabulary_size=size.vocab_size,
        intermediate_dim=4 * size.n_embd, dtype="float32",
    )  # fmt: skip
    for name, tensor in pth.read(checkpoint).items():
        _assign(backbone, name, np.asarray(tensor, np.float32))
    return backbone


def _assign(backbone, name: str, value: np.ndarray) -> None:
    """Gives one released tensor to the variable that stands for it."""
    *path, last = name.split(".")
    layer, rest = backbone, path
    if path[0] == "blocks":
        layer, rest = backbone.rwkv_layers[int(path[1])], path[2:]
        if path[1] == "0" and last in ("v0", "v1", "v2"):
            return
    for part in rest:
        layer = getattr(layer, RENAMED.get(part, part))
    if last not in ("weight", "bias"):
        variable = getattr(layer, last)
        variable.assign(value.reshape(variable.shape))
    elif hasattr(layer, "gamma"):
        (layer.gamma if last == "weight" else layer.beta).assign(value)
    elif hasattr(layer, "kernel"):  # [in, out]
        layer.kernel.assign(value.T)
    else:
        layer.embeddings.assign(value)


def decoding(rows: int, checkpoint: Path, shape: str) -> Timed:
    """Returns the bare step with keras-hub's cache, which is donated, and the logits after the prompt."""
    size, backbone = SHAPES[shape], _backbone(shape, checkpoint)
    import keras  # pyright: ignore[reportMissingImports]
    import keras_hub  # pyright: ignore[reportMissingImports]

    model = keras_hub.models.RWKV7CausalLM(backbone)

    def step(weights, tokens, cache):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, weights, strict=True))):
            logits, _, cache = model.call_with_cache(tokens, cache)
        return logits[:, -1], cache

    call = jax.jit(step, donate_argnums=2)
    weights, token = [variable.value for variable in model.variables], jnp.full((rows, 1), 5, jnp.int32)
    state = jnp.zeros((rows, size.n_layer, size.n_embd // 64, 64, 64))
    prompt = jnp.asarray([tokens(PROMPT, size.vocab_size)] * rows, jnp.int32)
    logits, after = call(weights, prompt, [state, jnp.zeros((rows, size.n_layer, 2, 1, size.n_embd))])

    held = [after]

    def steps() -> None:
        cache, out = held.pop(), logits
        for _ in range(decoded(STEP, rows)):
            out, cache = call(weights, token, cache)
        held.append(cache)
        jax.block_until_ready(out)

    read = sum(value.nbytes for value in weights) - model.backbone.token_embedding.embeddings.value.nbytes
    return Timed({STEP: steps}, logits[0].tolist(), read)


def prefill(checkpoint: Path, shape: str) -> Timed:
    """Returns the reading of a prompt with all logits, and the last ones."""
    backbone = _backbone(shape, checkpoint)
    ids = np.asarray([tokens(PREFILL, SHAPES[shape].vocab_size)], np.int32)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    call = jax.jit(lambda weights, rest, inputs: backbone.stateless_call(weights, rest, inputs)[0])
    weights, rest = [v.value for v in backbone.trainable_variables], [v.value for v in backbone.non_trainable_variables]
    result = call(weights, rest, inputs)[0, -1].tolist()
    return Timed({"": lambda: jax.block_until_ready(call(weights, rest, inputs))}, result)
