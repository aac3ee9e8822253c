"""ARC: each choice's text scored after the question alone (lm-evaluation-harness `arc_challenge`, version 1)."""

import sys
from collections.abc import Sequence

from experiments.tasks.types import Fewshot, Loglikelihood, Record, Request, best, check_record, with_shots


class Arc:
    """Records {id, question, choices: {text, label}, answerKey}, labels being letters or digits."""

    name = "arc"
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    headline = "acc_norm"
    protocol = "lm-evaluation-harness 0.4.13 arc_challenge"
    split = "test"
    fewshot = Fewshot("train", "seeded")
    shots = 25
    prefix: tuple[int, ...] = ()

    def description(self, record: Record) -> str:
        """Returns nothing: the prompt has no opening."""
        del record
        return ""

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        """Asks for each choice's log-likelihood after the shots and the question."""
        context = with_shots("", ["".join(self.to_example(shot)) for shot in shots], self.to_example(record)[0])
        return [Loglikelihood(context, f" {choice}") for choice in record["choices"]["text"]]

    def score(self, record: Record, results: Sequence[float]) -> dict[str, float]:
        """`acc_norm` divides each log-likelihood by the choice's characters, leading space not counted."""
        gold, choices = _gold(record), record["choices"]["text"]
        by_length = [x / len(text) if text else -sys.float_info.max for x, text in zip(results, choices, strict=True)]
        return {"acc": float(best(results) == gold), "acc_norm": float(best(by_length) == gold)}

    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (question, right choice)."""
        check_record(record, ("question", "choices", "answerKey"), self.name)
        return f"Question: {record['question']}\nAnswer:", f" {record['choices']['text'][_gold(record)]}"


def _gold(record: Record) -> int:
    """Position of the right choice. Raises ValueError where the key is not among the labels."""
    labels = list(record["choices"]["label"])
    if record["answerKey"] not in labels:
        raise ValueError(f"answerKey {record['answerKey']!r} is none of the labels {', '.join(map(str, labels))}")
    return labels.index(record["answerKey"])
