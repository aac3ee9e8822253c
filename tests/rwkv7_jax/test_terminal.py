"""The end of a command: one line whatever ends it and whatever the terminal can show, and nothing half-written."""

import io
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from rwkv7_jax import terminal

NARROW = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
BEGIN = """
import pathlib, sys
from rwkv7_jax.checkpoint.files import atomic
from rwkv7_jax.terminal import exit_status

class Falls:
    def __del__(self):
        wait()

def wait():
    print("waits", flush=True)
    sys.stdin.read()

def imported():
    sys.path.insert(0, sys.argv[1])
    import swallows

def written():
    with atomic(pathlib.Path(sys.argv[1]) / "model.bin") as file:
        file.write(b"half of it")
        wait()

def passed_over():
    one = Falls()
    del one
    wait()

sys.exit(exit_status(BODY, "interrupted; go on"))
"""
SWALLOWS = """
import sys
try:
    print("waits", flush=True)
    sys.stdin.read()
except BaseException:
    raise ImportError("the extension cannot be initialised")
"""


def ended(body: str, folder: pathlib.Path, number: int) -> tuple[int, str]:
    """Exit status and last words of a process that gets a signal while it waits in `body`."""
    (folder / "swallows.py").write_text(SWALLOWS)
    command = [sys.executable, "-c", BEGIN.replace("BODY", body), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "waits\n"
        process.send_signal(number)
        return process.wait(60), process.stderr.read()


@pytest.mark.parametrize("body", ["imported", "written", "passed_over"])
def test_signals_end_with_a_line_and_nothing_half_written(body, tmp_path):
    assert ended(body, tmp_path, signal.SIGINT) == (130, "interrupted; go on\n")
    assert ended(body, tmp_path, signal.SIGTERM) == (143, "ended by SIGTERM\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"swallows.py", "__pycache__"}


def test_handlers_are_those_from_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert terminal.exit_status(lambda: 0) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_narrow_terminal_shows_question_marks():
    code = "from rwkv7_jax.terminal import exit_status; exit_status(lambda: print('\\u77f3 \\u00b1 a') or 0)"
    done = subprocess.run([sys.executable, "-c", code], env=NARROW, capture_output=True)
    assert (done.stdout, done.stderr) == (b"? ? a\n", b"")


def test_what_is_typed_and_piped_is_utf8_in_every_locale():
    code = "import sys; from rwkv7_jax import terminal as t; text = t.typed('--prompt', sys.argv[1]); "
    code += "print(ascii(text), ascii(t.standard_input('--prompt')))"
    command = [sys.executable, "-c", code, "石".encode()]
    done = subprocess.run(command, env=NARROW, input="石\r\n".encode(), capture_output=True)
    assert (done.stdout, done.stderr) == (b"'\\u77f3' '\\u77f3\\n'\n", b"")


def test_text_that_is_not_utf8_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match="--prompt: the text is not valid UTF-8"):
        terminal.typed("--prompt", "a\udcff")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    with pytest.raises(ValueError, match="--prompt -: standard input is not valid UTF-8"):
        terminal.standard_input("--prompt")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="--prompt -: standard input is closed"):
        terminal.standard_input("--prompt")
