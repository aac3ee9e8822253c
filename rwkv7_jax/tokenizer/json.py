"""Any `tokenizer.json` of the `tokenizers` library."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Library

from rwkv7_jax.terminal import readable
from rwkv7_jax.tokenizer.protocol import REPLACEMENT, checked_ids

NOT_AT_THE_BEGINNING = {"prepend_scheme": "never", "add_prefix_space": False, "strip_left": False, "start": 0}
"""Settings of a tokenizer.json by which nothing is added or taken away at the beginning of a text."""


class JsonTokenizer:
    """A `tokenizer.json` of the `tokenizers` library; a byte-level one decodes exactly, token by token.

    Truncation and padding that the file asks for are left out: a text is encoded whole and alone.
    The end token is `eos_token`, else what `tokenizer_config.json` beside the file names, else a token of a usual name,
    else 0.

    Args:
      path: the file.
      eos_token: the token that ends a text.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a tokenizer.json, or lacks `eos_token`.
    """

    EOS_NAMES = ("<|endoftext|>", "<|rwkv_tokenizer_end_of_text|>", "</s>", "<eos>", "<|end_of_text|>")

    def __init__(self, path: str | Path, *, eos_token: str | None = None):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such tokenizer file")
        self._path = path
        with _one_line(f"{path}: not a tokenizer.json of the tokenizers library"):
            _check_merges(path)
            self._library = Library.from_file(str(path))
            self._library.no_truncation()
            self._library.no_padding()
            self._inside = _without_prefix(self._library, path)
        self.vocab_size: int = max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_id: int = self._find_eos(path, eos_token)
        self.end_ids: tuple[int, ...] = ()
        """Ids that end a generated text beside `eos_id`."""
        added = self._library.get_added_tokens_decoder()
        self.special_tokens: dict[int, str] = {i: token.content for i, token in added.items() if token.special}
        """Ids that decode to nothing, with the text that spells them."""
        self._pieces = _byte_pieces(self._library)

    def encode(self, text: str) -> list[int]:
        """Encodes a text whole, without special tokens.

        Raises:
          ValueError: the text has lone surrogates.
        """
        return self._ids(self._library, text)

    def encode_after(self, text: str) -> list[int]:
        """Encodes a text that follows another one, without the space that the file may put before a whole text.

        Raises:
          ValueError: the text has lone surrogates.
        """
        return self._ids(self._inside, text)

    def _ids(self, library: Library, text: str) -> list[int]:
        text.encode()
        with _one_line(f"{self._path}: the tokenizers library fails"):
            return library.encode(text, add_special_tokens=False).ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Encodes the text whose UTF-8 the bytes are.

        Raises:
          ValueError: the bytes are not UTF-8.
        """
        return self.encode(data.decode())

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Joins the bytes of the ids; ids without a token decode to nothing if the decoder is not byte-level.

        Raises:
          ValueError: an id is negative.
        """
        ids = checked_ids(ids)
        if self._pieces is None:
            with _one_line(f"{self._path}: the tokenizers library fails"):
                return self._library.decode(ids, skip_special_tokens=True).encode()
        return b"".join([self._pieces.get(i, REPLACEMENT) for i in ids])

    def decode_bytes_after(self, ids: Sequence[int]) -> bytes:
        """Joins the bytes of ids that follow others, of which no space is taken away.

        Raises:
          ValueError: an id is negative.
        """
        if self._pieces is not None:
            return self.decode_bytes(ids)
        ids = checked_ids(ids)
        with _one_line(f"{self._path}: the tokenizers library fails"):
            return self._inside.decode(ids, skip_special_tokens=True).encode()

    def _find_eos(self, path: Path, eos_token: str | None) -> int:
        config = path.with_name("tokenizer_config.json")
        if eos_token is None and config.is_file():
            eos_token = _named_eos(config)
        if eos_token is not None:
            found = self._library.token_to_id(eos_token)
            if found is None:
                raise ValueError(f"{path}: the vocabulary has no token {eos_token!r:.200} to end a text with")
            return found
        candidates = (self._library.token_to_id(name) for name in self.EOS_NAMES)
        return next((i for i in candidates if i is not None), 0)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Makes one ValueError of whatever the library raises: a bare Exception, or a BaseException after a panic."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{what} ({readable(str(error), 200)})") from None


def _check_merges(path: Path) -> None:
    """Checks what the library takes for granted and dies of: each merge continues with the prefix of such tokens.

    Raises:
      ValueError: one does not.
    """
    data = path.read_bytes()
    if not re.search(rb'"continuing_subword_prefix"\s*:\s*"[^"]', data):
        return
    model = json.loads(data)["model"]
    prefix = model["continuing_subword_prefix"]
    for merge in model.get("merges") or ():
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[-1]
        if not second.startswith(prefix):
            raise ValueError(f"the merge {merge!r:.100} does not continue with {prefix!r:.100}")


def _named_eos(path: Path) -> str | None:
    """Returns `eos_token` of a `tokenizer_config.json`, given as text or as an added token."""
    try:
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
        token = token["content"] if isinstance(token, dict) else token
        (token or "").encode()
    except (ValueError, AttributeError, KeyError, RecursionError):
        token = path
    if token is None or isinstance(token, str):
        return token
    raise ValueError(f"{path}: not a tokenizer_config.json that names an eos_token; correct or remove it")


def _byte_pieces(library: Library) -> dict[int, bytes] | None:
    """Returns the bytes of every id of a byte-level tokenizer ({special id: b""}), None for other kinds."""
    decoder = _part(library, "decoder")
    kinds = {part.get("type") for part in [decoder, *decoder.get("decoders", [])]}
    if kinds != {"ByteLevel"}:
        return None
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    added = library.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    pieces = {}
    for token, i in library.get_vocab(with_added_tokens=True).items():
        plain = i in added or not byte_of.keys() >= set(token)
        pieces[i] = b"" if i in special else token.encode() if plain else bytes(byte_of[symbol] for symbol in token)
    return pieces


def _part(library: Library, name: str) -> dict:
    """Returns a part of a tokenizer as the library writes it, with all its settings; {} if there is none."""
    part = getattr(library, name)
    return {} if part is None else json.loads(part.__getstate__())


def _without_prefix(library: Library, path: Path) -> Library:
    """Returns the tokenizer that changes nothing at the beginning of a text; the same one if it never does."""
    members_of = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    parts = {name: _part(library, name) for name in members_of}
    before = json.dumps(parts)
    if parts["normalizer"].get("type") == "Prepend":
        parts["normalizer"] = {}
    for name, members in members_of.items():
        part = parts[name]
        if members in part:
            part[members] = [member for member in part[members] if member["type"] != "Prepend"]
        for member in (part, *part.get(members, ())):
            for key, neutral in NOT_AT_THE_BEGINNING.items():
                if key in member and (key != "start" or member["type"] == "Strip"):
                    member[key] = neutral
    if json.dumps(parts) == before:
        return library
    spec = json.loads(path.read_text(encoding="utf-8"))  # what the library would write may lack or repeat tokens
    changed = Library.from_str(json.dumps(spec | {name: part or None for name, part in parts.items()}))
    changed.no_truncation()
    changed.no_padding()
    return changed


def byte_symbols() -> str:
    """Returns the 256 characters that stand for bytes in byte-level vocabularies (GPT-2's alphabet), in byte order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return "".join(chr(byte if byte in shown else next(hidden)) for byte in range(256))
