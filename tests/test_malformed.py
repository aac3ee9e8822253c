"""Damaged files of every format: refused in one line that names the file, or read rightly; see tests/malformed."""

import os
import subprocess
import sys
from pathlib import Path

COUNT = int(os.environ.get("RWKV7_TEST_MALFORMED", "25"))
"""Damaged files a reader (the whole proof: 100,000)."""


def test_damaged_files_are_read_rightly_or_refused_in_one_line(capsys):
    """In forked processes, which bound CPU time and memory and see what is called."""
    processes = str(len(os.sched_getaffinity(0)) if COUNT > 1000 else 1)
    command = [sys.executable, "-m", "tests.malformed", str(COUNT), "--processes", processes]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    with capsys.disabled() if COUNT > 1000 else capsys:
        print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
