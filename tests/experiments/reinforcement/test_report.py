"""The report of a run with rewards: numbers, verdict, files that are read back, damage."""

import json

import pytest

from experiments.reinforcement import report
from experiments.reinforcement.passes import Passes
from experiments.reinforcement.report import Counting, Outcome
from experiments.reporting import json_file

COUNTING = Counting("number", 1.0, 2, 0)


def outcome(gain=1.0):
    before = Passes([0.0] * 12, [[0.0, 1.0]] * 12, ["a"])
    after = Passes([gain] * 12, [[1.0, 1.0]] * 12, ["b"])
    return Outcome("mine", before, after, [{"prompt": "p", "wanted": "w", "vanilla": "a", "tuned": "b"}], 0)


def test_a_report_says_what_was_gained(tmp_path):
    body = report.results({"name": "run"}, "hash", COUNTING, [outcome()])
    assert body["verdict"] == "PASS"
    assert body["jobs"]["mine"]["change"]["reward"].mean == 1.0
    lines = report.table_lines(body, 2)
    assert [line[2] for line in lines[1:]] == ["mean reward", "greedy % right", "pass@1 %", "pass@2 %"]
    assert lines[3][3:] == ["50.0 [50.0, 50.0]", "100.0 [100.0, 100.0]", "+50.0 [+50.0, +50.0]"]
    report.write(tmp_path, body, 2, ["reward.png"], ["rwkv7 generate"])
    assert "RESULT: PASS" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["sha256"] == body["sha256"]


def test_no_gain_fails():
    body = report.results({"name": "run"}, "hash", COUNTING, [outcome(0.0)])
    assert body["verdict"] == "FAIL (the mean reward is not clearly higher: mine)"


def test_an_outcome_is_read_back(tmp_path):
    outcome().write(tmp_path / "outcome.json")
    assert Outcome.read(tmp_path / "outcome.json") == outcome()


@pytest.mark.parametrize(
    "change",
    [
        {"before": {"greedy": [1.0], "sampled": [[1.0]], "texts": []}},
        {"after": {"greedy": [1e9] * 12, "sampled": [[1.0, 1.0]] * 12, "texts": []}},
        {"after": {"greedy": [None] * 12, "sampled": [[1.0, 1.0]] * 12, "texts": []}},
        {"after": {"greedy": [1.0] * 12, "sampled": [[1.0], [1.0, 0.0]], "texts": []}},
        {"samples": [{"prompt": 3}]},
        {"skipped": "no"},
        {"further": 1},
        {"nll": [1.0]},
    ],
)
def test_a_damaged_outcome_is_one_line(tmp_path, change):
    path = tmp_path / "outcome.json"
    outcome().write(path)
    plain = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    json_file.write(path, {**{key: plain[key] for key in ("name", "before", "after", "samples", "skipped")}, **change})
    with pytest.raises(ValueError, match="is damaged"):
        Outcome.read(path)


def test_curves_are_drawn(tmp_path):
    rows = [
        {"job": "mine", "step": i + 1, "loss": 0.0, "reward": i / 9, "timing": {"tokens_per_s": 1}} for i in range(9)
    ]
    rows[4]["validation_reward"] = 0.5
    report.reward_curves(
        tmp_path / "reward.png", {"mine": rows, "other": []}, {"mine": (0.1, 0.6), "other": (0.0, 0.0)}
    )
    assert (tmp_path / "reward.png").stat().st_size > 1000
