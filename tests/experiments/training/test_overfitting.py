"""Overfitting is said once, where it shows; patience stops there."""

import pytest

from experiments.training.metrics_log import MetricsLog
from experiments.training.overfitting import Point, Watch, points, since_least, warning


def rows(held_out, training, every=2):
    """A row each step; the held-out loss is measured at every `every`th."""
    found = []
    for number, (one, loss) in enumerate(zip(held_out, training, strict=True), 1):
        for step in range((number - 1) * every + 1, number * every + 1):
            measured = {"validation_loss": one} if step == number * every else {}
            found.append({"job": "a", "step": step, "loss": loss, "timing": {"tokens_per_s": 1}, **measured})
    return found


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def walk(log, watch, held_out, training):
    """The steps that are taken until it is enough."""
    for row in rows(held_out, training):
        log.append(row)
        if watch.enough(row["step"]):
            break
    return log.rows("a")[-1]["step"]


def test_points_are_means_since_the_one_before():
    assert points(rows([3.0, 2.0], [1.0, 0.5])) == [Point(2, 3.0, 1.0), Point(4, 2.0, 0.5)]
    assert points([]) == []
    assert since_least([Point(2, 3.0, 1.0), Point(4, 3.0, 1.0)]) == (Point(2, 3.0, 1.0), 1)


@pytest.mark.parametrize(
    ("held_out", "training", "said"),
    [
        ([3, 2, 2.5, 2.6], [3, 2, 1, 0.5], "held-out loss is 2.6000 at step 8 and was 2.0000 at step 4"),
        ([3, 2, 2.5, 2.6, 2.7], [3, 2, 1, 0.5, 0.4], None),
        ([3, 2, 2.5], [3, 2, 1], None),
        ([3, 2, 2.5, 1.9], [3, 2, 1, 1], None),
        ([3, 2, 2.5, 2.6], [3, 2, 2.5, 2.6], None),
        ([3, 2, 2, 2], [3, 2, 1, 0.5], None),
    ],
)
def test_it_is_said_when_held_out_rises_and_training_falls(held_out, training, said):
    line = warning(points(rows(held_out, training)))
    assert (line is None) if said is None else said in str(line)


def test_a_job_that_overfits_is_told_once_and_goes_on(log, tmp_path, capsys):
    best = tmp_path / "best.safetensors"
    best.touch()
    assert walk(log, Watch("a", log, 2, 0, best), [3, 2, 2.5, 2.6, 2.7], [3, 2, 1, 0.5, 0.4]) == 10
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: a: it overfits: ")
    assert lines[0].endswith(f"the state of step 4 is {best}; --tune.patience 2 stops there, Ctrl-C stops now")


@pytest.mark.parametrize(("patience", "last"), [(1, 6), (2, 8), (3, 10), (4, 10)])
def test_patience_counts_measurements_after_the_least(log, capsys, patience, last):
    assert walk(log, Watch("a", log, 2, patience, None), [3, 2, 2.5, 2.6, 2.7], [3, 2, 1, 0.5, 0.4]) == last
    stopped = f"a: stops after step {last}: the held-out loss has not fallen for {patience} measurements"
    assert (stopped in capsys.readouterr().err) is (patience < 4)


def test_a_resumed_run_asks_at_the_step_that_it_resumes_from(log):
    watch = Watch("a", log, 2, 2, None)
    assert walk(log, watch, [3, 2, 2.5, 2.6], [3, 2, 1, 0.5]) == 8
    assert Watch("a", log, 2, 2, None).enough(8)
    assert not Watch("a", log, 2, 3, None).enough(8)
    assert not watch.enough(0)
    assert not watch.enough(7)
