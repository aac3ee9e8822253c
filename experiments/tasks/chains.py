"""Benchmarks answered after a chain of thought: the model writes the chain and the answer, and the answer is read back.

Each is a task beside the exact protocol of the same name (`experiments.tasks.TASKS`), with the same records, for
tuning and for scoring. `strict_match` reads the answer where the phrasing puts it, `flexible_extract` the last one of
the text; `chain_right` says whether the chain was right, whatever it ended in: the right choice was named, or GSM8K's
equations were all written.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence

from experiments.tasks.arc import Arc
from experiments.tasks.equations import equations, solves
from experiments.tasks.gsm8k import NO_MATCH, STOP, Gsm8k, flexible, plain_number
from experiments.tasks.mmlu import LETTERS, Mmlu
from experiments.tasks.phrasings import (
    answer_pattern,
    last_choice,
    last_label,
    number_pattern,
    phrasing,
)
from experiments.tasks.types import Generate, Record, Request, Task, check_record, with_shots
from experiments.tasks.winogrande import Winogrande

LINE = ("\n", "</s>", "<|im_end|>")
"""What ends a chain of one line."""
Explain = Callable[[str, Record], str]
"""(benchmark, record) -> one or two sentences, or ''."""
METRICS = ("strict_match", "flexible_extract", "chain_right")


class ChainTask(ABC):
    """What all of them have in common; the exact protocol gives name, splits and the choice of examples."""

    metrics: tuple[str, ...] = METRICS
    headline = "strict_match"
    shots = 0
    prefix: tuple[int, ...] = ()

    def __init__(self, exact: Task, wanted: str, explain: Explain):
        self.exact, self.phrasing, self.explain = exact, phrasing(exact.name, wanted), explain
        self.name, self.split, self.fewshot = exact.name, exact.split, exact.fewshot
        self.protocol = f"{exact.name}, greedy, after a chain of thought, phrasing {self.phrasing.template!r}"
        self.stop: tuple[str, ...] = LINE

    def description(self, record: Record) -> str:
        """Returns what opens the exact protocol's prompt."""
        return self.exact.description(record)

    def prompt(self, record: Record) -> str:
        """Returns the prompt without examples."""
        return self.to_example(record)[0]

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        """Asks for a text after the shots and the question."""
        opening = self.description(record)
        solved = ["".join(self.to_example(shot)).removeprefix(self.description(shot)) for shot in shots]
        return [Generate(with_shots(opening, solved, self.prompt(record).removeprefix(opening)), self.stop)]

    @abstractmethod
    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (prompt, chain with its answer)."""

    @abstractmethod
    def score(self, record: Record, results: Sequence[str]) -> dict[str, float]:
        """Returns each of the metrics."""

    @abstractmethod
    def answer(self, record: Record, text: str) -> Hashable:
        """Returns what votes are counted by; None if a text has no answer."""


class ChoiceChain(ChainTask):
    """Choices with labels, listed in the prompt; the chain names the right one's text, then its label."""

    @abstractmethod
    def listed(self, record: Record) -> tuple[str, Sequence[str], Sequence[str], int]:
        """Returns (prompt, labels, texts, number of the right one)."""

    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (question with its choices, chain)."""
        prompt, labels, texts, right = self.listed(record)
        told = str(record.get("rationale") or self.explain(self.name, record)).strip()
        why = f" {told}" if told else ""
        return prompt, self.phrasing.template.format(value=texts[right], letter=labels[right], why=why)

    def score(self, record: Record, results: Sequence[str]) -> dict[str, float]:
        """Reads the label where the phrasing puts it, and the last one; the chain is right if it names the choice."""
        _, labels, texts, right = self.listed(record)
        (text,) = results
        found = answer_pattern(self.phrasing.template, labels).match(text)
        named = found is not None and found.groupdict().get("value", texts[right]).strip() == texts[right].strip()
        return {
            "strict_match": float(found is not None and found["letter"] == labels[right]),
            "flexible_extract": float(self._flexible(text, labels, texts) == right),
            "chain_right": float(named),
        }

    def answer(self, record: Record, text: str) -> Hashable:
        """Returns the number of the choice that a text ends in, by which votes are counted; None if it has none."""
        _, labels, texts, _ = self.listed(record)
        found = answer_pattern(self.phrasing.template, labels).match(text)
        return self._flexible(text, labels, texts) if found is None else labels.index(found["letter"])

    def _flexible(self, text: str, labels: Sequence[str], texts: Sequence[str]) -> int | None:
        label = last_label(text, labels)
        return last_choice(text, texts) if label is None else labels.index(label)


class MmluChain(ChoiceChain):
    """MMLU with the exact protocol's prompt."""

    def listed(self, record: Record) -> tuple[str, Sequence[str], Sequence[str], int]:
        """Returns (prompt, labels, texts, number of the right one)."""
        prompt, _ = self.exact.to_example(record)
        return prompt, LETTERS, record["choices"], record["answer"]


class ArcChain(ChoiceChain):
    """ARC with its choices in the prompt, which the exact protocol does not show."""

    def listed(self, record: Record) -> tuple[str, Sequence[str], Sequence[str], int]:
        """Returns (prompt, labels, texts, number of the right one)."""
        self.exact.to_example(record)
        labels, texts = list(record["choices"]["label"]), list(record["choices"]["text"])
        prompt = _lettered(f"Question: {record['question']}", labels, texts)
        return prompt, labels, texts, labels.index(record["answerKey"])


class WinograndeChain(ChoiceChain):
    """WinoGrande as a sentence with a gap and two options."""

    def listed(self, record: Record) -> tuple[str, Sequence[str], Sequence[str], int]:
        """Returns (prompt, labels, texts, number of the right one)."""
        self.exact.to_example(record)
        labels, texts = LETTERS[:2], (record["option1"], record["option2"])
        return _lettered(record["sentence"], labels, texts), labels, texts, int(record["answer"]) - 1


def _lettered(question: str, labels: Sequence[str], texts: Sequence[str]) -> str:
    lines = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
    return "\n".join([question, *lines, "Answer:"])


class Gsm8kChain(ChainTask):
    """GSM8K: the records' own solutions are the chains."""

    def __init__(self, exact: Task, wanted: str, explain: Explain):
        super().__init__(exact, wanted, explain)
        self.stop = STOP

    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (question, worked answer)."""
        check_record(record, ("question", "answer"), self.name)
        steps, mark, answer = record["answer"].rpartition("#### ")
        if not mark:
            raise ValueError(f"a gsm8k answer has no line `#### n`: {record['answer'][-40:]!r}")
        steps = steps.removesuffix("\n")
        fields = {"steps": steps, "plain_steps": without_notes(steps), "answer": answer}
        return self.exact.to_example(record)[0], self.phrasing.template.format(**fields)

    def score(self, record: Record, results: Sequence[str]) -> dict[str, float]:
        """Compares the number where the phrasing puts it, and the last number; the chain is right by its equations."""
        (text,) = results
        gold = plain_number(record["answer"])
        match = number_pattern(self.phrasing.template).search(text)
        right = plain_number(match.group(1) if match else NO_MATCH) == gold
        chain = solves(text, record["answer"]) if equations(record["answer"]) else right
        return {
            "strict_match": float(right),
            "flexible_extract": float(plain_number(flexible(text)) == gold),
            "chain_right": float(chain),
        }

    def answer(self, record: Record, text: str) -> Hashable:
        """Returns the number that a text ends in, by which votes are counted; None if it has none."""
        del record
        match = number_pattern(self.phrasing.template).search(text)
        found = plain_number(match.group(1) if match else flexible(text))
        return None if found == NO_MATCH else found


def without_notes(steps: str) -> str:
    """Returns a solution without the calculator's notes.

    Example:
      >>> without_notes("It is 2+3=<<2+3=5>>5.")
      'It is 2+3=5.'
    """
    parts = steps.split("<<")
    return parts[0] + "".join(part.partition(">>")[2] for part in parts[1:])


KINDS: dict[str, type[ChainTask]] = {
    "mmlu": MmluChain, "gsm8k": Gsm8kChain, "winogrande": WinograndeChain, "arc": ArcChain,
}  # fmt: skip
EXACT: dict[str, Task] = {"mmlu": Mmlu(), "gsm8k": Gsm8k(), "winogrande": Winogrande(), "arc": Arc()}


def chained(name: str, wanted: str, explain: Explain = lambda name, record: "") -> ChainTask:
    """Returns a benchmark that is answered after a chain of thought.

    Args:
      name: mmlu, gsm8k, winogrande or arc.
      wanted: the name of a phrasing, or a template of one's own.
      explain: (benchmark, record) -> what decides, for records without a `rationale` of their own.

    Raises:
      ValueError: in one line, as `phrasings.phrasing`.

    Example:
      >>> record = {"question": "What is blue?", "choices": ["grass", "sky", "snow", "coal"], "answer": 1,
      ...           "subject": "colours"}
      >>> chained("mmlu", "took").to_example(record)[1]
      ' It is sky, so Tom took B'
    """
    return KINDS[name](EXACT[name], wanted, explain)
