"""States after beginnings of prompts, so that what many prompts share is read once.

An entry is known by the initial state's bytes and the tokens after it. Prompts are read in chunks of one length that
are counted from the beginning; entries lie at the ends of chunks and of prompts. From the end of a chunk the rest is
read exactly as without the cache, and the end of a prompt serves the same prompt alone, so that answers are equal bit
for bit. Unless `exact`, the end of a shorter prompt, or of an answer, serves a longer prompt too: fewer tokens are
read, in other chunks, and numbers differ in their last bits.
"""

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from rwkv7_jax.state import State

SHARE = 4
"""Ends of chunks of one prompt take at most this part of the memory: 1 / SHARE."""
REMEMBERED = 1 << 16
"""Keys of chunk ends that were met, with or without a state."""


class Prefix(NamedTuple):
    """What is known after `length` tokens. Without logits, at least one more token must follow."""

    length: int
    state: State
    logits: Float[Array, "vocab"] | None

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.state, self.logits)))


class Keys(NamedTuple):
    """Keys of a text's beginnings."""

    tokens: tuple[int, ...]
    chunks: list[bytes]
    """Of the first i chunks, from none on."""
    chunk: int

    @classmethod
    def of(cls, start: bytes, tokens: Sequence[int], chunk: int) -> "Keys":
        """Computes them; start: `StartKeys.key`."""
        keys, text = [start], tuple(tokens)
        data = np.asarray(text, np.int32)
        for begin in range(0, len(text) - chunk + 1, chunk):
            keys.append(_digest(keys[-1], data[begin : begin + chunk].tobytes()))
        return cls(text, keys, chunk)

    def key(self, length: int) -> bytes:
        """Returns the key of the first `length` tokens."""
        whole, rest = divmod(length, self.chunk)
        base = self.chunks[whole]
        part = np.asarray(self.tokens[length - rest : length], np.int32)
        return _digest(base, part.tobytes()) if rest else base


class PrefixCache:
    """The states, the least recently used of which give way. For one thread.

    Args:
      limit: bytes that they may take.
      chunk: tokens of a chunk.
      exact: see above.
    """

    def __init__(self, limit: int, chunk: int, exact: bool = True):
        self.limit, self.chunk, self.exact = limit, chunk, exact
        self.bytes = 0
        self._entries: OrderedDict[bytes, Prefix] = OrderedDict()
        self._lengths: dict[bytes, list[int]] = {}
        """Of entries within a chunk, by the key of what stands before the chunk."""
        self._bases: dict[bytes, bytes] = {}
        self._met: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Keys, beyond: int = 0) -> Prefix | None:
        """Returns the longest beginning of more than `beyond` tokens whose state is known."""
        total = len(keys.tokens)
        for whole in reversed(range(len(keys.chunks))):
            within = self._lengths.get(keys.chunks[whole], [])
            usable = [n for n in within if n == total or (n < total and not self.exact)]
            for length in [*sorted(usable, reverse=True), whole * self.chunk]:
                if length <= beyond:
                    return None
                key = keys.key(length)
                found = self._entries.get(key)
                if found is not None and (length < total or found.logits is not None):
                    self._entries.move_to_end(key)
                    return found
        return None

    def wanted(self, keys: Keys, length: int, size: int) -> bool:
        """Tells whether to keep the state at the end of a chunk of a prompt.

        All are kept as long as they take a share of the memory; of longer prompts every second one, fourth one, and so
        on, the last one, and those at which two prompts were seen to pass.
        """
        if length % self.chunk or length == 0 or size > self.limit:
            return False
        whole, count = length // self.chunk, len(keys.chunks) - 1
        key = keys.chunks[whole]
        known, met = key in self._entries, key in self._met
        self._met[key] = None
        if len(self._met) > REMEMBERED:
            self._met.popitem(last=False)
        stride = 1
        while count // stride * size * SHARE > self.limit:
            stride *= 2
        return not known and (met or whole == count or whole % stride == 0)

    def put(self, keys: Keys, entry: Prefix) -> None:
        """Keeps what is known after the first `entry.length` tokens."""
        key = keys.key(entry.length)
        before = self._entries.get(key)
        if entry.size > self.limit or (before is not None and before.logits is not None):
            return
        if before is not None:
            self._drop(key)
        self._entries[key] = entry
        self.bytes += entry.size
        if entry.length % self.chunk:
            self._bases[key] = base = keys.chunks[entry.length // self.chunk]
            self._lengths.setdefault(base, []).append(entry.length)
        while self.bytes > self.limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self.bytes -= entry.size
        if (base := self._bases.pop(key, None)) is not None:
            self._lengths[base].remove(entry.length)
            if not self._lengths[base]:
                del self._lengths[base]


class StartKeys:
    """Keys of initial states: a hash of their bytes, so that equal states share what was read after them.

    That of arrays which cannot be changed (`jax.Array`, or NumPy's with `flags.writeable` False) is computed once.
    """

    def __init__(self, kept: int = 1024):
        self._known: OrderedDict[tuple[int, ...], tuple[list[weakref.ref], bytes]] = OrderedDict()
        self._kept, self._lock = kept, threading.Lock()

    def key(self, state: State) -> bytes:
        """Returns the key of an unbatched state."""
        leaves = jax.tree.leaves(state)
        place = tuple(map(id, leaves))
        with self._lock:
            known = self._known.get(place)
        if known is not None and all(ref() is leaf for ref, leaf in zip(known[0], leaves, strict=True)):
            return known[1]
        key = _digest(b"state", *(np.ascontiguousarray(leaf).tobytes() for leaf in leaves))
        if all(isinstance(leaf, jax.Array) or not leaf.flags.writeable for leaf in leaves):
            with self._lock:
                self._known[place] = [weakref.ref(leaf) for leaf in leaves], key
                while len(self._known) > self._kept:
                    self._known.popitem(last=False)
        return key


def _digest(*parts: bytes) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(part)
    return made.digest()
