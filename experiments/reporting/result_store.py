"""Samples of an evaluation, kept on disk portion by portion, so that a stopped one goes on where it was."""

from pathlib import Path
from typing import TypedDict, cast

from experiments.config.overrides import UsageError
from experiments.reporting import jsonl_store
from experiments.reporting.json_file import with_nan


class Sample(TypedDict):
    """One record of a benchmark, answered from one state."""

    part: str
    index: int
    """Of the record in its part."""
    state: str
    results: list[float | str]
    scores: dict[str, float]


class _Portion(TypedDict):
    portion: str
    samples: list[Sample]


class Store:
    """A jsonl file: a first record with the identity of the evaluation, then one for each finished portion.

    A damaged portion is left out, with a warning.

    Raises:
      UsageError: the file holds another evaluation, or something else.
    """

    def __init__(self, path: Path, identity: str, overwrite: bool = False):
        self.path, self.done = path, dict[str, list[Sample]]()
        if path.exists() and not overwrite:
            self.done = _read(path, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        portions = [_Portion(portion=key, samples=samples) for key, samples in self.done.items()]
        jsonl_store.rewrite(path, [{"identity": identity}, *portions])

    def add(self, portion: str, samples: list[Sample]) -> None:
        """Keeps a finished portion; on the disk before this returns."""
        self.done[portion] = samples
        jsonl_store.append(self.path, _Portion(portion=portion, samples=samples), durable=True)


def _read(path: Path, identity: str) -> dict[str, list[Sample]]:
    """The finished portions; if the first line is damaged, the name of the file says whose they are."""
    records, damaged = jsonl_store.scan(path)
    known = [record["identity"] for record in records if "identity" in record]
    if known != [identity] and not (known == [] and damaged and path.stem == identity[: len(path.stem)]):
        raise UsageError(f"{path} holds another evaluation: add --overwrite to throw it away, or remove the file")
    portions = [record for record in records if "identity" not in record]
    sound = [record for record in portions if _is_portion(record)]
    damaged += ["a portion has other fields"] * (len(portions) - len(sound))
    jsonl_store.warn(path, damaged, "computed again")
    return {one["portion"]: one["samples"] for one in cast(list[_Portion], [with_nan(one) for one in sound])}


def _is_portion(record: jsonl_store.Record) -> bool:
    samples = record.get("samples")
    return isinstance(record.get("portion"), str) and isinstance(samples, list) and all(map(_is_sample, samples))


def _is_sample(one: object) -> bool:
    return isinstance(one, dict) and isinstance(one.get("index"), int)
