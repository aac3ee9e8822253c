"""Tokens that end a generated text, as `generation_config.json` in a checkpoint's folder names them."""

import json
from pathlib import Path

from rwkv7_jax.tokenizer.abilities import special_tokens
from rwkv7_jax.tokenizer.protocol import Tokenizer

FILE = "generation_config.json"


def read_end_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the `eos_token_id` of the folder's file that are ids of the tokenizer; () without a file.

    A file that was derived from a model's config (`_from_model_config`) repeats defaults of its program: of its ids
    those count that are special tokens.

    Raises:
      ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = table.get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        derived = bool(table.get("_from_model_config"))
    except (OSError, ValueError, AttributeError, RecursionError):
        ids, derived = ["damaged"], False
    whole = [i for i in ids if isinstance(i, int) and not isinstance(i, bool)]
    if len(whole) < len(ids):
        raise ValueError(f"{path}: not a generation_config.json with ids as eos_token_id; correct or remove it")
    special = special_tokens(tokenizer)
    chosen = {i for i in whole if 0 <= i < tokenizer.vocab_size and (i in special or not derived)}
    return tuple(sorted(chosen - {tokenizer.eos_id}))
