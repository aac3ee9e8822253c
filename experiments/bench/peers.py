"""PyPI rwkv (torch), float32 on a CPU, on the same checkpoint (`pip install "rwkv7-jax[peers]"`)."""

import os
from pathlib import Path

from experiments.bench.inputs import PREFILL, PROMPT, STEP, Timed, decoded, tokens


def _model(checkpoint: Path):
    """Returns the model; its settings are variables of the environment."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    from rwkv.model import RWKV

    return RWKV(model=str(checkpoint.with_suffix("")), strategy="cpu fp32")


def prefill(checkpoint: Path) -> Timed:
    """Returns the reading of a prompt, and the logits after it."""
    model = _model(checkpoint)
    prompt = tokens(PREFILL, model.args.vocab_size)
    return Timed({"": lambda: model.forward(prompt, None)}, model.forward(prompt, None)[0].tolist())


def decoding(checkpoint: Path) -> Timed:
    """Returns the bare step of one sequence, and the logits after the prompt."""
    model = _model(checkpoint)
    logits, state = model.forward(tokens(PROMPT, model.args.vocab_size), None)

    def steps() -> None:
        current = [leaf.clone() for leaf in state]
        for _ in range(decoded(STEP, 1)):
            _, current = model.forward([5], current)

    weights = sum(tensor.nbytes for name, tensor in model.z.items() if name != "emb.weight")
    return Timed({STEP: steps}, logits.tolist(), weights)
