"""The results table: statistics, the search for rates, and a small table that is interrupted, resumed and published."""

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.commands import study
from experiments.config.loading import load_config
from experiments.config.schema import check, identified, resolved
from experiments.config.study import TableRunConfig
from experiments.reporting.statistics import ItemValues, crossed_bootstrap, paired_difference
from experiments.study import artifacts, diagnostics, learning_rates, progress, rate_search, summary, timing, tuning
from experiments.study.adjustable_rate import set_rate, with_adjustable_rate
from experiments.study.plan import Plan
from experiments.study.store import Cell, CellStore
from experiments.training import run_folder
from experiments.training.preemption import Interrupt

CONFIG = """
from experiments.config.schema import DataConfig, EvaluateConfig, ModelConfig, TuneConfig
from experiments.config.methods import DBPMethod, StandardMethod, UpscaleMethod
from experiments.config.study import Learned, ObserverConfig, ScalingConfig, TableRunConfig

RATES = {{"winogrande": 0.1}}
config = TableRunConfig(
    name="small", seeds=(0, 1), shots=1, larger={model!r}, watch_every=2, timing_rounds=1,
    model=ModelConfig(checkpoint={model!r}, wkv="scan"),
    data=DataConfig(tasks=("pocket:winogrande",), max_train=8, batch_size=4),
    tune=TuneConfig(steps=2, warmup=0),
    evaluate=EvaluateConfig(max_records=4, batch_size=4),
    rows={{
        "standard": Learned(StandardMethod(), RATES),
        "dbp": Learned(DBPMethod(), RATES),
        "dbp_seconds": Learned(DBPMethod(), RATES, "standard"),
        "larger_standard": Learned(StandardMethod(), RATES, model="larger"),
    }},
    scaling=ScalingConfig(tasks=("pocket:winogrande",), records=2, batch_size=2, steps=1),
    observer=ObserverConfig(rows=2, samples=4),
)
"""


@pytest.fixture(scope="module")
def config_file(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG.format(model=str(tiny_checkpoint)))
    return path


@pytest.fixture(scope="module")
def argv(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("table") / "out"
    return ["--config", str(config_file), "--output", str(folder), "--system.compilation_cache", "false"]


@pytest.fixture(scope="module")
def finished(argv: list[str]) -> Path:
    """A table that was stopped, lost the end of its last line, and went on."""
    calls = [0]

    def stopping(self: Interrupt) -> None:
        calls[0] += 1
        self.asked = calls[0] == 3
        original(self)

    original = Interrupt.check
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupt, "check", stopping)
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert study.main(["run", *argv]) == 130
        assert "winogrande: " in told.getvalue()
        assert " training records" in told.getvalue()
        folder = Path(argv[3])
        log = folder / "cells.jsonl"
        kept = log.read_text()
        assert kept
        log.write_text(kept + '{"key": "cut o')
    assert study.main(["run", *argv]) == 0
    assert log.read_text().startswith(kept)
    return folder


def test_a_stopped_table_goes_on_and_computes_each_cell_once(finished: Path, argv: list[str]):
    log = (finished / "cells.jsonl").read_text()
    keys = [json.loads(line)["key"] for line in log.splitlines()]
    config = check(load_config(argv[1], argv[2:], TableRunConfig))
    assert config.tune.learning_rate == 0.01  # it is a part of the keys of tables that were begun before
    assert keys == [cell.key for cell in Plan(config).cells()]
    report = (finished / "report.md").read_text()
    assert study.main(["run", *argv]) == 0
    assert (finished / "cells.jsonl").read_text() == log
    assert (finished / "report.md").read_text() == report


def test_the_report_has_every_row_and_picture(finished: Path):
    body = json.loads((finished / "results.json").read_text())
    rows = {"vanilla", "few_shot", "standard", "dbp", "dbp_seconds", "soup", "soup_tasks", "observer", "test_time"}
    assert rows <= set(body["accuracy"])
    assert body["items"]["standard"]["winogrande"] == [2, 4]
    assert body["scaling"]["winogrande"]["differences"]
    assert body["observer"]["plain"]["r2"]
    text = (finished / "report.md").read_text()
    for name in ("accuracy", "scaling", "condition", "speed", "queries"):
        assert f"{name}.png" in text
        assert (finished / f"{name}.png").stat().st_size > 1000
    assert "standard above vanilla in accuracy, beyond the interval" in text
    assert {path.name for path in finished.iterdir()} <= set(run_folder.WRITTEN)


def test_a_tuned_state_is_kept_and_equals_what_a_plain_run_tunes(finished: Path, argv: list[str]):
    rows = [json.loads(line) for line in (finished / "cells.jsonl").read_text().splitlines()]
    (mine,) = summary.tuned_records([row for row in rows if row["seed"] == 0], "standard")
    assert (finished / "states" / "standard-winogrande-0.safetensors").is_file()
    config = load_config(argv[1], argv[2:], TableRunConfig)
    from experiments import build
    from experiments.data import batching
    from experiments.data.jobs import load_jobs
    from state_tuning.core import train

    lm, (job,) = build.load_model(config.model), load_jobs(config.data, config.evaluate, config.seed)
    tune = build.tune_config(config.tune)
    tune = dataclasses.replace(tune, learning_rate=0.1)
    optimizer = train.make_optimizer(tune)
    step, tuned = train.make_train_step(lm.model, optimizer, tune), None
    tuned = train.init(optimizer, train.init_trainable(lm.model.config, tune))
    batches = batching.training_batches(batching.encode_pairs(lm.tokenizer, job.train, config.data), 4, 0)
    losses = []
    for _ in range(2):
        tuned, metrics = step(lm.params, tuned, next(batches))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(mine["train"], losses, atol=2e-6)


def test_publish_fills_the_page_and_refuses_gaps(finished: Path, argv: list[str], tmp_path: Path, capsys):
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- paper_table -->\nold\n<!-- /paper_table -->\nafter\n")
    assert study.main(["publish", *argv[:4], "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    assert "## Accuracy, %" in text
    assert json.loads((tmp_path / "results.json").read_text())["accuracy"]
    assert study.main(["publish", *argv[:4], "--shots", "2", "--page", str(page)]) == 2
    assert "cells are missing" in capsys.readouterr().err


def test_a_row_without_a_rate_is_refused_in_one_line(config_file: Path, tmp_path: Path, capsys):
    other = tmp_path / "other.py"
    other.write_text(config_file.read_text().replace('{"winogrande": 0.1}', "{}"))
    assert study.main(["run", "--config", str(other), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: rows: standard has no rate for winogrande")
    assert not (tmp_path / "out").exists()


@given(st.integers(0, len(learning_rates.LADDER) - 1))
def test_climbing_finds_the_bottom_of_a_valley_wherever_it_is(bottom: int):
    asked = []

    def loss(rate: float) -> float:
        asked.append(rate)
        return abs(math.log10(rate) - math.log10(learning_rates.LADDER[bottom]))

    assert learning_rates.climb(loss) == learning_rates.LADDER[bottom]
    assert len(asked) == len(set(asked))


def test_climbing_passes_over_rates_that_diverge_and_finds_none_where_all_do():
    assert (
        learning_rates.climb({1e-2: 2.0, 1e-1: math.nan, 1.0: math.inf, 3e-2: math.nan, 3e-3: 3.0}.__getitem__) == 1e-2
    )
    with pytest.raises(ValueError, match=r"tuning diverges at every rate tried: 0\.003, 0\.01, 0\.03, 0\.1, 1$"):
        learning_rates.climb(lambda rate: math.nan)


def test_a_try_with_other_data_or_weights_is_another_try(argv: list[str], tmp_path: Path, monkeypatch):
    config = load_config(argv[1], ["--output", str(tmp_path)], TableRunConfig)
    search = rate_search.RateSearch(Plan(config), Interrupt())
    computed = []
    monkeypatch.setattr(search, "_tune", lambda *_: computed.append(1) or 0.5)

    def tries() -> int:
        search._loss("standard", "winogrande", lambda: None, 0.1)
        return len(computed)

    assert (tries(), tries()) == (1, 1)
    resources = search.resources
    job, student = resources.jobs["winogrande"], resources.student
    resources.jobs["winogrande"] = job._replace(train=job.train[1:])
    assert (tries(), tries()) == (2, 2)
    resources.student = student._replace(lm=student.lm.replace(weights_hash="other"))
    assert (tries(), tries()) == (3, 3)


def test_a_search_for_rates_says_what_it_is_tuned_on(argv: list[str], tmp_path: Path, capsys):
    plan = Plan(load_config(argv[1], ["--output", str(tmp_path), "--data.max_length", "9"], TableRunConfig))
    assert rate_search.search(plan, []) == 0
    told = capsys.readouterr()
    assert "winogrande: " in told.out
    assert "are longer than data.max_length 9 and were cut" in told.err


def test_a_rate_in_the_state_acts_as_the_rate_of_adam():
    def after(optimizer, state) -> jax.Array:
        x = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
        for _ in range(3):
            with jax.numpy_dtype_promotion("standard"):
                moves, state = optimizer.update(2 * x, state)
            x = x + moves
        return x

    start = jnp.zeros((2, 2))
    one, other = with_adjustable_rate(optax.adam(1.0)), optax.adam(0.25)
    np.testing.assert_allclose(after(one, set_rate(one.init(start), 0.25)), after(other, other.init(start)), rtol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(2, 40), st.integers(0, 10**6))
def test_the_interval_holds_the_mean_and_pairing_removes_what_is_common(seeds: int, items: int, seed: int):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(seeds, items))
    parts = rng.integers(1, 5, items).astype(float)
    found = crossed_bootstrap([ItemValues(values, parts)], 0, 400)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert found.mean == pytest.approx(values.mean(0).sum() / parts.sum())
    common = rng.normal(size=(1, items))
    pair = ItemValues(common + 0.5 * parts, parts), ItemValues(common, parts)
    gain = crossed_bootstrap([paired_difference(*pair)], 0, 400)
    np.testing.assert_allclose(gain, 0.5, atol=1e-9)


def test_more_seeds_of_one_outcome_do_not_narrow_the_interval_over_items():
    values = np.random.default_rng(0).normal(size=(1, 50))
    one, many = (crossed_bootstrap([ItemValues(np.repeat(values, n, axis=0), np.ones(50))], 0) for n in (1, 5))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_different_numbers_of_seeds_are_not_paired():
    a, b = ItemValues(np.zeros((2, 3)), np.ones(3)), ItemValues(np.zeros((3, 3)), np.ones(3))
    with pytest.raises(ValueError, match="2 and 3 seeds"):
        paired_difference(a, b)


def test_a_cell_with_other_settings_is_another_cell(tmp_path: Path):
    store = CellStore[dict[str, object]](tmp_path / "cells.jsonl")
    cell = Cell("timed", "a", "t", 0, ["x", 1])
    store.add(cell, {"right": [1.0]})
    again = CellStore[dict[str, object]](tmp_path / "cells.jsonl")
    assert again.get(cell) == store.get(cell)
    assert again.get(cell._replace(settings=["x", 2])) is None


def test_seconds_per_step_ignore_the_compilation_of_each_shape():
    assert tuning.typical_seconds([(48, 9.0), (48, 1.0), (48, 1.0), (96, 20.0), (96, 3.0), (96, 3.0)]) == 2.0


def test_equal_seconds_are_fewer_steps_of_what_costs_more():
    seconds = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 2.0, "y": 2.0}}
    assert timing.steps_for(seconds, "b", "a", 100) == 75
    assert timing.steps_for(seconds, "a", "a", 100) == 100


def test_the_condition_number_is_that_of_what_the_optimiser_sees():
    c = np.diag([1.0, 100.0])[None, None]
    raw = diagnostics.log_conditions(c, None)
    damped = 2 * np.diag([1.0, 100.0]) / 101 + diagnostics.DAMPING * np.eye(2)
    np.testing.assert_allclose(raw, [math.log10(np.linalg.cond(damped))])
    whitening = np.diag(1 / np.sqrt(np.diag(damped)))[None, None]
    np.testing.assert_allclose(diagnostics.log_conditions(c, whitening), [0.0], atol=1e-12)


def test_the_spread_of_one_direction_is_one_and_of_all_is_k():
    x = np.arange(1.0, 5.0)
    assert diagnostics.spread(np.outer(x, x)[None, None]) == {"largest": 1.0, "participation": 1.0}
    assert diagnostics.spread(3 * np.eye(4)[None, None]) == {"largest": 0.25, "participation": 4.0}


def test_half_lives_are_the_last_tokens_above_half_of_the_first():
    assert summary.half_lives([[8.0, 3.0, 5.0, 1.0], [1.0, 1.0, 1.0, 1.0]]) == [3, 4]


def test_mean_norms_leave_padding_out():
    z = jnp.ones((2, 3, 1, 4)).at[1, 2].set(100.0)
    valid = jnp.asarray([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(jax.device_get(diagnostics.mean_norm(z, valid)), [2.0, 2.0, 2.0])


def test_time_left_counts_only_cells_that_are_not_known(capsys, monkeypatch):
    now = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    shown = progress.ProgressTable(("arc",), 5, 3)
    shown.show("a", {"kind": "timing", "row": "a", "task": "arc"}, False)
    shown.show("b", {"kind": "timing", "row": "b", "task": "arc"}, True)
    shown.show("c", {"kind": "tuned", "row": "c", "task": "arc", "right": [1.0, 0.0]}, True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "2/5 cells, 10 s, about 20 s left; last: b",
        "3/5 cells, 20 s, about 10 s left; last: c, accuracy 50.0%",
    ]


def test_a_table_may_follow_its_search_for_rates_in_one_folder(tmp_path):
    config = load_config("paper_table", ["--output", str(tmp_path)], TableRunConfig)
    (tmp_path / "rates.jsonl").write_text("{}\n")
    assert not run_folder.claim(config.folder, "a", resolved(config))
    assert run_folder.claim(config.folder, "a", resolved(config))
    assert (tmp_path / "rates.jsonl").read_text() == "{}\n"


def test_published_settings_name_files_without_their_folders(tmp_path):
    real = ["--model.checkpoint", str(tmp_path / "model.pth"), "--data.dir", str(tmp_path / "data")]

    def names(config: TableRunConfig) -> tuple[object, object, object]:
        plain = artifacts.without_folders(identified(config))
        return plain["model"]["checkpoint"], plain["data"]["dir"], plain["larger"]

    assert names(load_config("gsm8k_table", real, TableRunConfig)) == ("model.pth", "data", None)
    assert names(load_config("paper_table", [], TableRunConfig)) == ("pocket/student", None, "pocket/teacher")
