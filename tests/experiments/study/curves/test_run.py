"""A small study of curves that is stopped, goes on and is published; all numbers follow from its JSON."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.commands import study
from experiments.config.curves import CurvesConfig, check_curves
from experiments.config.loading import config_names, load_config
from experiments.config.overrides import UsageError
from experiments.reporting.crossed import crossed_interval
from experiments.reporting.statistics import ItemValues
from experiments.study.curves import data, report, run
from experiments.study.curves.plan import CurvePlan, Place
from experiments.training.preemption import Interrupt

CONFIG = """
from experiments.config.curves import CurveRow, CurvesConfig
from experiments.config.methods import BaselineMethod, StandardMethod
from experiments.config.schema import DataConfig, EvaluateConfig, ModelConfig, TuneConfig

config = CurvesConfig(
    name="small", seeds=(0, 1), budgets=(1, 2), elsewhere=(2,), tasks=("pocket:winogrande", "pocket:arc+short"),
    model=ModelConfig(checkpoint={model!r}, wkv="scan"),
    data=DataConfig(max_train=8, batch_size=4),
    tune=TuneConfig(warmup=0),
    evaluate=EvaluateConfig(max_records=4, batch_size=4, max_new_tokens=4),
    search_records=2, texts=2, timing_rounds=1,
    rows={{
        "standard": CurveRow(StandardMethod()),
        "shuffled": CurveRow(StandardMethod(), data="shuffled", rates_of="standard", budgets=(2,)),
        "lora_seconds": CurveRow(
            BaselineMethod(name="lora", rank=1), seconds_of="standard", rates_of="standard", budgets=(2,),
            tasks=("winogrande",),
        ),
    }},
)
"""


@pytest.fixture(scope="module")
def argv(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("curves")
    (folder / "small.py").write_text(CONFIG.format(model=str(tiny_checkpoint)))
    words = ["--config", str(folder / "small.py"), "--output", str(folder / "out")]
    return [*words, "--system.compilation_cache", "false"]


@pytest.fixture(scope="module")
def finished(argv: list[str]) -> Path:
    """A study whose first part was stopped, and whose last line was cut."""
    calls = [0]

    def stopping(self: Interrupt) -> None:
        calls[0] += 1
        self.asked = calls[0] == 12
        original(self)

    original = Interrupt.check
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupt, "check", stopping)
        assert study.main(["run", *argv]) == 130
    log = Path(argv[3]) / "cells.jsonl"
    kept = log.read_text()
    assert kept
    log.write_text(kept + '{"key": "cut o')
    assert study.main([*argv, "--select.budgets", "1"]) == 0
    first = (Path(argv[3]) / "report.md").read_text()
    assert "Not computed yet: standard on winogrande, arc+short: 2 steps (seeds 0, 1); all of shuffled, lora" in first
    assert study.main(["run", *argv]) == 0
    assert log.read_text().startswith(kept)
    return Path(argv[3])


def test_every_cell_is_computed_once_and_a_second_run_computes_none(finished: Path, argv: list[str], capsys):
    log = (finished / "cells.jsonl").read_text()
    records = [json.loads(line) for line in log.splitlines()]
    keys = [record["key"] for record in records]
    assert len(set(keys)) == len(keys)
    config = check_curves(load_config(argv[1], argv[2:], CurvesConfig))
    jobs = data.jobs_of(config.tasks, config.data, config.evaluate, config.seed)
    plan = CurvePlan(config, run.fingerprints(jobs, run.validation_jobs(config)))
    assert {cell.key for _, cell in plan.cells()} <= set(keys)
    assert study.main(["run", *argv]) == 0
    assert (finished / "cells.jsonl").read_text() == log
    assert "Not computed" not in capsys.readouterr().out


def test_the_rate_of_a_point_is_the_bottom_of_what_was_tried_on_validation(finished: Path):
    records = [json.loads(line) for line in (finished / "cells.jsonl").read_text().splitlines()]
    tried = [one for one in records if one["kind"] == "rate"]
    assert {one["row"] for one in tried} == {"standard"}
    for one in (one for one in records if one["kind"] == "curve" and one["row"] == "standard"):
        losses = {x["rate"]: x["loss"] for x in tried if x["task"] == one["task"]}
        assert one["rate"] in losses


def test_what_others_recompute_from_the_json_are_the_reported_numbers(finished: Path):
    body = json.loads((finished / "results.json").read_text())
    assert body["missing"] == []
    for point in body["points"]:
        where = {name: point[name] for name in ("row", "task", "budget")}
        mine = [one for one in body["values"] if {name: one[name] for name in where} == where]
        mine.sort(key=lambda one: one["seed"])
        assert [one["seed"] for one in mine] == point["seeds"]
        metric = body["headlines"][point["task"]]
        right = np.array([[int(digit) for digit in one["scores"][metric]] for one in mine], float)
        mean, low, high = crossed_interval([ItemValues(right, np.ones(right.shape[1]))])
        assert point[metric] == pytest.approx([mean, max(0.0, low), min(1.0, high)])
        nll, tokens = np.array([one["nll"] for one in mine]), np.array(body["tokens"][point["task"]], float)
        assert point["loss"] == pytest.approx(list(crossed_interval([ItemValues(nll, tokens)])))


def test_what_others_recompute_of_changes_elsewhere_are_the_reported_numbers(finished: Path):
    body = json.loads((finished / "results.json").read_text())
    digits = lambda text: np.array([int(one) for one in text], float)  # noqa: E731
    untuned = {one["task"]: one for one in body["values"] if one["row"] == "vanilla"}
    for told in body["elsewhere"]:
        where = {name: told[name] for name in ("row", "task", "budget")}
        mine = [one for one in body["values"] if {name: one[name] for name in where} == where]
        for task, change in told["change"].items():
            if task == "text":
                before = untuned[told["task"]]["text"]
                nll = np.array([np.subtract(one["text"]["nll"], before["nll"]) for one in mine])
                values = ItemValues(nll, np.array(before["tokens"], float))
            else:
                metric = body["headlines"][task]
                before = digits(untuned[task]["scores"][metric])
                found = np.array([digits(one["elsewhere"][task][metric]) - before for one in mine])
                values = ItemValues(found, np.ones(found.shape[1]))
            assert change == pytest.approx(list(crossed_interval([values])))


def test_other_benchmarks_and_text_are_measured_at_their_budget_alone(finished: Path):
    body = json.loads((finished / "results.json").read_text())
    places = {(one["row"], one["task"], one["budget"]): set(one["change"]) for one in body["elsewhere"]}
    assert places == {
        ("standard", "winogrande", 2): {"arc+short", "text"},
        ("standard", "arc+short", 2): {"winogrande", "text"},
    }


def test_a_row_at_equal_seconds_takes_as_many_steps_as_they_cost(finished: Path):
    records = [json.loads(line) for line in (finished / "cells.jsonl").read_text().splitlines()]
    found = {(one["row"], one["task"]): one["seconds"] for one in records if one["kind"] == "timing"}
    assert {row for row, _ in found} == {"standard", "shuffled", "lora_seconds"}
    timed = found["lora_seconds", "winogrande"]
    steps = {one["steps"] for one in records if one["kind"] == "curve" and one["row"] == "lora_seconds"}
    share = sum(timed["standard"].values()) / sum(timed["lora_seconds"].values())
    assert steps == {max(1, round(2 * share))}


def test_tuned_states_are_kept_where_no_weight_changes(finished: Path):
    names = {path.name for path in (finished / "states").iterdir()}
    assert "standard-arc+short-2-1.safetensors" in names
    assert not any("lora" in name for name in names)


def test_the_report_and_the_page_show_what_is_there(finished: Path, argv: list[str], tmp_path: Path):
    text = (finished / "report.md").read_text()
    for part in ("### arc+short", "Chains that are right", "### Time to accuracy", "### Against standard", "elsewhere"):
        assert part in text
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n{report.BEGIN}\nstale words\n{report.END}\nend\n")
    assert study.main(["publish", *argv, "--page", str(page)]) == 0
    assert "stale words" not in page.read_text()
    assert page.read_text().endswith(f"{report.END}\nend\n")
    assert json.loads((tmp_path / "page-small.json").read_text())["points"]
    for name in ("accuracy", "speed"):
        assert (tmp_path / f"page-small-{name}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--select.rows", "standrd"], "select.rows: no such thing as 'standrd' (there are: standard,"),
        (["--select.budgets", "7"], "select.budgets: not in the study: '7' (there are: 1, 2)"),
        (["--elsewhere", "3"], "elsewhere: not in the study: '3'"),
        (["--data.chain", "took"], "data.tasks, data.train and data.chain"),
        (["--tasks", "mmlu"], "tasks: mmlu is the real benchmark"),
        (["--tasks", "pocket:arc,pocket:arc"], "one of them stands twice"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(argv: list[str], words: list[str], line: str, capsys):
    assert study.main([*argv, *words]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1


def test_what_is_missing_is_told_in_few_words():
    absent = {
        Place("a", "x", 1): [0, 1], Place("a", "x", 2): [0, 1], Place("a", "y", 1): [1], Place("a", "z", 1): [1],
        Place("a", "y", 2): [0, 1], Place("b", "x", 1): [0], Place("c", "x", 1): [0],
    }  # fmt: skip
    assert run.grouped(absent, {"a"}) == [
        "a on x: 1, 2 steps (seeds 0, 1)",
        "a on y: 1 steps (seeds 1) and 2 steps (seeds 0, 1)",
        "a on z: 1 steps (seeds 1)",
        "all of b, c",
    ]
    assert run.grouped({}, set()) == []
    assert run.grouped({Place("a", "x", 1): [0, 1, 3, 4, 5]}, {"a"}) == ["a on x: 1 steps (seeds 0, 1, 3 to 5)"]


def test_curves_have_no_search_of_their_own(argv: list[str], capsys):
    assert study.main(["rates", *argv]) == 2
    assert "finds its rates as it runs" in capsys.readouterr().err


def test_the_configs_of_the_project_fit():
    assert set(config_names(CurvesConfig)) == {"curves", "curves_fast"}
    for name in config_names(CurvesConfig):
        config = check_curves(load_config(name, kind=CurvesConfig))
        places = list(CurvePlan(config, {}).places())
        assert len(places) == len(set(places))
        assert all(isinstance(place, Place) for place in places)


def test_a_row_that_names_no_other_is_refused():
    config = load_config("curves", kind=CurvesConfig)
    rows = {**config.rows, "wrong": dataclasses.replace(config.rows["standard"], rates_of="nothing")}
    with pytest.raises(UsageError, match="wrong has rates_of 'nothing', which names no other row"):
        check_curves(dataclasses.replace(config, rows=rows))
