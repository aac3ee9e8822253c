"""A chat in a terminal: keys, Ctrl-C at the prompt, Ctrl-D."""

import os
import select
import subprocess
import sys
import time

import pytest

pytest.importorskip("pty", reason="terminals are of Unix")
SPAWN = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
CHAT = [sys.executable, "-m", "experiments.cli", "chat", "--quiet", "--max_new_tokens", "2"]


def read_until(screen: int, text: bytes, seconds: float = 300) -> bytes:
    """What a terminal shows, up to a text or the end."""
    found, end = b"", time.monotonic() + seconds
    while text not in found and time.monotonic() < end:
        if select.select([screen], [], [], 1)[0]:
            new = os.read(screen, 4096)
            if not new:
                break
            found += new
    return found


def press_ctrl_c(keys: int, screen: int) -> bytes:
    """What comes up to the next prompt. Python may overlook the key while readline takes in another one: again then."""
    shown = b""
    for _ in range(10):
        os.write(keys, b"\x03")
        shown += read_until(screen, b"\n> ", seconds=20)
        if b"\n> " in shown:
            break
    return shown


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves():
    command = [sys.executable, "-c", SPAWN, *CHAT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            keys, screen = process.stdin.fileno(), process.stdout.fileno()
            assert read_until(screen, b"> ").endswith(b"> ")
            os.write(keys, b"half a li")
            assert b"half a li" in read_until(screen, b"half a li")
            assert b"\n> " in press_ctrl_c(keys, screen)
            os.write(keys, b"/think\n")
            assert b"think: none" in read_until(screen, b"\r\n\r\n> ")
            os.write(keys, b"\x04")
            read_until(screen, b"never said")
            assert process.wait(60) == 0
        finally:
            process.kill()
