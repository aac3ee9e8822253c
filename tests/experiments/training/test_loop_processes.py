"""Real processes: killed with SIGKILL at random moments, two at once over loopback, told to stop by SIGTERM."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.training import checkpoint
from tests.experiments.training import loop_worker as small

KILLS = int(os.environ.get("RWKV7_TEST_SIGKILLS", "3"))
"""Kills (the whole proof: 1,000)."""
WHOLE = "0.1" if KILLS >= 20 else "0"
"""The share of runs that are `rwkv7 tune` from the command line to the report, which take ten times as long."""
ROOT = pathlib.Path(__file__).parents[3]


def start(folder, *words):
    """A worker; its output can be read when it has ended."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.experiments.training.loop_worker", str(folder), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)


def pair(folder, *words):
    """Two processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    more = ("--coordinator", f"localhost:{port}", "--processes", "2", *words)
    return [start(folder, *more, "--process", str(number)) for number in range(2)]


def ended(*workers):
    texts = [worker.communicate(timeout=120)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(texts)
    return texts


def until(condition, workers):
    """Wait; fails if a worker ends before."""
    limit = time.monotonic() + 120
    while not condition():
        assert all(worker.poll() is None for worker in workers), workers[0].communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.01)


def result(folder):
    return (folder / "last.json").read_text(), small.untimed(folder)


def rows(folder):
    return len((folder / "metrics.jsonl").read_text().splitlines()) if (folder / "metrics.jsonl").exists() else 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    ended(start(folder))
    return result(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="the loop reads /proc")
def test_killed_for_good_and_resumed_is_bit_identical(tmp_path):
    """At random moments, before random operations on files, again and again; see `kill_loop`."""
    seed = os.environ.get("RWKV7_TEST_SEED", "0")
    words = ["--kills", str(KILLS), "--seed", seed, "--whole", WHOLE]
    command = [sys.executable, "-m", "tests.experiments.training.kill_loop", str(tmp_path), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=None if KILLS > 3 else 600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_are_killed_and_told_to_stop(alone, tmp_path):
    """The series of two processes, of which one was killed and later one was told to stop, is that of one process."""
    workers = pair(tmp_path, "--pause", "0.02")
    until(lambda: rows(tmp_path) >= 5, workers)
    workers[1].kill()
    time.sleep(0.2)
    workers[0].kill()
    [worker.communicate() for worker in workers]
    assert max(checkpoint.steps(tmp_path / "checkpoints")) >= 4
    workers = pair(tmp_path, "--pause", "0.3")
    until(lambda: rows(tmp_path) >= 6, workers)
    workers[1].send_signal(signal.SIGTERM)
    texts = ended(*workers)
    places = {re.search(r"interrupted at step (\d+) of small", text)[1] for text in texts}
    assert len(places) == 1
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == int(places.pop()) < small.STEPS
    ended(*pair(tmp_path))
    (last, series), (wanted, one) = result(tmp_path), alone
    assert [row["step"] for row in series] == [row["step"] for row in one]
    for row, other in zip(series, one, strict=True):
        np.testing.assert_allclose([row["loss"], row["seen"]], [other["loss"], other["seen"]], rtol=1e-5, atol=1e-5)
    for leaf, other in zip(json.loads(last), json.loads(wanted), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "goodput.json").read_text())["sessions"] == 3
