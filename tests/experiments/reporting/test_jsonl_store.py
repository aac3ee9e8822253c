"""Records a line each: what is damaged is left out by name, and everything else is read exactly."""

import json
import math
import random
from pathlib import Path

import pytest

from experiments.config.overrides import UsageError
from experiments.reporting import jsonl_store
from experiments.reporting.result_store import Store
from experiments.study.store import Cell, CellStore
from experiments.training.metrics_log import MetricsLog

ROWS = [{"key": f"k{i}", "loss": i + 0.5} for i in range(5)]


@pytest.fixture
def path(tmp_path):
    jsonl_store.append(tmp_path / "x.jsonl", *ROWS)
    return tmp_path / "x.jsonl"


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_damaged_line_is_named_and_taken_out(path, capsys):
    change(path, "2.5", "2.6")
    assert jsonl_store.recover(path) == [*ROWS[:2], *ROWS[3:]]
    wrong = "1 line is damaged (line 3: it differs from its checksum)"
    assert capsys.readouterr().err == f"warning: {path}: {wrong}; computed again\n"
    assert jsonl_store.recover(path) == [*ROWS[:2], *ROWS[3:]]
    assert capsys.readouterr().err == ""


def test_reading_changes_nothing(path):
    change(path, "2.5", "2.6")
    before = path.read_bytes()
    jsonl_store.read(path)
    assert path.read_bytes() == before


def test_the_end_that_a_crash_cut_off_is_dropped_without_a_word(path, capsys):
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found = jsonl_store.recover(path)
        assert found == ROWS[: len(found)]
        assert len(found) in (whole[:cut].count(b"\n"), whole[:cut].count(b"\n") + 1)
        jsonl_store.append(path, ROWS[0])
        assert jsonl_store.read(path) == [*found, ROWS[0]]
    assert capsys.readouterr().err == ""


def test_no_damage_is_taken_for_a_record(path):
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(1000):
        damaged, start = bytearray(whole), rng.randrange(len(whole))
        if rng.random() < 0.5:
            damaged[start] ^= 1 << rng.randrange(8)
        else:
            damaged[start : start + rng.randint(0, 90)] = rng.randbytes(rng.randint(0, 9))
        path.write_bytes(damaged)
        records, wrong = jsonl_store.scan(path)
        assert [row for row in records if row not in ROWS] == []
        assert len(records) == len(ROWS) or wrong or start >= len(whole) - len(whole.splitlines()[-1]) - 100


def test_lines_from_before_checksums_are_read_and_get_one(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert jsonl_store.recover(path, {"key": str}) == ROWS
    assert all(json.loads(line)["crc32"] for line in path.read_text().splitlines())
    assert jsonl_store.scan(path).records == ROWS


def test_a_line_without_a_checksum_after_one_with_it_is_damaged(path, capsys):
    path.write_text('{"job": "a", "step": 1}\n')
    jsonl_store.append(path, {"job": "a", "step": 2})
    with path.open("a") as file:
        file.write('{"job": "a", "step": 3}\n')
    assert [record["step"] for record in jsonl_store.read(path)] == [1, 2]
    assert "1 line is damaged (line 3: it has no checksum)" in capsys.readouterr().err


def test_an_old_line_without_its_fields_is_damaged(path, capsys):
    path.write_text('{"job": "a", "step": 1}\n{"job": "a", "step": "x"}\n{"job": 7}\n')
    assert MetricsLog(path).rows() == [{"job": "a", "step": 1}]
    assert "2 lines are damaged (line 2: it has no 'step', or one of another type)" in capsys.readouterr().err


def test_numbers_that_are_not_finite_come_back(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"job": "a", "step": 1, "loss": math.nan, "timing": {"tokens_per_s": 3}})
    json.loads(log.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert math.isnan(log.rows()[0]["loss"])
    cell = Cell("rate", "standard", "gsm8k", 0, [])
    CellStore(tmp_path / "rates.jsonl").add(cell, {"rate": 1.0, "loss": math.inf})
    assert CellStore(tmp_path / "rates.jsonl").get(cell)["loss"] == math.inf


def test_a_damaged_cell_is_computed_again(tmp_path, capsys):
    cells = [Cell("rate", "standard", "gsm8k", seed, []) for seed in range(3)]
    store = CellStore(tmp_path / "rates.jsonl")
    for cell in cells:
        store.add(cell, {"rate": 1.0, "loss": 2.25})
    lines = store.path.read_text().splitlines()
    store.path.write_text("\n".join([lines[0], lines[1].replace("2.25", "0.25"), lines[2], ""]))
    again = CellStore(tmp_path / "rates.jsonl")
    assert "line 2: it differs from its checksum" in capsys.readouterr().err
    assert [again.get(cell) is None for cell in cells] == [False, True, False]
    assert again.get_or_add(cells[1], lambda: {"rate": 1.0, "loss": 2.25})["loss"] == 2.25
    assert sorted(store.path.read_text().splitlines()) == sorted(lines)


def test_an_old_cell_without_its_numbers_is_computed_again(tmp_path, capsys):
    cells = [Cell("measured", "vanilla", "arc", seed, []) for seed in range(4)]
    found = {"nll": [1.5, None], "tokens": [3, 4], "right": [1.0, 0.0]}
    others = [{}, {"right": [1.0, "0.0"]}, {"nll": 2.5}, {}]
    lines = [{"key": cell.key, "kind": cell.kind, **found, **other} for cell, other in zip(cells, others, strict=True)]
    lines[0].pop("right")
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = CellStore(tmp_path / "cells.jsonl")
    assert [store.get(cell) is None for cell in cells] == [True, True, True, False]
    assert "3 lines are damaged (line 1: it has no 'right', or one of another type)" in capsys.readouterr().err


def test_a_line_that_does_not_fit_on_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as error:
        jsonl_store.append(Path("/dev/full"), ROWS[0])
    assert error.value.filename == "/dev/full"


def test_a_damaged_portion_of_an_evaluation_is_computed_again(tmp_path, capsys):
    sample = {"part": "a", "index": 0, "state": "none", "results": [1.5], "scores": {"acc": 1.0}}
    path, identity = tmp_path / f"{'ab' * 8}.jsonl", "ab" * 32
    store = Store(path, identity)
    store.add("a", [sample])
    store.add("b", [sample])
    began = '"portion": "b", "samples": [{"part": "a", "index": '
    change(path, f"{began}0", f"{began}1")
    assert Store(path, identity).done == {"a": [sample]}
    assert "line 3: it differs from its checksum); computed again" in capsys.readouterr().err
    change(path, f'"identity": "{identity}"', f'"identity": "{identity[:-1]}c"')
    assert Store(path, identity).done == {"a": [sample]}
    assert Store(path, identity).done == {"a": [sample]}
    other = path.rename(tmp_path / "other.jsonl")
    with pytest.raises(UsageError, match="holds another evaluation"):
        Store(other, "c" * 64)


def test_an_old_line_with_half_of_a_character_is_damaged(tmp_path):
    """Rewriting it would change its text, and another reading would not find it again."""
    old = tmp_path / "x.jsonl"
    old.write_text('{"key": "\\ud800", "loss": 1.5}\n{"key": "k", "loss": 2.5}\n', encoding="utf-8")
    assert [row["key"] for row in jsonl_store.read(old, {"key": str})] == ["k"]
    assert [row["key"] for row in jsonl_store.recover(old, {"key": str})] == ["k"]
