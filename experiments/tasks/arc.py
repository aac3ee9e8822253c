"""ARC: each choice's text scored after the question alone (lm-evaluation-harness `arc_challenge`, version 1)."""

from collections.abc import Sequence

from experiments.tasks.types import Loglikelihood, Record, Request, best, check_record, with_shots


class Arc:
    """Records {id, question, choices: {text, label}, answerKey}, labels being letters or digits."""

    name = "arc"
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    headline = "acc_norm"

    def description(self, record: Record) -> str:
        del record
        return ""

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        context = with_shots("", ["".join(self.to_example(shot)) for shot in shots], self.to_example(record)[0])
        return [Loglikelihood(context, f" {choice}") for choice in record["choices"]["text"]]

    def score(self, record: Record, results: Sequence[float]) -> dict[str, float]:
        """`acc_norm` divides each log-likelihood by the choice's characters, leading space not counted."""
        gold = _gold(record)
        by_length = [result / len(choice) for result, choice in zip(results, record["choices"]["text"], strict=True)]
        return {"acc": float(best(results) == gold), "acc_norm": float(best(by_length) == gold)}

    def to_example(self, record: Record) -> tuple[str, str]:
        check_record(record, ("question", "choices", "answerKey"), self.name)
        return f"Question: {record['question']}\nAnswer:", f" {record['choices']['text'][_gold(record)]}"


def _gold(record: Record) -> int:
    """Position of the right choice. Raises ValueError where the key is not among the labels."""
    return list(record["choices"]["label"]).index(record["answerKey"])
