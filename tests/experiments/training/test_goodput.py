"""The ledger: every second counted once, carried over restarts, and steps done again are lost."""

import json

import pytest

from experiments.training.goodput import Ledger


class Clock:
    """Time that passes only when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


def spend(ledger, clock, **seconds):
    for part, amount in seconds.items():
        with ledger.timed(part):
            clock.now += amount


def test_parts_and_the_rest_make_up_the_wall_time(tmp_path):
    clock = Clock()
    ledger = Ledger(tmp_path / "goodput.json", clock)
    spend(ledger, clock, compile=4.0, input=1.0, step=10.0, save=2.0, evaluation=1.0)
    clock.now += 2.0
    ledger.write()
    body = json.loads((tmp_path / "goodput.json").read_text())
    assert (body["wall"], body["goodput"], body["sessions"]) == (20.0, 0.5, 1)
    assert sum(body["seconds"].values()) == 18.0
    assert ledger.line().startswith("goodput 50% of 20.0 s: compile 4.0 s, input wait 1.0 s, step 10.0 s")
    assert ledger.line().endswith("lost to restarts 0.0 s, other 2.0 s")


def test_steps_after_the_checkpoint_are_lost_to_the_restart(tmp_path):
    clock, path = Clock(), tmp_path / "goodput.json"
    ledger = Ledger(path, clock)
    spend(ledger, clock, input=1.0, step=6.0)
    saved = ledger.snapshot()
    spend(ledger, clock, input=0.5, step=3.0)
    ledger.write()
    again = Ledger(path, clock)
    again.back_to(saved)
    assert again.seconds == {**dict.fromkeys(again.seconds, 0.0), "input": 1.0, "step": 6.0, "lost": 3.5}
    assert (again.sessions, again.wall) == (2, 10.5)
    anew = Ledger(path, clock)
    anew.back_to({})
    assert (anew.seconds["lost"], anew.seconds["step"]) == (10.5, 0.0)


def test_the_file_is_written_once_a_second_or_on_demand(tmp_path):
    clock, path = Clock(), tmp_path / "folder" / "goodput.json"
    ledger = Ledger(path, clock)
    ledger.write(now=False)
    first = path.read_text()
    clock.now += 0.5
    ledger.write(now=False)
    assert path.read_text() == first
    clock.now += 0.6
    ledger.write(now=False)
    assert path.read_text() != first
    Ledger(None, clock).write()


HUGE = '{"goodput": 1.0, "wall": 1%s, "sessions": 1, "seconds": {}}' % ("0" * 400)


@pytest.mark.parametrize("text", ["{", "[1]", "", HUGE])
def test_a_damaged_file_is_begun_anew(text, tmp_path):
    (tmp_path / "goodput.json").write_text(text)
    assert Ledger(tmp_path / "goodput.json").sessions == 1
