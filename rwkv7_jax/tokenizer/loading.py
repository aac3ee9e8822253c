"""Tokenizers by name, by vocabulary size or by file."""

from pathlib import Path

from rwkv7_jax.tokenizer.bytes import ByteTokenizer
from rwkv7_jax.tokenizer.ends import read_end_ids
from rwkv7_jax.tokenizer.json import JsonTokenizer
from rwkv7_jax.tokenizer.protocol import Tokenizer
from rwkv7_jax.tokenizer.world import WORLD_SIZES, WorldTokenizer


def load_tokenizer(
    name_or_path: str | Path, vocab_size: int | None = None, checkpoint: str | Path | None = None
) -> Tokenizer:
    """Loads a tokenizer by name or from a file.

    Args:
      name_or_path: "world", "byte", "auto" (by `vocab_size`), or the path of a tokenizer.json, of its folder, or of a
        World vocabulary .txt.
      vocab_size: number of rows of the model's embedding; a tokenizer whose ids exceed it is refused.
      checkpoint: the model's file or folder. A `generation_config.json` there, or beside a tokenizer.json, names
        further tokens that end a generated text.

    Returns:
      The tokenizer.

    Raises:
      ValueError: an unknown name, or a tokenizer that does not fit the model.
      FileNotFoundError: there is no such file.

    Example:
      >>> load_tokenizer("byte").encode("RWKV")
      [82, 87, 75, 86]
    """
    name = str(name_or_path)
    if name == "auto":
        name = _name_for(vocab_size)
    tokenizer = _open(name)
    needed = tokenizer.used if isinstance(tokenizer, WorldTokenizer) else tokenizer.vocab_size
    if vocab_size is not None and needed > vocab_size:
        raise ValueError(f"tokenizer {name!r} uses ids up to {needed - 1}, but the model's vocabulary is {vocab_size}")
    if not isinstance(tokenizer, ByteTokenizer):
        places = (name if isinstance(tokenizer, JsonTokenizer) else None, checkpoint)
        folders = dict.fromkeys(_folder(place) for place in places if place is not None)
        tokenizer.end_ids = tuple(dict.fromkeys(i for folder in folders for i in read_end_ids(folder, tokenizer)))
    return tokenizer


def find_tokenizer(name: str, path: Path) -> str:
    """Returns the tokenizer's name for a checkpoint: "auto" is the tokenizer.json beside it, if there is one."""
    beside = path.parent / "tokenizer.json" if path.is_file() else path / "tokenizer.json"
    return str(beside) if name == "auto" and beside.is_file() else name


def _folder(place: str | Path) -> Path:
    path = Path(place)
    return path if path.is_dir() else path.parent


def _name_for(vocab_size: int | None) -> str:
    if vocab_size == ByteTokenizer.vocab_size:
        return "byte"
    if vocab_size in WORLD_SIZES:
        return "world"
    raise ValueError(
        f'tokenizer "auto" knows vocabularies of 256 (bytes) and 65536 (World), not {vocab_size}: '
        "give the path of the model's tokenizer.json"
    )


def _open(name: str) -> ByteTokenizer | WorldTokenizer | JsonTokenizer:
    path = Path(name)
    if name == "byte":
        return ByteTokenizer()
    if name == "world" or path.suffix == ".txt":
        return WorldTokenizer(None if name == "world" else path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.exists() and not path.suffix:
        raise ValueError(f'unknown tokenizer {name!r}: use "world", "byte", "auto" or the path of a tokenizer.json')
    return JsonTokenizer(path)
