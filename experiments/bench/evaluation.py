"""`python -m experiments.bench.evaluation --data-dir data`: few-shot MMLU by forking states, against re-reading.

lm-evaluation-harness drives each model over the same requests: ours with forking, ours reading equal contexts once,
ours reading every request whole, and PyPI `rwkv` (torch) likewise. All run in turn, round after round, the best counts;
a first round of ours, which compiles, does not. Correct first: log-likelihoods that differ get no time.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TOLERANCE = 1e-3
FORKING, ONCE, WHOLE = "ours, forking", "ours, equal contexts once", "ours, every request whole"
PEER, PEER_ONCE = "PyPI rwkv, every request whole", "PyPI rwkv, equal contexts once"


class Contender(NamedTuple):
    """A model of the harness and a reader of the tokens that it has fed so far."""

    model: Any
    fed: Callable[[], int]


def ours(path: Path, batch_size: int) -> dict[str, Contender]:
    """Our three."""
    from experiments.bench.lm_eval_plain import plain
    from experiments.build import build
    from experiments.config.schema import ModelConfig
    from experiments.evaluation.evaluator import Evaluator, make_scorer
    from experiments.evaluation.lm_eval_model import ForkingLM
    from rwkv7_jax.inference.scoring import Forker

    lm = build(ModelConfig(str(path), dtype="float32"))
    forking, once = ForkingLM(lm, batch_size=batch_size), ForkingLM(lm, batch_size=batch_size)
    once.forker = Forker(lm.model, lm.params, batch_size, min_saved=10**9)
    whole = plain(Evaluator(lm, make_scorer(lm.model), batch_size))
    return {
        FORKING: Contender(forking, lambda: forking.forker.cost.tokens),
        ONCE: Contender(once, lambda: once.forker.cost.tokens),
        WHOLE: Contender(whole, lambda: whole.fed),
    }


def peers(path: Path) -> dict[str, Contender]:
    """PyPI rwkv on the same checkpoint, one sequence after the other, as it works.

    Raises: ImportError without torch.
    """
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    import torch  # pyright: ignore[reportMissingImports]
    from rwkv.model import RWKV

    from experiments.bench.lm_eval_plain import PlainLM
    from rwkv7_jax.tokenizer.tokenizers import load_tokenizer

    torch.set_grad_enabled(False)
    network = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    tokenizer = load_tokenizer("world")

    def whole(examples: list[Any]) -> list[float]:
        scores = []
        for example in examples:
            logits, _ = network.forward(example.tokens[:-1].tolist(), None, full_output=True)
            rows = torch.log_softmax(logits.reshape(len(example.tokens) - 1, -1)[example.completion_start - 1 :], -1)
            scores.append(
                float(rows.gather(1, torch.tensor(example.tokens[example.completion_start :, None]).long()).sum())
            )
        return scores

    read: dict[bytes, Any] = {}
    count = [0]

    def once(examples: list[Any]) -> list[float]:
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


def measure(contenders: dict[str, Contender], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens, best seconds and log-likelihoods of each."""
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from experiments.evaluation.lm_eval_data import local_datasets

    manager = TaskManager()
    simple_evaluate: Any = lm_eval.simple_evaluate
    rows = {who: {"who": who, "seconds": float("inf")} for who in contenders}
    with local_datasets(args.data_dir):
        for number in range(args.rounds + 1):
            for who, one in contenders.items():
                if not number and not who.startswith("ours"):
                    continue
                print(f"round {number} of {args.rounds}: {who}", file=sys.stderr, flush=True)
                before, watch = one.fed(), _Watch(one.model)
                found = simple_evaluate(
                    model=one.model, tasks=[f"mmlu_{name}" for name in args.subjects.split(",")],
                    num_fewshot=args.shots, limit=args.limit, task_manager=manager,
                )  # fmt: skip
                rows[who]["tokens"] = one.fed() - before
                rows[who]["scores"] = _likelihoods(found)
                if number:
                    rows[who]["seconds"] = min(rows[who]["seconds"], watch.seconds)
                watch.stop()
    return list(rows.values())


class _Watch:
    """Times a model's own work, without the harness's."""

    def __init__(self, model: Any):
        self.model, self.work, self.seconds = model, model.loglikelihood, 0.0
        model.loglikelihood = self._timed

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        found = self.work(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return found

    def stop(self) -> None:
        self.model.loglikelihood = self.work


def _likelihoods(found: Any) -> list[float]:
    samples = [(task, s["doc_id"], s) for task, many in found["samples"].items() for s in many]
    ordered = sorted(samples, key=lambda one: one[:2])
    return [float(response[0][0]) for *_, sample in ordered for response in sample["resps"]]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: tokens and seconds, and how many times those of forking."""
    base = rows[0]
    lines = ["| model | tokens | times forking's | seconds | times forking's |", "|---|---|---|---|---|"]
    for row in rows:
        error = max(abs(a - b) / abs(b) for a, b in zip(row["scores"], base["scores"], strict=True))
        cells = f"| {row['who']} | {row['tokens']} | {row['tokens'] / base['tokens']:.1f} |"
        if error > TOLERANCE:
            lines.append(f"{cells} wrong: differs by {error:.1e} | |")
        else:
            lines.append(f"{cells} {row['seconds']:.2f} | {row['seconds'] / base['seconds']:.1f} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.bench.evaluation", description=(__doc__ or "").split("\n\n")[0]
    )
    p.add_argument("--data-dir", required=True, help="folder of MMLU's files")
    p.add_argument("--checkpoint", type=Path, help="a .pth [random weights of --shape]")
    p.add_argument("--shape", choices=("0.1B",), default="0.1B", help="shape of the random weights")
    p.add_argument("--subjects", default="abstract_algebra,astronomy,global_facts", help="by commas")
    p.add_argument("--shots", type=int, default=5)
    p.add_argument("--limit", type=int, default=10, help="questions of each subject")
    p.add_argument("--rounds", type=int, default=3, help="timed rounds; the best counts")
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--without", action="append", default=[], metavar="WORD", help="leave out those whose name has it")
    p.add_argument("--json", type=Path, help="write all numbers to this file too")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    from experiments.bench.inputs import make_checkpoint

    args = parser().parse_args(argv)
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError:
        print('error: lm_eval is not installed: pip install -e ".[lm-eval]"', file=sys.stderr)
        return 2
    logging.getLogger(lm_eval.__name__).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = args.checkpoint or Path(folder) / "random.pth"
        if args.checkpoint is None:
            make_checkpoint(path, args.shape)
        contenders = ours(path, args.batch_size)
        try:
            contenders |= peers(path)
        except ImportError as error:
            print(f"without PyPI rwkv: {error}", file=sys.stderr)
        chosen = {who: one for who, one in contenders.items() if not any(word in who for word in args.without)}
        rows = measure(chosen, args)
    print(f"MMLU, {args.shots} shots, {args.limit} questions each of {args.subjects}\n\n{table(rows)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
