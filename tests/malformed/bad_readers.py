"""Readers with faults, each of which the sandbox has to see."""

import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.malformed.mutate import append
from tests.malformed.sandbox import Reader

SOUND = b"sound"


def _reader(name: str, bad: Callable[[Path], object]) -> Reader:
    def read(folder: Path) -> object:
        return "sound" if (folder / "f").read_bytes() == SOUND else bad(folder)

    return Reader(name, read, {"f": SOUND}, {"f": (append,)}, frozenset(("append",)))


def _error(message: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        raise ValueError(message.replace("FOLDER", str(folder)))

    return read


def _memory(folder: Path) -> object:
    try:
        return bytearray(2**31)
    except MemoryError as error:
        raise ValueError(f"{folder}: damaged") from error


def _endless(folder: Path) -> object:
    while True:
        pass


def readers() -> Iterator[Reader]:
    """One for each kind of fault; the name is what the sandbox says of it."""
    yield _reader("raises KeyError", lambda folder: {}["key"])
    yield _reader("without the path", _error("damaged"))
    yield _reader("not one printable line", _error("FOLDER: \x1b[31m"))
    yield _reader("characters", _error("FOLDER: " + "x" * 5000))
    yield _reader("another value", lambda folder: "other")
    yield _reader("over 2 s of CPU", _endless)
    yield _reader("memory", _memory)
    yield _reader("SIGABRT", lambda folder: os.abort())
    yield _reader("ends the process", lambda folder: os._exit(7))
    yield _reader("calls os.system", lambda folder: [os.system("true"), "sound"][1])
    yield _reader("calls subprocess.Popen", lambda folder: [subprocess.run(["true"]), "sound"][1])
    yield _reader("calls exec", lambda folder: [exec("1"), "sound"][1])
    yield _reader("calls open", lambda folder: [open(os.devnull, "w").close(), "sound"][1])
    yield _reader("prints", lambda folder: [os.write(1, b"x"), "sound"][1])
    yield _reader("warns", lambda folder: [warnings.warn("\u202e", stacklevel=1), "sound"][1])
    yield _reader("leaves ['owned']", lambda folder: [(folder / "owned").touch(), "sound"][1])
