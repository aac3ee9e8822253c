"""Finished runs joined to one table: seeds together, intervals that a reader can compute again."""

import json

import numpy as np
import pytest

from experiments.reinforcement import table
from experiments.reinforcement.passes import Passes
from experiments.reinforcement.report import Outcome
from experiments.training import run_folder


def finished(folder, seed, kind="grpo", gain=1.0, **tune):
    """A run folder as a finished run leaves it."""
    method = {"kind": kind, "reward": "number", "right": 1.0, "passes": 2}
    settings = {"seed": seed, "name": f"run {seed}", "method": method, "tune": {"steps": 3, "init": f"{seed}", **tune}}
    run_folder.record(folder, "identity", settings, {})
    before = Passes([0.0] * 12, [[0.0, 1.0]] * 12, [])
    after = Passes([gain] * 12, [[gain, 1.0]] * 12, [])
    (folder / "mine").mkdir()
    Outcome("mine", before, after, [], 0).write(folder / "mine/outcome.json")
    return folder


def made(tmp_path, name, *args, **words):
    (tmp_path / name).mkdir()
    return finished(tmp_path / name, *args, **words)


def test_seeds_of_the_same_settings_are_one_line(tmp_path, capsys):
    folders = [made(tmp_path, f"{seed}", seed, gain=float(seed != 2)) for seed in range(3)]
    folders += [made(tmp_path, "es", 0, "es"), made(tmp_path, "long", 0, steps=9)]
    path = tmp_path / "all.json"
    assert table.main([*map(str, folders), "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1:4] for line in lines[2:]] == [["grpo", "3", "3"], ["es", "1", "3"], ["grpo", "1", "9"]]
    assert "0.0 -> 66.7, +66.7 [" in lines[2]
    body = json.loads(path.read_text())
    first = body["lines"][0]
    again = np.mean([seed["after"]["greedy"] for seed in first["seeds"]])
    assert first["means"]["after"]["greedy"][0] == pytest.approx(again)


def test_folders_of_other_runs_are_one_line(tmp_path, capsys):
    run_folder.record(tmp_path, "identity", {"method": {"kind": "standard"}}, {})
    assert table.main([str(tmp_path)]) == 2
    assert "is not a run with rewards" in capsys.readouterr().err
    run_folder.record(tmp_path, "identity", {"method": {"kind": "es", "reward": "number"}}, {})
    assert table.main([str(tmp_path)]) == 2
    assert "has no finished job" in capsys.readouterr().err
