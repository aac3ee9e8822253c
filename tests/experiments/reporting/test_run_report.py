"""Verdict, hash, tables, intervals and pictures of a run."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config.overrides import apply_overrides
from experiments.config.schema import RunConfig, identified
from experiments.reporting import plots, run_report, statistics
from experiments.reporting.run_report import Measurement, Outcome
from experiments.reporting.tables import text_table
from experiments.training import metrics_log


def outcome(name="arc", change=-1.0, before=30, after=60, items=100):
    """A finished job: loss moved by `change` nats a token, right answers from `before` to `after`."""
    nll = np.random.default_rng(0).uniform(1, 9, 20)
    tokens = np.arange(1.0, 21)
    scores = [{"acc": [1.0] * right + [0.0] * (items - right)} for right in (before, after)]
    vanilla = Measurement(nll.tolist(), tokens.tolist(), scores[0])
    tuned = Measurement((nll + change * tokens).tolist(), tokens.tolist(), scores[1])
    sample = {"prompt": "p\nq", "wanted": "w", "vanilla": "v", "tuned": "t"}
    return Outcome(name, "acc", vanilla, tuned, [sample], 0)


def plain(job):
    """The same job without a benchmark."""
    return dataclasses.replace(
        job,
        headline=None,
        vanilla=dataclasses.replace(job.vanilla, scores={}),
        tuned=dataclasses.replace(job.tuned, scores={}),
    )


def results(outcomes, config=None):
    config = config or RunConfig()
    return run_report.results(identified(config), config.seed, "base", "protocol", outcomes)


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([outcome()], "PASS"),
        ([outcome(), outcome("mmlu", after=28)], "PASS"),
        ([plain(outcome())], "PASS"),
        ([outcome(), outcome("mmlu", change=0.5)], "FAIL (held-out loss did not fall: mmlu)"),
        ([plain(outcome(change=float("nan")))], "FAIL (held-out loss did not fall: arc)"),
        ([outcome(after=30)], "FAIL (the mean gain in accuracy, +0.0 [+0.0, +0.0] points, is not clearly above 0)"),
    ],
)
def test_verdict(outcomes, verdict):
    assert results(outcomes)["verdict"] == verdict


def test_hash_depends_on_settings_and_results_alone():
    first = results([outcome()])["sha256"]
    assert results([outcome()])["sha256"] == first
    moved = apply_overrides(RunConfig(), ["--output", "x", "--system.checkpoint_every", "7", "--overwrite"])
    assert results([outcome()], moved)["sha256"] == first
    assert results([outcome()], dataclasses.replace(RunConfig(), seed=1))["sha256"] != first
    assert results([outcome(change=-1.0000001)])["sha256"] != first


def test_outcome_round_trips_exactly(tmp_path):
    job = outcome(change=-1 / 3)
    job.write(tmp_path / "outcome.json")
    assert Outcome.read(tmp_path / "outcome.json") == job


def test_summary_is_weighted_by_tokens():
    row = run_report.summarise(outcome(change=-0.25), 0)
    assert row["loss_tuned"] - row["loss_vanilla"] == pytest.approx(-0.25)
    np.testing.assert_allclose(row["loss_change"], [-0.25] * 3, rtol=1e-9)
    assert row["vanilla"]["acc"] == statistics.wilson(30, 100)
    assert row["gain"].mean == pytest.approx(0.3)


def test_tables_and_files(tmp_path):
    outcomes = [outcome(), outcome("winogrande", change=-0.5)]
    body = results(outcomes)
    text = text_table(run_report.table_lines(body)).splitlines()
    assert [line.split()[0] for line in text[2:]] == ["arc", "winogrande", "mean"]
    assert "30.0 [21.9, 39.6]" in text[2]
    run_report.write(tmp_path, body, outcomes, ["loss.png"], ["python x"])
    page = (tmp_path / "report.md").read_text()
    assert "| winogrande | 20 |" in page
    assert f"RESULT: PASS\nReproducibility hash: {body['sha256']}" in page
    assert json.loads((tmp_path / "results.json").read_text())["sha256"] == body["sha256"]
    assert {len(row) for row in run_report.table_lines(results([plain(outcome())]))} == {5}


@pytest.mark.parametrize(("records", "said"), [(9, True), (10, False)])
def test_intervals_over_very_few_records_are_remarked(tmp_path, records, said):
    body = results([outcome()])
    body["jobs"]["arc"]["records"] = records
    assert run_report.remarks(body) == ([f"too few records for an interval to say much: arc {records}"] if said else [])
    run_report.write(tmp_path, body, [outcome()], [], [])
    assert ("too few records" in (tmp_path / "report.md").read_text()) == said


def test_long_samples_are_shortened():
    sample = {"prompt": "x" * 500 + "end", "wanted": "", "vanilla": "a\nb", "tuned": "cde" * 9}
    lines = [line.strip() for line in run_report.sample_text(sample, 5).splitlines()]
    assert lines == ["prompt  | ...xxend", "vanilla | a", "| b", "tuned   | cdecd..."]


def test_an_empty_answer_is_shown():
    sample = {"prompt": "a", "wanted": "", "vanilla": "", "tuned": "\n"}
    lines = [line.strip() for line in run_report.sample_text(sample).splitlines()]
    assert lines == ["prompt  | a", "vanilla | (nothing)", "tuned   | (nothing)"]


def test_wilson_is_the_published_interval():
    """Wilson's interval for 7 of 10: 0.3968 to 0.8922 (Newcombe 1998, method 3, by its formula)."""
    np.testing.assert_allclose(statistics.wilson(7, 10), (0.7, 0.39677, 0.89220), atol=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 500), st.data())
def test_wilson_holds_its_mean_within_bounds(trials, data):
    mean, low, high = statistics.wilson(data.draw(st.integers(0, trials)), trials)
    assert 0 <= low <= mean <= high <= 1
    assert high > low


def test_bootstrap_agrees_with_the_normal_interval():
    x = np.random.default_rng().normal(3.0, 2.0, 400)
    mean, low, high = statistics.bootstrap([x.tolist()], seed=0)
    half = 1.96 * x.std() / 20
    assert mean == pytest.approx(x.mean())
    np.testing.assert_allclose([mean - low, high - mean], half, rtol=0.12)
    assert statistics.bootstrap([x.tolist()], seed=0) == (mean, low, high)
    halved = statistics.bootstrap([x.tolist(), [0.0] * 5], seed=0)
    np.testing.assert_allclose([halved.mean, halved.high - halved.mean], [mean / 2, half / 2], rtol=0.15)


def test_metrics_log_rewinds_one_job_and_drops_a_torn_row(tmp_path):
    log = metrics_log.MetricsLog(tmp_path / "m.jsonl")
    for job in ("a", "b"):
        for step in (1, 2, 3):
            log.append({"job": job, "step": step})
    with log.path.open("a") as file:
        file.write('{"job": "b", "st')
    log.rewind("b", 1)
    log.append({"job": "b", "step": 2})
    assert [(row["job"], row["step"]) for row in log.rows()] == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2)]
    assert len(log.rows("a")) == 3


def test_smoothing_is_unbiased_at_the_start():
    np.testing.assert_allclose(plots.smooth([2.0] * 5), 2.0)
    assert plots.smooth([4.0, 0.0])[0] == 4.0
    line = np.arange(50.0)
    np.testing.assert_allclose(plots.smooth(line), line)  # a mean of the past alone would lag
    np.testing.assert_allclose(plots.smooth([0.0, 0.0, 3.0, 0.0, 0.0], 1), [0, 1, 1, 1, 0])
    assert plots.smooth([]).shape == (0,)


def test_pictures_are_drawn_for_any_number_of_heads_and_a_zero_state(tmp_path):
    for index, shape in enumerate([(1, 1, 4, 4), (3, 2, 4, 4), (6, 8, 4, 4)]):
        wkv = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        plots.state_maps(tmp_path / f"{index}.png", wkv * (index > 0), "a state")
    plots.loss_curves(tmp_path / "loss.png", {n: [(1, 2.0), (2, 1.0)] for n in "abc"}, dict.fromkeys("abc", (2.0, 1.0)))
    sizes = [path.stat().st_size for path in tmp_path.glob("*.png")]
    assert len(sizes) == 4
    assert min(sizes) > 5000


@pytest.mark.parametrize(
    "part",
    [
        {"scores": "x"}, {"scores": 1.5}, {"scores": None}, {"scores": [[1.0]]}, {"scores": {"acc": [2.0**64]}},
        {"nll": [2**64]}, {"tokens": [0.0]}, {"tokens": [10**400]},
    ],
)  # fmt: skip
def test_an_outcome_of_another_shape_is_refused(tmp_path, part):
    side = {"nll": [1.0], "tokens": [2.0], "scores": {}} | part
    job = {"name": "a", "headline": None, "vanilla": side, "tuned": side, "samples": [], "skipped": 0}
    (tmp_path / "outcome.json").write_text(json.dumps(job))
    with pytest.raises(ValueError, match=r"outcome\.json is damaged"):
        Outcome.read(tmp_path / "outcome.json")
