"""One raw record of any public layout -> the schema that the tasks read, checked."""

import numpy as np

from experiments.config.overrides import UsageError
from experiments.data.jsonl import Line
from experiments.tasks import TASKS
from experiments.tasks.types import Record

LETTERS = "ABCDE"


def to_record(dataset: str, line: Line) -> Record:
    """Returns the record of a line, in the schema that the tasks read.

    Raises:
      UsageError: with file and line: a missing column, a wrong type, an answer that is none of the choices.
    """
    try:
        record = SHAPES[dataset]({key: _plain(value) for key, value in line.record.items()})
        TASKS[dataset].to_example(record)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{line.where}: {' '.join(what.split())}") from None
    return record


def _plain(value: object) -> object:
    """Bytes as text, arrays as lists, numpy numbers as Python's."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _text(record: Record, *names: str) -> None:
    for name in names:
        if not isinstance(record[name], str):
            raise ValueError(f"{name!r} must be a string, not {type(record[name]).__name__}")


def _mmlu(raw: Record) -> Record:
    """Choices as a list or as columns A to D; the answer as a letter or a number."""
    _text(raw, "question", "subject")
    choices = raw["choices"] if "choices" in raw else [raw[letter] for letter in LETTERS[:4]]
    answer = raw["answer"]
    number = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if number not in range(4):
        raise ValueError(f"answer {answer!r} is none of A, B, C, D")
    subject = raw["subject"].replace(" ", "_")
    return {"question": raw["question"], "choices": list(map(str, choices)), "answer": number, "subject": subject}


def _gsm8k(raw: Record) -> Record:
    _text(raw, "question", "answer")
    if "#### " not in raw["answer"]:
        raise ValueError(f"the answer has no line `#### n`: {raw['answer'][-40:]!r}")
    return {"question": raw["question"], "answer": raw["answer"]}


def _winogrande(raw: Record) -> Record:
    """`answer`, or `label` counted from 0 (-1: unknown)."""
    _text(raw, "sentence", "option1", "option2")
    answer = str(raw["answer"] if "answer" in raw else raw["label"] + 1)
    if answer not in ("1", "2"):
        raise ValueError(f"answer {answer!r} is neither 1 nor 2 (the public test split has none)")
    return {name: raw[name] for name in ("sentence", "option1", "option2")} | {"answer": answer}


def _arc(raw: Record) -> Record:
    """The question as a text, or as {stem, choices: [{text, label}]}; labels as texts, or counted from 0."""
    question = raw["question"]
    nested = isinstance(question, dict)
    choices = question["choices"] if nested else raw["choices"]
    if isinstance(choices, list):
        choices = {name: [choice[name] for choice in choices] for name in ("text", "label")}
    record = {
        "id": str(raw.get("id", "")),
        "question": question["stem"] if nested else question,
        "choices": {"text": list(choices["text"]), "label": [_letter(label) for label in choices["label"]]},
        "answerKey": _letter(raw["answerKey"]),
    }
    _text(record, "question")
    return record


def _letter(label: str | int) -> str:
    return LETTERS[label] if isinstance(label, int) else label


SHAPES = {"mmlu": _mmlu, "gsm8k": _gsm8k, "winogrande": _winogrande, "arc": _arc}
