"""MMLU's CSV files: question, four choices and the answer's letter, without a header."""

import csv
from pathlib import Path

from experiments.config.overrides import UsageError
from experiments.data.jsonl import Line
from experiments.tasks.types import Record

COLUMNS = 6


def read(path: Path) -> list[Line]:
    """Reads records {question, choices, answer: letter}; quoted fields may hold line ends.

    Raises:
      UsageError: with file and line: not UTF-8, a row of other than six columns, no row.
    """
    lines, start = [], 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if row:
                    lines.append(Line(_record(row, f"{path}:{start}"), f"{path}:{start}"))
                start = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}:{start}: not UTF-8 text ({error.reason})") from None
    except csv.Error as error:
        raise UsageError(f"{path}:{start}: not CSV ({error})") from None
    if not lines:
        raise UsageError(f"{path}: empty, a subject needs at least one question")
    return lines


def _record(row: list[str], where: str) -> Record:
    if len(row) != COLUMNS:
        raise UsageError(f"{where}: {len(row)} columns, wanted {COLUMNS}: question, A, B, C, D, answer")
    return {"question": row[0], "choices": row[1:5], "answer": row[5].strip()}
