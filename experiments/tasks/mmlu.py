"""MMLU: four choices in the prompt, the letters scored (lm-evaluation-harness `mmlu`, version 1)."""

from collections.abc import Sequence

from experiments.tasks.types import Loglikelihood, Record, Request, best, check_record, with_shots

LETTERS = ("A", "B", "C", "D")


class Mmlu:
    """Records {question, choices[4], answer: 0..3, subject}. Its mean over records weights subjects by size."""

    name = "mmlu"
    metrics: tuple[str, ...] = ("acc",)
    headline = "acc"

    def description(self, record: Record) -> str:
        subject = record["subject"].replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {subject}.\n\n"

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        check_record(record, ("question", "choices", "answer", "subject"), self.name)
        solved = [f"{_prompt(shot)} {LETTERS[shot['answer']]}" for shot in shots]
        context = with_shots(self.description(record), solved, _prompt(record))
        return [Loglikelihood(context, f" {letter}") for letter in LETTERS]

    def score(self, record: Record, results: Sequence[float]) -> dict[str, float]:
        return {"acc": float(best(results) == record["answer"])}

    def to_example(self, record: Record) -> tuple[str, str]:
        context, completion = self.requests(record)[record["answer"]]
        assert isinstance(completion, str)
        return context, completion


def _prompt(record: Record) -> str:
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, record["choices"], strict=True))
    return f"{record['question'].strip()}\n{choices}Answer:"
