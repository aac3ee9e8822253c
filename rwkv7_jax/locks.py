"""A lock on a folder or a file to write, so that two programs do not write the same thing at once.

The kernel holds it (`flock`, which NFS passes on to its server) and lets it go when the process ends, however it ends;
the lock file beside says whose it is. Where a file system has no `flock`, the lock file alone counts: that of a process
that is gone from this host is taken over, that of another host has to be removed by hand.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

NAME = ".lock"
"""Of the lock file in a folder, and the end of that of a file."""
BUSY = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)
TRIES = 20
"""Lock files that other processes may take away while this one opens them."""


class Locked(BlockingIOError):
    """Another process writes there; one line with its number and host."""


@contextlib.contextmanager
def lock(target: Path, advice: str = "wait until it ends") -> Iterator[None]:
    """Holds a folder, or a file to be written, within `with`; the lock file is removed at its end.

    Args:
      target: the folder, which is there, or the file, whose folder is there.
      advice: what to do if it is held, for the message.

    Raises:
      Locked: another process holds it.
      OSError: the lock file cannot be written.
    """
    path = target / NAME if target.is_dir() else target.with_name(f".{target.name}{NAME}")
    handle = _acquire(path, f"{target} is being written by", advice)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _acquire(path: Path, told: str, advice: str) -> int:
    """Returns the open lock file, which is locked and has the name `path`."""
    for _ in range(TRIES):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _take(handle, path, told, advice)
            if _is(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise Locked(f"{told} other processes, again and again: {advice}")


def _take(handle: int, path: Path, told: str, advice: str) -> None:
    """Takes the lock of an open lock file."""
    owner = _owner(handle)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    except OSError as error:
        if error.errno in BUSY:
            raise Locked(f"{told} {_named(owner)}: {advice}") from None
    if owner and not _gone(owner):
        raise Locked(f"{told} {_named(owner)}: {advice}, or remove {path} if it has ended")


def _is(handle: int, path: Path) -> bool:
    """Whether the open file still has this name; whoever held it before has removed it otherwise."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(handle: int) -> dict[str, object]:
    """What the lock file says; empty if that is nothing."""
    try:
        found = json.loads(os.pread(handle, 1000, 0))
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(owner: dict[str, object]) -> str:
    if not owner:
        return "another process"
    return f"process {str(owner.get('pid'))[:20]} on {str(owner.get('host'))[:100]}"


def _gone(owner: dict[str, object]) -> bool:
    """Whether the process ran on this host and has ended."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
