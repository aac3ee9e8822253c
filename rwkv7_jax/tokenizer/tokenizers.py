"""Tokenizers: the World vocabulary, plain bytes, and any `tokenizer.json`, behind one small interface."""

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rwkv7_jax.tokenizer.world import WorldTables, find_vocabulary, load_tables

REPLACEMENT = "\ufffd".encode()
WORLD_SIZES = range(65530, 66049)
"""Vocabulary sizes taken for World: ids end at 65529, embeddings have 65536 rows as released, or more as padding."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends a text; `encode` gives it only where a text spells such a token out."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_bytes(self, data: bytes) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are no UTF-8, and ids that a model has beyond `vocab_size`, become U+FFFD."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


class WorldTokenizer:
    """RWKV's World tokenizer: greedy longest match over bytes, exact on any bytes.

    Ids run 1..65529; 0 ends a text and decodes to nothing; ids without a token decode to U+FFFD.
    The vocabulary is read from the installed package `rwkv`, or from `path` (a file in the same format, maybe shorter).
    Raises: FileNotFoundError without the vocabulary, ValueError for a malformed one.
    """

    eos_id = 0

    def __init__(self, path: str | Path | None = None):
        self._tables: WorldTables = load_tables(Path(path) if path is not None else find_vocabulary())
        self.used = max(self._tables.token_of) + 1
        """Ids that text may get are below it; `vocab_size` is that of released models, which have some rows more."""
        self.vocab_size = 65536 if self.used == WORLD_SIZES.start else self.used

    def encode(self, text: str) -> list[int]:
        return self._tables.encode(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        return self._tables.encode(bytes(data))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Raises: ValueError for a negative id."""
        token, ids = self._tables.token_of, _checked(ids)
        return b"".join([token.get(i) or (REPLACEMENT if i else b"") for i in ids])


class ByteTokenizer:
    """One token a byte, 256 ids. Id 0, the NUL byte, which text does not contain, ends a text."""

    vocab_size = 256
    eos_id = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        return list(data)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Raises: ValueError for a negative id."""
        return b"".join([bytes([i]) if i < self.vocab_size else REPLACEMENT for i in _checked(ids)])


class JsonTokenizer:
    """A `tokenizer.json` of the `tokenizers` library; a byte-level one decodes exactly, token by token.

    Truncation and padding that the file asks for are left out: a text is encoded whole and alone.
    eos_id: `eos_token`, else what `tokenizer_config.json` beside the file names, else a token of a usual name, else 0.
    Raises: FileNotFoundError, or ValueError for a file that is no tokenizer.json or lacks `eos_token`.
    """

    EOS_NAMES = ("<|endoftext|>", "<|rwkv_tokenizer_end_of_text|>", "</s>", "<eos>", "<|end_of_text|>")

    def __init__(self, path: str | Path, *, eos_token: str | None = None):
        from tokenizers import Tokenizer as Library

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such tokenizer file")
        try:
            self._library = Library.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from None
        self._library.no_truncation()
        self._library.no_padding()
        self.vocab_size: int = max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_id: int = self._find_eos(path, eos_token)
        self._pieces = _byte_pieces(self._library)

    def encode(self, text: str) -> list[int]:
        """Raises: ValueError for lone surrogates, which are no text."""
        text.encode()
        return self._library.encode(text, add_special_tokens=False).ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Raises: ValueError for bytes that are not UTF-8: such a tokenizer reads text."""
        return self.encode(data.decode())

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Ids without a token decode to nothing if the decoder is not byte-level. Raises: ValueError for an id < 0."""
        ids = _checked(ids)
        if self._pieces is None:
            return self._library.decode(ids, skip_special_tokens=True).encode()
        return b"".join([self._pieces.get(i, REPLACEMENT) for i in ids])

    def _find_eos(self, path: Path, eos_token: str | None) -> int:
        config = path.with_name("tokenizer_config.json")
        if eos_token is None and config.is_file():
            eos_token = _named_eos(config)
        if eos_token is not None:
            found = self._library.token_to_id(eos_token)
            if found is None:
                raise ValueError(f"{path}: the vocabulary has no token {eos_token!r} to end a text with")
            return found
        candidates = (self._library.token_to_id(name) for name in self.EOS_NAMES)
        return next((i for i in candidates if i is not None), 0)


class TextDecoder:
    """Token ids in, text out, piece by piece: a character whose bytes are not all there yet is held back.

    The pieces joined are `tokenizer.decode` of all ids at once (where the tokenizer falls back to bytes: if these are
    UTF-8, since the library spoils a whole run of bytes for one that is not).
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Text that the new ids complete."""
        self._ids += ids
        data = self._tokenizer.decode_bytes(self._ids)
        end = len(data)
        while data.endswith(REPLACEMENT, 0, end):  # each may stand for a byte of a character
            end -= len(REPLACEMENT)
        return self._advance(data, end, final=False)

    def finish(self) -> str:
        """The rest, with U+FFFD for bytes that never became a character."""
        data = self._tokenizer.decode_bytes(self._ids)
        return self._advance(data, len(data), final=True)

    def _advance(self, data: bytes, end: int, *, final: bool) -> str:
        piece = self._utf8.decode(data[self._sent : end], final)
        self._sent = max(self._sent, end)
        return piece


def load_tokenizer(name_or_path: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """By "world", "byte", "auto" (by `vocab_size`), or path: a tokenizer.json, its folder, or a World vocabulary .txt.

    vocab_size: the model's; a tokenizer whose ids do not fit it is refused.
    Raises: ValueError for an unknown name or a misfit, FileNotFoundError for a path that is not there.
    """
    name = str(name_or_path)
    if name == "auto":
        name = _name_for(vocab_size)
    tokenizer = _open(name)
    needed = tokenizer.used if isinstance(tokenizer, WorldTokenizer) else tokenizer.vocab_size
    if vocab_size is not None and needed > vocab_size:
        raise ValueError(f"tokenizer {name!r} uses ids up to {needed - 1}, but the model's vocabulary is {vocab_size}")
    return tokenizer


def _name_for(vocab_size: int | None) -> str:
    if vocab_size == ByteTokenizer.vocab_size:
        return "byte"
    if vocab_size in WORLD_SIZES:
        return "world"
    raise ValueError(
        f'tokenizer "auto" knows vocabularies of 256 (bytes) and 65536 (World), not {vocab_size}: '
        "give the path of the model's tokenizer.json"
    )


def _open(name: str) -> Tokenizer:
    path = Path(name)
    if name == "byte":
        return ByteTokenizer()
    if name == "world" or path.suffix == ".txt":
        return WorldTokenizer(None if name == "world" else path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.exists() and not path.suffix:
        raise ValueError(f'unknown tokenizer {name!r}: use "world", "byte", "auto" or the path of a tokenizer.json')
    return JsonTokenizer(path)


def _checked(ids: Iterable[int]) -> list[int]:
    """The ids as plain numbers. Raises: ValueError for a negative one."""
    ids = [int(i) for i in ids]
    if ids and min(ids) < 0:
        raise ValueError(f"token id {min(ids)}: ids begin at 0")
    return ids


def _named_eos(path: Path) -> str | None:
    """`eos_token` of a `tokenizer_config.json`, as text or as an added token. Raises: ValueError."""
    try:
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
        token = token["content"] if isinstance(token, dict) else token
    except (ValueError, AttributeError, KeyError):
        token = path
    if token is None or isinstance(token, str):
        return token
    raise ValueError(f"{path}: not a tokenizer_config.json that names an eos_token; mend it or take it away")


def _byte_pieces(library) -> dict[int, bytes] | None:
    """Bytes of every id of a byte-level tokenizer ({special id: b""}), or None if it is of another kind."""
    decoder = json.loads(library.to_str()).get("decoder") or {}
    kinds = {part.get("type") for part in [decoder, *decoder.get("decoders", [])]}
    if kinds != {"ByteLevel"}:
        return None
    byte_of = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    added = library.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    pieces = {}
    for token, i in library.get_vocab(with_added_tokens=True).items():
        plain = i in added or not byte_of.keys() >= set(token)
        pieces[i] = b"" if i in special else token.encode() if plain else bytes(byte_of[symbol] for symbol in token)
    return pieces


def _byte_symbols() -> str:
    """The 256 characters that stand for bytes in byte-level vocabularies (GPT-2's alphabet), in byte order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return "".join(chr(byte if byte in shown else next(hidden)) for byte in range(256))
