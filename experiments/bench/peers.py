"""The peers' side of the comparison (`pip install -e ".[peers]"`). JAX is imported where keras-hub needs it alone."""

import os
from pathlib import Path

from experiments.bench.inputs import DECODE, PREFILL, SHAPES, Timed, tokens


def rwkv_pip(task: str, checkpoint: Path) -> Timed:
    """Returns PyPI rwkv's (function to time, logits after the prefill), float32 on CPU."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    import torch  # pyright: ignore[reportMissingImports]
    from rwkv.model import RWKV

    model = RWKV(model=str(checkpoint.with_suffix("")), strategy="cpu fp32")
    prompt = tokens(PREFILL, model.args.vocab_size)
    logits, state = model.forward(prompt, None)

    def decode() -> int:
        token, current = int(torch.argmax(logits)), [leaf.clone() for leaf in state]
        for _ in range(DECODE):
            out, current = model.forward([token], current)
            token = int(torch.argmax(out))
        return token

    return (lambda: model.forward(prompt, None)) if task == "prefill" else decode, logits.tolist()


def keras_hub(shape: str) -> Timed:
    """Returns keras-hub's RWKV7 backbone on JAX, jitted, with random weights (speed alone is compared)."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras_hub as hub  # pyright: ignore[reportMissingImports]
    import numpy as np

    size = SHAPES[shape]
    backbone = hub.models.RWKV7Backbone(
        hidden_size=size.n_embd, head_size=64, num_layers=size.n_layer, vocabulary_size=size.vocab_size,
        intermediate_dim=4 * size.n_embd, dtype="float32",
    )  # fmt: skip
    ids = np.asarray([tokens(PREFILL, size.vocab_size)], np.int32)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    call = jax.jit(lambda weights, rest, inputs: backbone.stateless_call(weights, rest, inputs)[0])
    weights, rest = [v.value for v in backbone.trainable_variables], [v.value for v in backbone.non_trainable_variables]
    return lambda: jax.block_until_ready(call(weights, rest, inputs)), []
