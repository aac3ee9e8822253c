"""Moves weights to pages of 2 MiB of memory, in place and in the background (Linux on a CPU).

Decoding reads every weight once a token, and a processor has to look up where each page of 4 KiB lies. The kernel of
the operating system moves memory when it is asked to (`madvise(2)`, MADV_COLLAPSE, Linux 6.1 and later), while others
read it. Addresses and values stay; where that is refused, nothing changes.
"""

import bisect
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PyTree

PAGE = 2**21
LEAST = 2**25
"""Bytes of weights that are worth it: fewer stay in the processor's caches."""
DELAY = 1.0
"""Seconds before the first page, so that a short command is over."""
SHARE = 0.2
"""Of one core's time that the work takes at most."""
GAP = 2**16
"""Bytes between arrays that may belong to the same page."""
AT_ONCE = 16
"""Pages that are moved between two rests."""
REFUSED = 8
"""Refusals one after the other, after which the rest is left."""

_COLLAPSE = 25
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ONE_AT_A_TIME = threading.Lock()


def use(tree: PyTree) -> threading.Thread | None:
    """Begins to move the arrays of a tree.

    Args:
      tree: weights on a CPU; what is on other devices, or no array, is left out.

    Returns:
      The thread that does it, or None where it is not done: on other systems, or for few weights.
    """
    if not available():
        return None
    arrays = [leaf for leaf in jax.tree.leaves(tree) if _on_cpu(leaf)]
    if sum(array.nbytes for array in arrays) < LEAST:
        return None
    thread = threading.Thread(target=_move, args=(arrays,), name="huge pages", daemon=True)
    thread.start()
    return thread


def out_of_files(tree: PyTree) -> PyTree:
    """Returns a tree whose arrays are copied where they lie in a mapped file, whose pages stay small.

    Args:
      tree: arrays; what is on other devices, below one page, or no array stays as it is, and all do where there are no
        such pages.
    """
    if not available():
        return tree
    files = _mapped_files()
    begins = [begin for begin, _ in files]

    def own(leaf: PyTree) -> PyTree:
        if not _on_cpu(leaf) or leaf.nbytes < PAGE:
            return leaf
        address = leaf.unsafe_buffer_pointer()
        place = bisect.bisect_right(begins, address) - 1
        return jnp.array(leaf) if place >= 0 and address < files[place][1] else leaf

    return jax.tree.map(own, tree)


def available() -> bool:
    """Returns whether the system has such pages for programs that ask."""
    try:
        return sys.platform == "linux" and "[never]" not in _SETTING.read_text(encoding="utf-8")
    except OSError:
        return False


def ranges(arrays: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the whole pages in arrays, neighbours joined.

    Args:
      arrays: (address, bytes) of each.

    Returns:
      (first address, address after the last) of runs of pages, ascending.

    Example:
      >>> ranges([(0, 2**20), (2**20, 2**20 + 5), (2**23, 2**20)])
      [(0, 2097152)]
    """
    joined: list[list[int]] = []
    for address, size in sorted(arrays):
        if joined and address - joined[-1][1] <= GAP:
            joined[-1][1] = max(joined[-1][1], address + size)
        else:
            joined.append([address, address + size])
    whole = [(-(-begin // PAGE) * PAGE, end // PAGE * PAGE) for begin, end in joined]
    return [(begin, end) for begin, end in whole if begin < end]


def _on_cpu(leaf: object) -> bool:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return False
    (device, *others) = leaf.devices()
    return device.platform == "cpu" and not others


def _mapped_files() -> list[tuple[int, int]]:
    """Returns (first address, address after the last) of each part of a file in this process's memory, ascending."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    ends = [line[0].split("-") for line in lines if line[4] != "0"]
    return [(int(begin, 16), int(end, 16)) for begin, end in ends]


def _move(arrays: list[jax.Array]) -> None:
    """Memory that is given back meanwhile, or to others, is none the worse for it."""
    time.sleep(DELAY)
    places = ranges((array.unsafe_buffer_pointer(), array.nbytes) for array in arrays if not array.is_deleted())
    arrays.clear()
    madvise, refused = _madvise(), 0
    with _ONE_AT_A_TIME:
        for begin, end in places:
            for first in range(begin, end, AT_ONCE * PAGE):
                started = time.perf_counter()
                failed = madvise(first, min(AT_ONCE * PAGE, end - first), _COLLAPSE)
                refused = refused + 1 if failed else 0
                if refused == REFUSED:
                    return
                time.sleep((time.perf_counter() - started) * (1 / SHARE - 1))


def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
