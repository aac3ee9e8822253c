"""Samples of an evaluation, kept on disk portion by portion, so that a stopped one goes on where it was."""

import json
import os
from pathlib import Path
from typing import Any

from experiments.config.overrides import UsageError

Sample = dict[str, Any]


class Store:
    """A jsonl file: a first line with the identity of the evaluation, then a line for each finished portion.

    Raises:
      UsageError: the file holds another evaluation, or something else.
    """

    def __init__(self, path: Path, identity: str, overwrite: bool = False):
        self.path, self.done = path, {}
        if path.exists() and not overwrite:
            self.done = _read(path, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        lines = [{"identity": identity}, *({"portion": key, "samples": rows} for key, rows in self.done.items())]
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.replace(path)

    def add(self, portion: str, samples: list[Sample]) -> None:
        """Keep a finished portion; on the disk before this returns."""
        self.done[portion] = samples
        with self.path.open("a") as file:
            file.write(json.dumps({"portion": portion, "samples": samples}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path, identity: str) -> dict[str, list[Sample]]:
    """Finished portions; a last line cut off by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    if not lines or not isinstance(lines[0], dict) or lines[0].get("identity") != identity:
        raise UsageError(f"{path} holds another evaluation: add --overwrite to throw it away, or remove the file")
    return {line["portion"]: line["samples"] for line in lines[1:]}
