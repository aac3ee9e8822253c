"""WinoGrande: partial evaluation, two contexts and one suffix (lm-evaluation-harness `winogrande`, version 1)."""

from collections.abc import Sequence

from experiments.tasks.types import Fewshot, Loglikelihood, Record, Request, best, check_record, with_shots


class Winogrande:
    """Records {sentence with one `_`, option1, option2, answer: "1" | "2"}."""

    name = "winogrande"
    metrics: tuple[str, ...] = ("acc",)
    headline = "acc"
    protocol = "lm-evaluation-harness 0.4.13 winogrande (XL)"
    split = "validation"
    fewshot = Fewshot("train", "seeded", drops_equal=True)
    shots = 5
    prefix: tuple[int, ...] = ()

    def description(self, record: Record) -> str:
        """Returns nothing: the prompt has no opening."""
        del record
        return ""

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        """Contexts: shots and the sentence up to its gap, filled by each option; continuation: the rest of it."""
        before, after = _parts(record)
        solved = ["".join(self.to_example(shot)) for shot in shots]
        options = (record["option1"], record["option2"])
        return [Loglikelihood(with_shots("", solved, before + option), after) for option in options]

    def score(self, record: Record, results: Sequence[float]) -> dict[str, float]:
        """Compares the likelier option with the right one."""
        return {"acc": float(best(results) == int(record["answer"]) - 1)}

    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (sentence filled up to its gap, rest)."""
        before, after = _parts(record)
        return before + record[f"option{record['answer']}"], after


def _parts(record: Record) -> tuple[str, str]:
    """The sentence before its first gap, and after it with one leading space. Raises ValueError without a gap."""
    check_record(record, ("sentence", "option1", "option2", "answer"), "winogrande")
    before, gap, after = record["sentence"].partition("_")
    if not gap:
        raise ValueError(f"a winogrande sentence has no gap `_`: {record['sentence'][:60]!r}")
    return before, f" {after.strip()}"
