"""RWKV's World vocabulary: reading its file, and greedy longest match over bytes.

Two facts make matching fast in plain Python. No token holds certain pairs of bytes (a letter then a space, say):
between such a pair every encoding has a boundary, so a text falls apart there into independent pieces, and most pieces
are tokens themselves: one dictionary look-up. What is left walks a trie, which is built as far as texts need it.
"""

import ast
import functools
import hashlib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rwkv7_jax.terminal import readable
from rwkv7_jax.tokenizer.protocol import REPLACEMENT, checked_ids

FILE_NAME = "rwkv_vocab_v20230424.txt"
RELEASED_SHA256 = "e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89"
"""Of the released vocabulary with plain line ends."""
WORLD_SIZES = range(65530, 66049)
"""Vocabulary sizes taken for World: ids end at 65529, embeddings have 65536 rows as released, or more as padding."""
MAX_ID = 2**24
MAX_LITERAL = 14
"""Characters of a literal for each byte of its token, quotes and prefix included."""
SHORT = 32
"""Below this many bytes, looking for boundaries costs more than it spares."""

Node = tuple[int | None, dict]
"""A node of the trie: (id of the token that ends here, {next byte: node})."""
Root = tuple[int, int, dict]
"""What starts with two bytes: (id of the longest token within them, its length, {third byte: node})."""
LEAF: dict[int, Node] = {}


def find_vocabulary() -> Path:
    """Returns the vocabulary file of the installed package `rwkv`, which is not imported (that would need torch).

    Raises:
      FileNotFoundError: it is not there.
    """
    spec = importlib.util.find_spec("rwkv")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    raise FileNotFoundError(
        "the World vocabulary is not installed: run `pip install rwkv` (it needs no torch), "
        f"or give the path of a {FILE_NAME}"
    )


class WorldTokenizer:
    """RWKV's World tokenizer: greedy longest match over bytes, exact on any bytes.

    Ids run 1..65529; 0 ends a text and decodes to nothing; ids without a token decode to U+FFFD.

    Args:
      path: a vocabulary in the format of the released file, maybe shorter; None takes that of the installed package
        `rwkv`.

    Raises:
      FileNotFoundError: there is no vocabulary.
      ValueError: the vocabulary is malformed.
    """

    eos_id = 0

    def __init__(self, path: str | Path | None = None):
        self._tables = load_tables(Path(path) if path is not None else find_vocabulary())
        self.used = max(self._tables.token_of) + 1
        """Ids that text may get are below it; `vocab_size` is that of released models, which have some rows more."""
        self.end_ids: tuple[int, ...] = ()
        """Ids that end a generated text beside `eos_id`."""
        self.vocab_size = 65536 if self.used == WORLD_SIZES.start else self.used

    def encode(self, text: str) -> list[int]:
        """Encodes a text by greedy longest match."""
        return self._tables.encode(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        """Encodes any bytes by greedy longest match."""
        return self._tables.encode(bytes(data))

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Joins the bytes of the ids.

        Raises:
          ValueError: an id is negative.
        """
        token, ids = self._tables.token_of, checked_ids(ids)
        return b"".join([token.get(i) or (REPLACEMENT if i else b"") for i in ids])


class WorldTables:
    """Look-up tables of a vocabulary {token bytes: id}, which must hold all 256 single bytes."""

    def __init__(self, ids: dict[bytes, int]):
        self.ids = ids
        self.token_of = {i: token for token, i in ids.items()}
        self._root = Trie(ids)
        self._boundary = _boundaries(ids)

    def encode(self, data: bytes) -> list[int]:
        """Returns ids by greedy longest match from the left."""
        if len(data) < SHORT:
            return self._walk(data)
        codes = np.frombuffer(data, np.uint8).astype(np.uint16)
        cuts = np.flatnonzero(self._boundary[(codes[:-1] << 8) | codes[1:]]) + 1
        out: list[int] = []
        start, whole, append = 0, self.ids.get, out.append
        for end in [*cuts.tolist(), len(data)]:
            piece = data[start:end]
            token = whole(piece)
            if token is None:
                out += self._walk(piece)
            else:
                append(token)
            start = end
        return out

    def _walk(self, data: bytes) -> list[int]:
        """Greedy longest match through the trie: remember the last token passed, step until no edge is left."""
        out: list[int] = []
        append, root, size, at = out.append, self._root, len(data), 0
        while at < size:
            best, length, edges = root[data[at : at + 2]]
            ahead, at = at + 2, at + length
            while edges and ahead < size:
                node = edges.get(data[ahead])
                if node is None:
                    break
                ahead += 1
                token, edges = node
                if token is not None:
                    best, at = token, ahead
            append(best)
        return out


class Trie(dict[bytes, Root]):
    """{first two bytes, at the end of a text one: what starts with them}, built when it is met."""

    def __init__(self, ids: dict[bytes, int]):
        super().__init__()
        self._ids = ids
        self._groups: dict[bytes, list[bytes]] = {}
        for token in ids:
            self._groups.setdefault(token[:2], []).append(token)

    def __missing__(self, head: bytes) -> Root:
        tokens = self._groups.get(head, ()) if len(head) == 2 else ()
        inner = {token[:end] for token in tokens for end in range(2, len(token))}
        edges: dict[bytes, dict[int, Node]] = {prefix: {} for prefix in inner}
        for prefix in inner.union(tokens):
            if len(prefix) > 2:
                edges[prefix[:-1]][prefix[-1]] = (self._ids.get(prefix), edges.get(prefix, LEAF))
        length = len(head) if head in self._ids else 1
        self[head] = node = (self._ids[head[:length]], length, edges.get(head, LEAF))
        return node


@functools.cache
def load_tables(path: Path) -> WorldTables:
    """Reads a vocabulary file once a process; warns of one that is the released one but for some tokens.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is malformed, which the message names, or a file of the released name has another content.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such World vocabulary file")
    data = path.read_bytes()
    ids = parse_vocabulary(data, str(path))
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} single bytes have no token (first: {missing[0]}), so not every text fits"
        )
    if hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest() != RELEASED_SHA256:
        _check_copy(path, ids)
    return WorldTables(ids)


def _check_copy(path: Path, ids: dict[bytes, int]) -> None:
    """Tells a vocabulary of its own from a damaged copy of the released one.

    Raises:
      ValueError: the file has the released name.
    """
    if path.name == FILE_NAME:
        raise ValueError(
            f"{path}: differs from the released World vocabulary: damaged; install `rwkv` again, or copy it"
        )
    try:
        released = parse_vocabulary(find_vocabulary().read_bytes())
    except (FileNotFoundError, ValueError):
        return
    changed = [number for token, number in released.items() if ids.get(token) != number]
    if len(changed) < len(released) // 2:
        first = f" (first: id {min(changed)})" if changed else ""
        warnings.warn(
            f"{path}: of the released World vocabulary {len(changed)} tokens are missing or have other ids{first}, "
            f"{max(0, len(ids) - len(released))} are new: damaged, unless it was changed on purpose",
            stacklevel=4,
        )


def parse_vocabulary(data: bytes, source: str = "vocabulary") -> dict[bytes, int]:
    """Parses lines `ID LITERAL LENGTH` to {token bytes: id}; nothing in the file is executed.

    LITERAL is a Python str or bytes literal, LENGTH is in bytes.

    Raises:
      ValueError: a line is malformed; the message has the number of the first.
    """
    ids: dict[bytes, int] = {}
    try:
        lines = data.decode().splitlines() if b"\r\n" not in data else data.decode().split("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not a World vocabulary (byte {error.start} is not UTF-8)") from None
    for number, line in enumerate(lines, 1):
        if line:
            token, token_id = _parse_line(line, f"{source} line {number}")
            if ids.setdefault(token, token_id) != token_id:
                raise ValueError(f"{source} line {number}: the token has the id {ids[token]} already")
    if len(set(ids.values())) != len(ids):
        raise ValueError(f"{source}: two tokens have the same id")
    return ids


def _parse_line(line: str, where: str) -> tuple[bytes, int]:
    try:
        token_id, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        size = int(length)
        if len(literal) > MAX_LITERAL * max(size, 1):
            raise ValueError(f"a literal of {len(literal)} characters")
        plain = (
            "\\" not in literal and literal[0] in "'\"" and literal.count(literal[0]) == 2 and literal[-1] == literal[0]
        )
        value = literal[1:-1] if plain else ast.literal_eval(literal)
        token = value.encode() if isinstance(value, str) else value
        if not isinstance(token, bytes):
            raise ValueError(f"the literal is of type {type(token).__name__}")
        if not token or len(token) != size:
            raise ValueError(f"token of {len(token)} bytes, {length} announced")
        if not 0 < (number := int(token_id)) < MAX_ID:
            raise ValueError(f"id {number}; ids run from 1")
        return token, number
    except (ValueError, SyntaxError, IndexError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{where}: not `ID LITERAL LENGTH` ({readable(str(error), 200)})") from None


def _boundaries(ids: dict[bytes, int]) -> np.ndarray:
    """bool [65536]: True at `first << 8 | second` if no token holds the two bytes side by side."""
    pairs = {token[i : i + 2] for token in ids for i in range(len(token) - 1)}
    boundary = np.ones(1 << 16, bool)
    boundary[[first << 8 | second for first, second in pairs]] = False
    return boundary
