"""One process at a time writes a folder; who it is is said, and nothing is left of one that was killed."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from rwkv7_jax import locks
from rwkv7_jax.locks import Locked, lock

HOLD = """
import pathlib, sys
from rwkv7_jax.locks import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_is_held_is_refused_by_process_and_host(tmp_path, other):
    told = f"{tmp_path} is being written by process {other.pid} on .*: wait until it ends"
    with pytest.raises(Locked, match=told), lock(tmp_path):
        pass
    other.communicate("")
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_held_is_taken_over(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".lock").is_file()
    with lock(tmp_path), pytest.raises(Locked, match=f"process {os.getpid()} on"), lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_to_be_written_is_held_beside_it(tmp_path):
    held, other = lock(tmp_path / "a.st"), lock(tmp_path / "b.st")
    with held, other, pytest.raises(Locked, match=r"a\.st is being written"), lock(tmp_path / "a.st"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["", "x", "[]", '{"pid": "x"}', '{"pid": 1e999, "host": 3}'])
def test_a_lock_file_that_says_nothing_hinders_nobody(left, tmp_path):
    (tmp_path / ".lock").write_text(left)
    with lock(tmp_path):
        pass


def test_without_flock_the_lock_file_alone_counts(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", missing)
    with lock(tmp_path), pytest.raises(Locked, match=r"or remove .*\.lock if it has ended"), lock(tmp_path):
        pass
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    owner = {"pid": int(ended.stdout), "host": locks.socket.gethostname()}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    with lock(tmp_path):
        pass
    (tmp_path / ".lock").write_text(json.dumps({**owner, "host": "elsewhere"}))
    with pytest.raises(Locked, match="on elsewhere"), lock(tmp_path):
        pass
