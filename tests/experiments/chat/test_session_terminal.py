"""A chat in a terminal: keys, Ctrl-C at the prompt, Ctrl-D."""

import os
import select
import sys
import time

import pytest

pty = pytest.importorskip("pty", reason="terminals are of Unix")
COMMAND = [sys.executable, "-m", "experiments.cli", "chat", "--quiet", "--max_new_tokens", "2"]


def read_until(screen: int, text: bytes, seconds: float = 300) -> bytes:
    """What a terminal shows, up to a text or the end."""
    found, end = b"", time.monotonic() + seconds
    while text not in found and time.monotonic() < end:
        if select.select([screen], [], [], 1)[0]:
            try:
                found += os.read(screen, 4096)
            except OSError:  # the other side is closed
                break
    return found


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves():
    process, screen = pty.fork()
    if process == 0:
        os.execv(COMMAND[0], COMMAND)
    assert read_until(screen, b"> ").endswith(b"> ")
    os.write(screen, b"half a li\x03")
    assert b"\n> " in read_until(screen, b"\n> ")
    os.write(screen, b"/think\n")
    assert b"think: none" in read_until(screen, b"\r\n\r\n> ")
    os.write(screen, b"\x04")
    read_until(screen, b"never said")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    os.close(screen)
