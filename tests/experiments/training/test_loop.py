"""The training loop: what a resumed run repeats, what a non-finite update does, who stops when."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config.loop import LoopConfig
from experiments.config.overrides import UsageError
from experiments.training import checkpoint, loop, profiling
from experiments.training.checkpoint import files
from experiments.training.metrics_log import MetricsLog
from experiments.training.preemption import Interrupt, Interrupted
from state_tuning.core.non_finite import NonFiniteError
from tests.experiments.training import loop_worker as small
from tests.experiments.training.kills import Killed, Killer

KILLS = int(os.environ.get("RWKV7_TEST_KILLS", "6"))
"""How many random places a run is killed at (the whole proof: 50)."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(last state, rows) of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    return small.finish(folder), small.untimed(folder)


def same(left, right):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


def test_it_learns_and_logs_every_other_step(whole):
    _, rows = whole
    assert [row["step"] for row in rows] == list(range(2, small.STEPS + 1, 2))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_killed_anywhere_and_resumed_is_bit_identical(whole, tmp_path, monkeypatch):
    """Losses, data order (`seen`), weights and moments; of what was saved at most the save in flight is lost."""
    counter = Killer()
    with monkeypatch.context() as patch:
        counter.patched(patch)
        small.finish(tmp_path / "counted", step=counter.step(small.step))
    rng = np.random.default_rng(int(os.environ.get("RWKV7_TEST_SEED", "0")))
    died = []
    for number, at in enumerate(sorted(rng.choice(counter.count, KILLS, replace=False) + 1)):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            killer = Killer(at)
            killer.patched(patch)
            with pytest.raises(Killed):
                small.finish(folder, step=killer.step(small.step))
        died.append(killer.names[at - 1])
        steps_taken, saves = killer.names[:at].count("stepped"), killer.names[:at].count("orbax") - 1
        complete = checkpoint.steps(folder / "checkpoints")
        if died[-1] != "delete":
            assert not any(checkpoint.damage(files.place(folder / "checkpoints", step)) for step in complete)
        newest = max(complete, default=0)
        assert newest >= (max(saves, 0) - 1) * small.SETTINGS.checkpoint_every
        assert steps_taken - newest <= 2 * small.SETTINGS.checkpoint_every
        assert same(small.finish(folder), whole[0]), killer.names[at - 1]
        assert small.untimed(folder) == whole[1], killer.names[at - 1]
        assert not list((folder / "checkpoints").glob(".part_*"))
    print(f"killed at: {', '.join(died)}")


def test_killed_again_and_again(whole, tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    for _ in range(4):
        with monkeypatch.context() as patch:
            killer = Killer(int(rng.integers(20, 60)))
            killer.patched(patch)
            with pytest.raises(Killed):
                small.finish(tmp_path, step=killer.step(small.step))
    assert same(small.finish(tmp_path), whole[0])
    assert small.untimed(tmp_path) == whole[1]
    ledger = json.loads((tmp_path / "goodput.json").read_text())
    assert ledger["sessions"] == 5
    assert ledger["seconds"]["lost"] > 0
    assert sum(ledger["seconds"].values()) <= ledger["wall"]


def test_a_non_finite_update_is_skipped_and_named(whole, tmp_path, capsys):
    state = small.finish(tmp_path, bad=(6, 9))
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert ["step 6, batch 6" in lines[0], "step 9, batch 9" in lines[1], len(lines)] == [True, True, 2]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert state[1][0].count == small.STEPS - 2


BAD = range(10, 13)
PATIENT = dataclasses.replace(small.SETTINGS, rollback_after=3)


def test_three_bad_batches_in_a_row_send_the_run_back(tmp_path, capsys):
    state = small.finish(tmp_path, PATIENT, bad=BAD)
    text = capsys.readouterr().err
    assert "3 in a row; back to step 8, on with batch 13" in text
    assert state[1][0].count == small.STEPS
    rows = small.untimed(tmp_path)
    assert [row["step"] for row in rows] == list(range(2, small.STEPS + 1, 2))
    assert all(np.isfinite(row["loss"]) for row in rows)
    data = small.Regression()
    seen = [float(next(data)["y"].sum()) for _ in range(14)]
    assert rows[4]["seen"] == pytest.approx(seen[13], rel=1e-5)
    assert json.loads((tmp_path / "goodput.json").read_text())["seconds"]["lost"] > 0


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    """(last state, rows) of an undisturbed run with a rollback."""
    folder = tmp_path_factory.mktemp("rolled_back")
    return small.finish(folder, PATIENT, bad=BAD), small.untimed(folder)


@pytest.mark.parametrize("stop", [9, 11, 12, 14])
def test_stopped_around_a_rollback_and_resumed_is_bit_identical(stop, rolled_back, tmp_path, capsys):
    interrupt, count = Interrupt(), 0

    def stepped(state, batch):
        nonlocal count
        count += 1
        interrupt.asked |= count == stop
        return small.step(state, batch)

    with pytest.raises(Interrupted):
        small.finish(tmp_path, PATIENT, interrupt, bad=BAD, step=stepped)
    capsys.readouterr()
    assert same(small.finish(tmp_path, PATIENT, bad=BAD), rolled_back[0])
    assert ("step 12, batch 12: " in capsys.readouterr().err) == (stop < 12)
    assert small.untimed(tmp_path) == rolled_back[1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (range(2, 9), r"^step 4, batch 4: .*; 3 in a row and no checkpoint from before: lower the learning rate"),
        (range(10, 99), r"^step 12, batch 20: .*; 4 in a row after 2 rollbacks: lower the learning rate"),
    ],
)
def test_a_run_that_cannot_go_on_is_given_up_in_one_line(bad, message, tmp_path):
    with pytest.raises(NonFiniteError, match=message) as caught:
        small.finish(tmp_path, PATIENT, bad=bad)
    assert "\n" not in str(caught.value)


def test_ctrl_c_saves_the_present_step(whole, tmp_path, monkeypatch):
    append = MetricsLog.append

    def pressing(log, row):
        append(log, row)
        if row["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, Interrupt() as interrupt:
        patch.setattr(MetricsLog, "append", pressing)
        with pytest.raises(Interrupted, match=r"^step 6 of small$"):
            small.finish(tmp_path, interrupt=interrupt)
    assert checkpoint.steps(tmp_path / "checkpoints") == [4, 6]
    assert same(small.finish(tmp_path), whole[0])


def test_processes_agree_when_to_stop(monkeypatch):
    from experiments.training import preemption as module

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(module, "_any_process", lambda flag: True)
    interrupt = Interrupt()
    assert not interrupt.agreed(exchange=False)
    assert interrupt.agreed()
    with pytest.raises(Interrupted):
        interrupt.check()


def test_a_run_and_its_resumption_are_one_program(tmp_path):
    step = jax.jit(lambda state, batch: ([state[0] + batch["x"].mean()], {"loss": state[0], "seen": state[0]}))
    for steps in (6, 12):
        state = jax.jit(lambda: [jnp.full((), 1.0)])()
        assert state[0].weak_type
        loop.drain(loop.train(small.task(steps, step=step), state, small.SETTINGS, small.place(tmp_path)))
    assert step._cache_size() == 1


def test_the_best_checkpoints_stay(tmp_path):
    settings = dataclasses.replace(small.SETTINGS, keep_best=1, best_metric="score")
    score = {4: 3.0, 8: 1.0, 12: 2.0, 16: 5.0, 20: 4.0, 24: 6.0}
    rows = loop.train(
        small.task(evaluate=lambda state: {"score": score[int(state[1][0].count)]}, evaluate_every=4),
        small.fresh(),
        settings,
        small.place(tmp_path),
    )
    assert [row["step"] for row in rows if "score" in row] == list(score)
    assert checkpoint.steps(tmp_path / "checkpoints") == [8, 20, 24]


def test_an_unknown_best_metric_is_refused_at_once(tmp_path):
    settings = dataclasses.replace(small.SETTINGS, keep_best=1, best_metric="los")
    with pytest.raises(UsageError, match=r"^best_metric: los is not among loss, seen$"):
        loop.train(small.task(), small.fresh(), settings, small.place(tmp_path))


def test_a_profile_of_chosen_steps(tmp_path):
    small.finish(tmp_path, dataclasses.replace(small.SETTINGS, profile_start=3, profile_steps=2), steps=6)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


class FakeWriter:
    def __init__(self, folder):
        self.folder, self.scalars, self.closed = folder, [], False
        FakeWriter.last = self

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


def test_tensorboard_gets_the_rows(tmp_path, monkeypatch):
    settings = dataclasses.replace(small.SETTINGS, tensorboard=True)
    monkeypatch.setattr(profiling.importlib.util, "find_spec", lambda name: name == "tensorboardX")
    monkeypatch.setattr(profiling.importlib, "import_module", lambda name: type("X", (), {"SummaryWriter": FakeWriter}))
    small.finish(tmp_path, settings, steps=4)
    assert FakeWriter.last.closed
    assert [(name, step) for name, _, step in FakeWriter.last.scalars] == [
        (name, step) for step in (2, 4) for name in ("loss", "seen", "tokens_per_s")
    ]


def test_tensorboard_that_is_missing_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^tensorboard: no writer is installed: pip install tensorboardX"):
        small.finish(tmp_path, dataclasses.replace(small.SETTINGS, tensorboard=True), steps=2)


@pytest.mark.parametrize("wrong", [{"keep": 1}, {"log_every": 0}, {"rollbacks": -1}, {"rollback_after": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^must "):
        LoopConfig(**wrong)
