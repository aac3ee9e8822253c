"""Reads damaged files in forked processes that are watched: no crash, no hang, no code, bounded memory, one line.

What a library of compiled Rust writes on stderr when it panics is let pass, if the error is one line of ours.

A worker process writes the number of the file it is at into shared memory before it reads it. A file that takes more
than `SECONDS` of CPU time ends its worker by SIGPROF, also inside of a library; the next worker goes on behind it.
"""

import gc
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.malformed.mutate import Mutator, damaged

SECONDS = 2.0
MEMORY = 2**30
LONGEST = 1600
"""Characters of a message, the folder's path apart."""
STUCK = 20_000
"""How often a worker is looked at, asleep at the same file each time, before it is ended."""
BOARD = struct.Struct("<q")
CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen",
    "pickle.find_class", "socket.connect", "socket.bind", "webbrowser.open", "code.__new__", "builtins.input",
    "os.kill", "pty.spawn")  # fmt: skip
CHANGES = (
    "os.remove",
    "os.rename",
    "os.truncate",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
)
CAUSES = {signal.SIGPROF: f"over {SECONDS:g} s of CPU", signal.SIGKILL: "stuck or killed"}


class Reader(NamedTuple):
    """What reads files, and sound files of it."""

    name: str
    read: Callable[[Path], object]
    """Reads the files in a folder, as its users do, and returns a value."""
    files: Mapping[str, bytes]
    targets: Mapping[str, Sequence[Mutator]]
    """Which of the files are damaged, and how."""
    sealed: frozenset[str] = frozenset()
    """Kinds of damage after which the value is the sound file's, or `allowed`, or the file is refused."""
    others: Sequence[bytes] = ()
    """Other files, to splice with."""
    check: Callable[[object], None] = lambda value: None
    """Raises AssertionError for a value that no file may have."""
    allowed: Callable[[object, object], bool] = lambda value, sound: False
    """Tells whether a value other than the sound one may come of damage that is `sealed`, by the sound value."""
    warns: bool = False
    """Whether it prints warnings, of one line each with the path."""


class Share(NamedTuple):
    """What one worker does: the damaged files `first` to `last` of a reader."""

    reader: Reader
    seed: int
    first: int
    last: int


class Found(NamedTuple):
    """The result of one worker."""

    files: int
    refused: int
    same: int
    seconds: float
    """CPU time of the reader."""
    slowest: float
    memory: int
    """Most bytes that one file took."""


def bytes_of(name: str, write: Callable[[Path], object], *, forked: bool = False) -> bytes:
    """Returns what `write` writes into a file of this name; `forked`: in another process, for it starts threads."""
    with tempfile.TemporaryDirectory() as folder:
        if not forked:
            write(Path(folder) / name)
        elif pid := os.fork():
            os.waitpid(pid, 0)
        else:
            try:
                write(Path(folder) / name)
            finally:
                os._exit(0)
        return (Path(folder) / name).read_bytes()


def same_bytes(value: object) -> str:
    """Returns a text that is the same for the same value, arrays by their bytes."""
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{key!r}:{same_bytes(part)}" for key, part in value.items())) + "}"
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(same_bytes, value)) + "]"
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return f"{array.dtype}{array.shape}{array.tobytes().hex()}"
    return repr(value)


def make(share: Share, index: int) -> tuple[dict[str, bytes], str]:
    """Returns the damaged file number `index` by name, and what was done to it."""
    rng = random.Random(f"{share.seed} {share.reader.name} {index}")
    name = rng.choice(list(share.reader.targets))
    data, done = damaged(rng, share.reader.files[name], share.reader.targets[name], share.reader.others)
    return {name: data}, done


class Watch:
    """Audits what the process does while a file is read: `seen` are calls that no reader makes."""

    def __init__(self, folder: Path):
        self.folder, self.active, self.seen, self.warned = str(folder), False, list[str](), list[str]()
        sys.addaudithook(self._hook)
        warnings.simplefilter("always")
        warnings.showwarning = self._warning

    def _hook(self, event: str, args: tuple) -> None:
        if not self.active:
            return
        if event.startswith(CODE) or (event == "exec" and getattr(args[0], "co_filename", "<")[:1] == "<"):
            if not (event == "exec" and args[0].co_filename.startswith("<frozen")):
                self.seen.append(f"{event} {str(args)[:200]}")
        elif event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR):
            if isinstance(args[0], str | bytes | os.PathLike) and not os.fsdecode(args[0]).startswith(self.folder):
                self.seen.append(f"{event} {str(args)[:200]}")
        elif event in CHANGES and isinstance(args[0], str) and not args[0].startswith(self.folder):
            self.seen.append(f"{event} {str(args)[:200]}")

    def _warning(self, message: Warning | str, category: type[Warning], *_: object) -> None:
        if not issubclass(category, DeprecationWarning | SyntaxWarning):
            self.warned.append(str(message))


def message_fault(text: str, folder: Path, *, path: bool = True) -> str | None:
    """Returns what is wrong with the message of an error."""
    if not text.isprintable():
        return "not one printable line"
    if len(text) > LONGEST + 2 * len(str(folder)):
        return f"{len(text)} characters"
    return "without the path" if path and str(folder) not in text else None


def _fault(
    reader: Reader, call: Callable[[], object], done: str, sound: object, sound_bytes: str, folder: Path
) -> tuple[str | None, str]:
    """Reads once; returns (what is wrong, "refused", "same" or "other")."""
    try:
        value = call()
    except ValueError as error:
        whole: BaseException | None = error
        while whole is not None:
            if isinstance(whole, MemoryError):
                return f"memory: {error}", "refused"
            whole = whole.__cause__ or whole.__context__
        wrong = message_fault(str(error), folder)
        return wrong and f"message {wrong}: {type(error).__name__}: {str(error)[:300]!a} {_where(error)}", "refused"
    except BaseException as error:
        return f"raises {type(error).__name__}: {str(error)[:300]!a} {_where(error)}", "refused"
    try:
        same = same_bytes(value) == sound_bytes
        if not same and set(done.split("+")) <= reader.sealed and not reader.allowed(value, sound):
            return "another value than the sound file's", "other"
        reader.check(value)
    except AssertionError as error:
        return f"value: {error!s:.300} {_where(error)}", "other"
    return None, "same" if same else "other"


def _printed_fault(reader: Reader, text: str, folder: Path) -> str | None:
    if " panicked at " in text:
        return None
    sound = reader.warns and all(not message_fault(line, folder) for line in text.splitlines())
    return None if sound else f"prints {text!r:.300}"


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/malformed/" not in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))


def work(share: Share, folder: Path, board: mmap.mmap, faults: Path) -> Found:
    """Reads the files of a share; to be called in a process of its own, whose limits it sets."""
    reader, page = share.reader, os.sysconf("SC_PAGE_SIZE")
    for name, data in reader.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    printed = os.open(folder.parent / f"{folder.name}.out", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sound = reader.read(folder)
    for name, data in reader.files.items():
        assert (folder / name).read_bytes() == data, f"{name} is changed by reading it"
    assert sound, "nothing is read of a sound file"
    sound_bytes = same_bytes(sound)
    assert same_bytes(reader.read(folder)) == sound_bytes, "a sound file gives two values"
    _limit_memory()
    watch, log, statm = Watch(folder), faults.open("a"), os.open("/proc/self/statm", os.O_RDONLY)
    counts, total, slowest, memory, size = {"refused": 0, "same": 0, "other": 0}, 0.0, 0.0, 0, os.fstat(printed).st_size
    for index in range(share.first, share.last):
        files, done = make(share, index)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        watch.seen.clear(), watch.warned.clear()
        BOARD.pack_into(board, 0, index)
        before, peak = int(os.pread(statm, 64, 0).split()[1]) * page, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        start, watch.active = time.process_time(), True
        wrong, kind = _fault(reader, lambda: reader.read(folder), done, sound, sound_bytes, folder)
        watch.active, seconds = False, time.process_time() - start
        signal.setitimer(signal.ITIMER_PROF, 0)
        counts[kind] += 1
        total, slowest, highest = (
            total + seconds,
            max(slowest, seconds),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        )
        if highest > peak:
            memory = max(memory, highest * 1024 - before)
        if watch.seen:
            wrong = f"calls {watch.seen[0]}"
        elif bad := next((text for text in watch.warned if message_fault(text, folder, path=False)), None):
            wrong = f"warns {bad[:300]!a}"
        elif os.fstat(printed).st_size != size:
            text = os.pread(printed, 10_000, size)
            wrong = wrong or _printed_fault(reader, text.decode(errors="replace"), folder)
            size = os.fstat(printed).st_size
        if wrong or memory > MEMORY:
            log.write(
                json.dumps({"reader": reader.name, "index": index, "done": done, "wrong": wrong or "over 1 GB"}) + "\n"
            )
            log.flush()
            if memory > MEMORY:
                os._exit(3)
        for name in files:
            if reader.files.get(name) is not None and len(reader.targets) > 1:
                (folder / name).write_bytes(reader.files[name])
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if left := found - set(reader.files):
        row = {"reader": reader.name, "index": share.last - 1, "done": "", "wrong": f"leaves {sorted(left)[:3]}"}
        log.write(json.dumps(row) + "\n")
    return Found(share.last - share.first, counts["refused"], counts["same"], total, slowest, memory)


def _limit_memory() -> None:
    with open("/proc/self/status") as file:
        data = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, data + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Worker:
    """A forked process at a share; when it dies, the fault is written down and the rest is another share."""

    def __init__(self, share: Share, scratch: Path, number: int):
        self.share, self.faults = share, scratch / "faults.jsonl"
        self.folder, self.board = scratch / f"{number:06d}", mmap.mmap(-1, BOARD.size)
        self.folder.mkdir()
        BOARD.pack_into(self.board, 0, share.first - 1)
        self.seen = (0, 0)
        self.result = scratch / f"{number:06d}.json"
        self.pid = os.fork()
        if not self.pid:
            self._child()

    def _child(self) -> None:
        status = 1
        try:
            os.chdir(self.folder)
            found = work(self.share, self.folder, self.board, self.faults)
            self.result.write_text(json.dumps(found))
            status = 0
        except BaseException:
            self.result.with_suffix(".error").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def poll(self) -> tuple[bool, Found | None, Share | None]:
        """Returns (whether it has ended, what it found, what is left to do)."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        (at,) = BOARD.unpack_from(self.board)
        if not pid:
            asleep = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"
            self.seen = (at, self.seen[1] + 1 if asleep and at == self.seen[0] else 0)
            if self.seen[1] > STUCK:
                os.kill(self.pid, signal.SIGKILL)
            return False, None, None
        if os.waitstatus_to_exitcode(status) == 0:
            return True, Found(*json.loads(self.result.read_text())), None
        error = self.result.with_suffix(".error")
        if error.exists():
            raise RuntimeError(f"{self.share.reader.name}, file {at}: the worker itself failed\n{error.read_text()}")
        code = os.waitstatus_to_exitcode(status)
        if code != 3:
            done = make(self.share, at)[1]
            wrong = CAUSES.get(-code, f"ends the process: {signal.Signals(-code).name if code < 0 else code}")
            with self.faults.open("a") as log:
                log.write(
                    json.dumps({"reader": self.share.reader.name, "index": at, "done": done, "wrong": wrong}) + "\n"
                )
        found = Found(at + 1 - self.share.first, 0, 0, 0.0, 0.0, 0)
        left = self.share._replace(first=at + 1)
        return True, found, left if left.first < left.last else None


def run(shares: list[Share], scratch: Path, processes: int, seconds: float) -> dict[str, list[Found]]:
    """Works on shares, begun within so many seconds, with so many processes; faults are in `scratch/faults.jsonl`."""
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads is not forked"
    waiting, busy, found, number = list(reversed(shares)), list[Worker](), dict[str, list[Found]](), 0
    begin = time.monotonic()
    gc.collect()
    gc.freeze()  # what is imported is not looked through again in every worker
    while waiting or busy:
        if time.monotonic() - begin > seconds:
            waiting.clear()
        while waiting and len(busy) < processes:
            busy.append(Worker(waiting.pop(), scratch, number))
            number += 1
        for worker in list(busy):
            ended, result, left = worker.poll()
            if not ended:
                continue
            busy.remove(worker)
            if result:
                found.setdefault(worker.share.reader.name, []).append(result)
            if left:
                waiting.append(left)
        time.sleep(0.005)
    return found
