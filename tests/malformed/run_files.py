"""The readers of the files that runs of the project leave, each record of which has a checksum."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.malformed import mutate
from tests.malformed.sandbox import Reader, bytes_of, same_bytes

ACCIDENTS = frozenset(("flip", "noise", "zeros", "truncate", "remove", "double", "swap", "append",
    "bad_utf8", "odd_characters", "odd_number", "nest", "long_text", "behead", "empty") )  # fmt: skip
"""What no checksum agrees with."""


def nothing_else(value: object, sound: object) -> bool:
    """Tells that no other value than the sound one is right."""
    return False


def part_of(value: object, sound: object) -> bool:
    """Tells whether each record is one of the sound file's."""
    assert isinstance(value, list)
    assert isinstance(sound, list)
    return set(map(same_bytes, value)) <= set(map(same_bytes, sound))


def nothing(value: object, sound: object) -> bool:
    """Tells whether nothing was taken of the file."""
    return value is None


def readers() -> Iterator[Reader]:
    """Outcomes, settings, metrics, ledgers, cells, answers, portions and manifests."""
    yield _one("outcome.json", _outcome, _write_outcome, nothing_else)
    yield _one("run.json", _run, _write_run, nothing_else)
    yield _one("goodput.json", _ledger, _write_ledger, nothing)
    yield _one("metrics.jsonl", _metrics, _write_metrics, part_of)
    yield _one("cells.jsonl", _cells, _write_cells, part_of)
    yield _one("portions.jsonl", _portions, _write_portions, part_of)
    answers = _one("answers.jsonl", _answers, _write_answers, part_of)
    yield answers._replace(files={**answers.files, "run.json": bytes_of("run.json", _write_run)})
    yield _checkpoint()


def _one(
    name: str,
    read: Callable[[Path], object],
    write: Callable[[Path], None],
    allowed: Callable[[object, object], bool],
) -> Reader:
    mutators = mutate.JSON_LINES if name.endswith(".jsonl") else mutate.JSON
    files = {name: bytes_of(name, write)}
    return Reader(f"run {name}", read, files, {name: mutators}, ACCIDENTS, allowed=allowed, warns=True)


def _write_outcome(path: Path) -> None:
    from experiments.reporting.run_report import Measurement, Outcome

    sides = [Measurement([1.5, 2.25, 3.0], [2.0, 3.0, 4.0], {"acc": [0.0, 1.0, float(i)]}) for i in range(2)]
    sample = {"prompt": "How?", "wanted": "so", "vanilla": "no ä", "tuned": "so"}
    Outcome("jsonl", "acc", *sides, [sample, sample], 0).write(path)


def _outcome(folder: Path) -> object:
    from experiments.reporting.run_report import Outcome, summarise

    outcome = Outcome.read(folder / "outcome.json")
    return outcome, summarise(outcome, 0)


def _write_run(path: Path) -> None:
    from experiments.config.loading import load_config
    from experiments.config.schema import resolved
    from experiments.training.run_folder import claim

    claim(
        path.parent / "run", "a" * 64, resolved(load_config("jsonl", ["--model.checkpoint", "m", "--data.train", "d"]))
    )
    (path.parent / "run" / "run.json").rename(path)


def _run(folder: Path) -> object:
    from experiments.config.loading import load_config
    from experiments.training import run_folder

    return run_folder.read(folder), load_config(str(folder / "run.json"))


def _write_ledger(path: Path) -> None:
    from experiments.training.goodput import Ledger

    ledger = Ledger(path, clock=iter(range(100)).__next__)
    with ledger.timed("step"):
        pass
    ledger.write()


def _ledger(folder: Path) -> object:
    from experiments.training.goodput import Ledger

    ledger = Ledger(folder / "goodput.json", clock=lambda: 0.0)
    assert math.isfinite(ledger.wall + sum(ledger.seconds.values()))
    assert ledger.line().isprintable()
    return (ledger.seconds, ledger.sessions, ledger.wall) if ledger.sessions > 1 else None


def _write_metrics(path: Path) -> None:
    from experiments.training.metrics_log import MetricsLog

    for step in range(1, 6):
        loss = 2.5 / step if step != 3 else math.nan
        MetricsLog(path).append({"job": "a", "step": step, "loss": loss, "timing": {"tokens_per_s": 5}})


def _metrics(folder: Path) -> object:
    from experiments.training.metrics_log import MetricsLog

    return MetricsLog(folder / "metrics.jsonl").rows()


def _write_cells(path: Path) -> None:
    from experiments.study.store import Cell, CellStore

    store = CellStore(path)
    for seed in range(4):
        store.add(Cell("tune", "dbp", "arc", seed, {"steps": 3}), {"loss": 1.5, "score": None, "items": [1, 0, 1]})


def _cells(folder: Path) -> object:
    from experiments.study.store import CellStore, read

    found = read(folder / "cells.jsonl")
    store = CellStore(folder / "cells.jsonl")
    assert [record["key"] for record in read(folder / "cells.jsonl")] == [record["key"] for record in found]
    return list(store.records.values())


def _write_portions(path: Path) -> None:
    from experiments.reporting.result_store import Store

    store = Store(path, path.stem * 2)
    for portion in ("a", "b", "c"):
        rows = [
            {"part": "arc", "index": i, "state": "s", "results": [-1.5, "x"], "scores": {"acc": 1.0}} for i in range(2)
        ]
        store.add(portion, rows)


def _portions(folder: Path) -> object:
    from experiments.reporting.result_store import Store

    done = Store(folder / "portions.jsonl", "portions" * 2).done
    again = Store(folder / "portions.jsonl", "portions" * 2).done
    assert list(done) == list(again), "the file that it has written itself is read otherwise"
    return [(name, samples) for name, samples in done.items()]


def _write_answers(path: Path) -> None:
    from experiments.evaluation.scaling import AnswerLog

    log = AnswerLog(path.parent / "answers", {"identity": "a" * 64}, False, "--output")
    line = {"method": "greedy", "n": 1, "correct": 1.0, "student_tokens": 5, "teacher_tokens": 0, "seconds": 0.5}
    log.add([{"index": i, "text": f"{i} ä", "lines": [line, {**line, "n": 4}]} for i in range(4)])
    (path.parent / "answers" / "answers.jsonl").rename(path)


def _answers(folder: Path) -> object:
    from experiments.evaluation.scaling import AnswerLog

    return AnswerLog(folder, {"identity": "a" * 64}, False, "--output").in_order()


def _checkpoint() -> Reader:
    """A checkpoint of a run: every file of it is damaged, its manifest included."""
    from experiments.training.checkpoint import files

    def write(path: Path) -> None:
        source = files.part(path, 10)
        (source / "tree").mkdir(parents=True)
        (source / "tree" / "array").write_bytes(bytes(range(200)))
        files.publish(path, 10, json.dumps({"identity": "me", "data": {"next_index": 3}, "metrics": {"loss": 1.5}}))

    found = {}
    for name in ("MANIFEST.json", "meta.json", "tree/array"):
        place = f"step_00000010/{name}"
        above = place.count("/")
        found[place] = bytes_of(place, lambda path, above=above: write(path.parents[above]))
    targets = {place: mutate.JSON if place.endswith(".json") else mutate.BINARY for place in found}

    def read(folder: Path) -> object:
        wrong = files.damage(folder / "step_00000010")
        if wrong:
            raise ValueError(f"{folder}: {wrong}")
        return {place: (folder / place).read_bytes() for place in found if "MANIFEST" not in place}

    sealed = ACCIDENTS | {"json_document", "twice", "other_encoding", "splice"}
    return Reader("run checkpoint", read, found, targets, sealed)
