"""MMLU in two protocols: lm-evaluation-harness `mmlu` (version 1), and the zero-shot one that RWKV's releases quote."""

from collections.abc import Sequence

from experiments.tasks.types import Fewshot, Loglikelihood, Record, Request, best, check_record, with_shots

LETTERS = ("A", "B", "C", "D")
FIELDS = ("question", "choices", "answer", "subject")


class Mmlu:
    """Records {question, choices[4], answer: 0..3, subject}. Its mean over records weights subjects by size."""

    name = "mmlu"
    metrics: tuple[str, ...] = ("acc",)
    headline = "acc"
    protocol = "lm-evaluation-harness 0.4.13 mmlu"
    split = "test"
    fewshot = Fewshot("dev", "first_n")
    shots = 5
    prefix: tuple[int, ...] = ()

    def description(self, record: Record) -> str:
        """Returns the line that names the subject."""
        subject = record["subject"].replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {subject}.\n\n"

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        """Asks for each letter's log-likelihood after the shots, the question and its choices."""
        _check(record, self.name)
        solved = [f"{_prompt(shot)} {LETTERS[shot['answer']]}" for shot in shots]
        context = with_shots(self.description(record), solved, _prompt(record))
        return [Loglikelihood(context, f" {letter}") for letter in LETTERS]

    def score(self, record: Record, results: Sequence[float]) -> dict[str, float]:
        """Compares the likeliest letter with the right one."""
        return {"acc": float(best(results) == record["answer"])}

    def to_example(self, record: Record) -> tuple[str, str]:
        """Returns (question and choices, right letter)."""
        context, completion = self.requests(record)[record["answer"]]
        assert isinstance(completion, str)
        return context, completion


class RwkvMmlu(Mmlu):
    """RWKV's own protocol (`rwkv_mmlu_eval` of RWKV-LM): a chat turn, zero-shot, after the token 0."""

    name = "mmlu_rwkv"
    protocol = "RWKV-LM's MMLU script, zero-shot chat"
    shots = 0
    prefix: tuple[int, ...] = (0,)

    def description(self, record: Record) -> str:
        """Returns the opening of the chat turn, with the subject."""
        subject = record["subject"].replace("_", " ")
        return f"User: You are a very talented expert in {subject}. Answer this question:\n"

    def requests(self, record: Record, shots: Sequence[Record] = ()) -> list[Request]:
        """Raises: ValueError for shots: the protocol has none."""
        if shots:
            raise ValueError(f"{self.name} is a zero-shot protocol: leave out its shots, or use mmlu")
        _check(record, self.name)
        prompt = f"{self.description(record)}{record['question']}\n{_choices(record)}\nAssistant: The answer is"
        context = prompt.replace("\r\n", "\n").strip()
        return [Loglikelihood(context, f" {letter}") for letter in LETTERS]


def _check(record: Record, task: str) -> None:
    check_record(record, FIELDS, task)
    if len(record["choices"]) != len(LETTERS):
        raise ValueError(f"a {task} record has {len(record['choices'])} choices, not {len(LETTERS)}")


def _prompt(record: Record) -> str:
    return f"{record['question'].strip()}\n{_choices(record)}Answer:"


def _choices(record: Record) -> str:
    return "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, record["choices"], strict=True))
