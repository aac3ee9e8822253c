"""The line about time and memory: once, of steps that were not compiled."""

from types import SimpleNamespace
from typing import Any

import jax

from experiments.training.pace import Pace, memory


def test_compilation_is_not_counted_and_the_line_comes_once():
    now = iter([0.0, 50.0, 52.0, 53.0, 60.0, 61.0])
    pace = Pace(lambda: next(now))
    lines = []
    for index, compiled in enumerate([True, True, False, False, True, False], 1):
        if compiled:
            pace.compiled()
        lines.append(pace.read(index, 100, jax.devices()))
    assert [line is not None for line in lines] == [False, False, True, False, False, False]
    assert lines[2].startswith("about 3 min for the 97 steps left, 2 s a step; memory of the ")


def test_steps_between_two_readings_share_their_time_and_the_last_step_says_nothing():
    now = iter([0.0, 40.0])
    pace = Pace(lambda: next(now))
    assert pace.read(1, 21, []) is None
    assert pace.read(11, 21, []).startswith("about 40 s for the 10 steps left, 4 s a step; memory of the process")
    now = iter([0.0, 1.0])
    pace = Pace(lambda: next(now))
    assert [pace.read(index, 2, []) for index in (1, 2)] == [None, None]


def test_memory_is_that_of_the_fullest_device_of_this_process():
    def device(process, **stats):
        return SimpleNamespace(process_index=process, memory_stats=lambda: stats or None)

    devices: Any = [
        device(0, peak_bytes_in_use=2**30, bytes_limit=2**34),
        device(0, peak_bytes_in_use=2**31, bytes_limit=2**34),
        device(1, peak_bytes_in_use=2**33),
    ]
    assert memory(devices) == "memory of the fullest device at its peak 2.00 of 16.00 GiB"
    assert memory([device(0)]).startswith("memory of the process at its peak ")  # pyright: ignore[reportArgumentType]
