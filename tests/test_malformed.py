"""Damaged files of every format: refused in one line that names the file, or read rightly; see tests/malformed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.malformed import bad_readers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox reads /proc")

COUNT = int(os.environ.get("RWKV7_TEST_MALFORMED", "25"))
"""Damaged files a reader (the whole proof: 100,000)."""


def fuzzed(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.malformed", *words]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)


def test_damaged_files_are_read_rightly_or_refused_in_one_line():
    """In forked processes, which bound CPU time and memory and see what is called."""
    done = fuzzed(str(COUNT), "--processes", str(len(os.sched_getaffinity(0))) if COUNT > 1000 else "1")
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_sandbox_sees_each_fault():
    done = fuzzed("1", "--bad")
    faults = [line for line in done.stdout.splitlines() if " x " in line]
    for reader in bad_readers.readers():
        said = [line.partition(": ")[2] for line in faults if f" x {reader.name}, " in line]
        assert len(said) == 1, done.stdout + done.stderr
        assert reader.name in said[0]
    assert done.returncode == 1
