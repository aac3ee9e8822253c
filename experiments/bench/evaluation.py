"""Few-shot MMLU by forking states, against re-reading (`rwkv7 bench evaluation --data.dir data`).

lm-evaluation-harness drives each model over the same requests: ours with forking, ours reading equal contexts once,
ours reading every request whole, and PyPI `rwkv` (torch) likewise. All run in turn, round after round, the best counts;
a first round of ours, which compiles, does not. Correct first: log-likelihoods that differ get no time.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.bench.weights import make_checkpoint
from experiments.config.overrides import UsageError
from experiments.evaluation.lm_eval_data import local_datasets
from experiments.reporting.tables import markdown_table

if TYPE_CHECKING:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    from experiments.bench.contenders import Contender

TOLERANCE = 1e-3


class Questions(NamedTuple):
    """What is asked of MMLU."""

    data_dir: Path
    subjects: Sequence[str]
    shots: int
    limit: int
    """Questions of each subject."""


class Result(NamedTuple):
    """Best seconds, tokens and log-likelihoods of a contender."""

    who: str
    seconds: float
    tokens: int
    scores: list[float]


def compare(
    questions: Questions,
    checkpoint: Path | None,
    *,
    shape: str = "0.1B",
    batch_size: int = 32,
    rounds: int = 3,
    without: Sequence[str] = (),
) -> list[Result]:
    """Measures all contenders.

    Args:
      questions: what is asked.
      checkpoint: a .pth; None: random weights.
      shape: of the random weights.
      batch_size: sequences at once.
      rounds: timed rounds; the best counts.
      without: leave out those whose name has one of these words.

    Returns:
      One result for each contender, forking first.

    Raises:
      UsageError: lm_eval is not installed.
    """
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError('lm_eval is not installed: pip install -e ".[lm-eval]"') from None
    from experiments.bench import contenders

    logging.getLogger(lm_eval.__name__).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint or Path(folder) / "random.pth"
        if checkpoint is None:
            make_checkpoint(path, shape)
        found = contenders.ours(path, batch_size)
        try:
            found |= contenders.peers(path)
        except ImportError as error:
            print(f"without PyPI rwkv: {error}", file=sys.stderr)
        chosen = {who: one for who, one in found.items() if not any(word in who for word in without)}
        return measure(chosen, questions, rounds)


def measure(contenders: "Mapping[str, Contender]", questions: Questions, rounds: int) -> list[Result]:
    """Returns tokens, best seconds and log-likelihoods of each."""
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager()
    results = {who: Result(who, float("inf"), 0, []) for who in contenders}
    with local_datasets(questions.data_dir):
        for number in range(rounds + 1):
            for who, one in contenders.items():
                if not number and not who.startswith("ours"):
                    continue
                print(f"round {number} of {rounds}: {who}", file=sys.stderr, flush=True)
                before, watch = one.fed(), _Watch(one.model)
                found = lm_eval.simple_evaluate(
                    model=one.model, tasks=[f"mmlu_{name}" for name in questions.subjects],
                    num_fewshot=questions.shots, limit=questions.limit, task_manager=manager,
                )  # fmt: skip
                watch.stop()
                seconds = min(results[who].seconds, watch.seconds) if number else results[who].seconds
                results[who] = Result(who, seconds, one.fed() - before, _likelihoods(found))
    return list(results.values())


class _Watch:
    """Times a model's own work, without the harness's."""

    def __init__(self, model: "LM"):
        self.model, self.work, self.seconds = model, model.loglikelihood, 0.0
        model.loglikelihood = self._timed

    def _timed(self, *args: object, **kwargs: object) -> object:
        started = time.perf_counter()
        found = self.work(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return found

    def stop(self) -> None:
        """Gives the model its own method back."""
        self.model.loglikelihood = self.work


def _likelihoods(found: Mapping[str, Any]) -> list[float]:
    samples = [(task, s["doc_id"], s) for task, many in found["samples"].items() for s in many]
    ordered = sorted(samples, key=lambda one: one[:2])
    return [float(response[0][0]) for *_, sample in ordered for response in sample["resps"]]


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table: tokens and seconds, and how many times those of the first."""
    base = results[0]
    lines = [["model", "tokens", "times forking's", "seconds", "times forking's"]]
    for result in results:
        error = float(np.max([abs(a - b) / abs(b) for a, b in zip(result.scores, base.scores, strict=True)]))
        right = [f"{result.seconds:.2f}", f"{result.seconds / base.seconds:.1f}"]
        cells = right if error <= TOLERANCE else [f"wrong: differs by {error:.1e}", ""]
        lines.append([result.who, str(result.tokens), f"{result.tokens / base.tokens:.1f}", *cells])
    return markdown_table(lines)


def show(questions: Questions, results: Sequence[Result]) -> str:
    """Returns the table under a line that says what was asked."""
    subjects = ",".join(questions.subjects)
    return f"MMLU, {questions.shots} shots, {questions.limit} questions each of {subjects}\n\n{table(results)}"
