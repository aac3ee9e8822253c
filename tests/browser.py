"""A headless browser for tests: Chromium, driven over its pipe of debugging messages.

Source: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "google-chrome", "chromium-browser", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str | None:
    """The program: that of RWKV7_TEST_CHROMIUM, or one on the path."""
    named = os.environ.get("RWKV7_TEST_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


SECONDS = 120
"""The browser's time for an answer."""


class Page:
    """An open page."""

    def __init__(self, reading: int, writing: int):
        self._reading, self._writing = reading, writing
        self._held, self._numbers = b"", itertools.count(1)
        self.complaints: list[str] = []
        """What the page's console said of errors."""
        self.asked: list[str] = []
        """Every address that the page loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: object) -> dict:
        """Sends a message; returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            self._note(found)

    def _next(self) -> dict:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._reading], [], [], SECONDS)
            assert ready, f"the browser says nothing for {SECONDS} s"
            part = os.read(self._reading, 1 << 20)
            assert part, "the browser has ended"
            self._held += part
        message, _, self._held = self._held.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])

    def open(self, url: str, width: int, height: int) -> None:
        """Loads an address in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> object:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"{script} is not true after {seconds} s; the console said {self.complaints}"
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Types into what has the focus; a line end is the Enter key."""
        for line in text.splitlines(keepends=True):
            self.call("Input.insertText", text=line.rstrip("\n"))
            if line.endswith("\n"):
                key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
                self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
                self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def picture(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def _end(pid: int, seconds: float = 20) -> None:
    """Asks a child to end, and ends it when it does not."""
    os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.05)


@contextlib.contextmanager
def browser(program: str) -> Iterator[Page]:
    """Runs a browser within `with`."""
    to_it, from_it = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (to_it[0], from_it[1])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pid = os.posix_spawn(
            program,
            [program, *FLAGS, f"--user-data-dir={folder}"],
            {**os.environ, "HOME": folder},
            file_actions=[(os.POSIX_SPAWN_DUP2, end, number) for end, number in zip(ends, (3, 4), strict=True)],
        )
        for end in (*ends, to_it[0], from_it[1]):
            os.close(end)
        try:
            yield Page(from_it[0], to_it[1])
        finally:
            _end(pid)
            for end in (to_it[1], from_it[0]):
                os.close(end)
