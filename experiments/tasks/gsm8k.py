"""GSM8K: a worked answer generated greedily, its number compared exactly (lm-evaluation-harness `gsm8k`, version 3)."""

import re
from collections.abc import Sequence

from experiments.tasks.types import Fewshot, Generate, Record, Request, check_record, with_shots

STOP = ("Question:", "</s>", "<|im_end|>")
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))
NO_MATCH = "[invalid]"


class Gsm8k:
    """Records {question, answer ending in `#### n`}."""

    name = "gsm8k"
    metrics: tuple[str, ...] = ("strict_match", "flexible_extract")
    headline = "flexible_extract"
    protocol = "lm-evaluation-harness 0.4.13 gsm8k, greedy"
    split = "test"
    fewshot = Fewshot("train", "seeded")
    shots = 5
    prefix: tuple[int, ...] = ()

    def description(self, record: Record) -> str:
        """Returns nothing: the prompt has no opening."""
        del record
        return ""

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        """Asks for a text after the shots and the question."""
        solved = ["".join(self.to_example(shot)) for shot in shots]
        return [Generate(with_shots("", solved, self.to_example(record)[0]), STOP)]

    def score(self, record: Record, results: Sequence[str]) -> dict[str, float]:
        """Compares the number after `####`, and the last number of the text, with the right one."""
        gold = plain_number(record["answer"])
        (generated,) = results
        return {
            "strict_match": float(plain_number(strict(generated)) == gold),
            "flexible_extract": float(plain_number(flexible(generated)) == gold),
        }

    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (question, worked answer)."""
        check_record(record, ("question", "answer"), self.name)
        return f"Question: {record['question']}\nAnswer:", f" {record['answer']}"


def strict(generated: str) -> str:
    """The number after the first `#### `, or NO_MATCH."""
    match = STRICT.search(generated)
    return match.group(1) if match else NO_MATCH


def flexible(generated: str) -> str:
    """The last thing that looks like a number, or NO_MATCH."""
    matches = FLEXIBLE.findall(generated)
    return next(group for group in matches[-1] if group).strip() if matches else NO_MATCH


def plain_number(answer: str) -> str:
    """The answer without commas, dollar signs, all up to the last `#### `, a final full stop and case."""
    for pattern in IGNORED:
        answer = pattern.sub("", answer)
    return answer.lower()
