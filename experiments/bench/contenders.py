"""Models of lm-evaluation-harness over the same requests: ours with and without forking, and PyPI `rwkv`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

from experiments.bench.lm_eval_plain import PlainLM, plain
from experiments.build import load_model
from experiments.config.schema import ModelConfig
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.evaluation.lm_eval_model import ForkingLM
from rwkv7_jax.tokenizer import load_tokenizer
from state_tuning.core.objective import Example

FORKING, ONCE, WHOLE = "ours, forking", "ours, equal contexts once", "ours, every request whole"
PEER, PEER_ONCE = "PyPI rwkv, every request whole", "PyPI rwkv, equal contexts once"


class Contender(NamedTuple):
    """A model of the harness and a reader of the tokens that it has fed so far."""

    model: LM
    fed: Callable[[], int]


def ours(path: Path, batch_size: int) -> dict[str, Contender]:
    """Returns our three."""
    lm = load_model(ModelConfig(str(path), dtype="float32"))
    forking = ForkingLM(lm, batch_size=batch_size)
    once = ForkingLM(lm, batch_size=batch_size, min_saved=10**9)
    whole = plain(Evaluator(lm, make_scorer(lm.model), batch_size))
    return {
        FORKING: Contender(forking, lambda: forking.scorer.cost.tokens),
        ONCE: Contender(once, lambda: once.scorer.cost.tokens),
        WHOLE: Contender(whole, lambda: whole.fed),
    }


def peers(path: Path) -> dict[str, Contender]:
    """Returns PyPI rwkv on the same checkpoint, one sequence after the other, as it works.

    Raises:
      ImportError: torch or rwkv is not installed.
    """
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    import torch  # pyright: ignore[reportMissingImports]
    from rwkv.model import RWKV

    torch.set_grad_enabled(False)
    network = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    tokenizer = load_tokenizer("world")

    def whole(examples: list[Example]) -> list[float]:
        scores = []
        for example in examples:
            logits, _ = network.forward(example.tokens[:-1].tolist(), None, full_output=True)
            scored = torch.log_softmax(logits.reshape(len(example.tokens) - 1, -1)[example.completion_start - 1 :], -1)
            targets = torch.tensor(example.tokens[example.completion_start :, None]).long()
            scores.append(float(scored.gather(1, targets).sum()))
        return scores

    read: dict[bytes, torch.Tensor] = {}
    count = [0]

    def once(examples: list[Example]) -> list[float]:
        read.clear()
        scores = []
        for example in examples:
            key = example.tokens[:-1].tobytes()
            if key not in read:
                count[0] += len(example.tokens) - 1
                logits, _ = network.forward(example.tokens[:-1].tolist(), None)
                read[key] = torch.log_softmax(logits, -1)
            scores.append(float(read[key][int(example.tokens[-1])]))
        return scores

    each = PlainLM(tokenizer, whole)
    return {
        PEER: Contender(each, lambda: each.fed),
        PEER_ONCE: Contender(PlainLM(tokenizer, once), lambda: count[0]),
    }
