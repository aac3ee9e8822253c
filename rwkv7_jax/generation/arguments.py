"""What a caller gives for a generation, checked: each mistake is one line that names the argument."""

import dataclasses
import operator
from collections.abc import Iterable, Mapping

import jax
from jaxtyping import Array, Key

from rwkv7_jax.generation.sampling import SamplingParams

SEEDS = 2**32
"""Different seeds; larger numbers would repeat them."""


def sampling_params(settings: Mapping[str, object]) -> SamplingParams:
    """Returns the settings with these names.

    Raises:
      ValueError: an unknown name, or a value out of its range.
    """
    known = {field.name for field in dataclasses.fields(SamplingParams)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"unknown sampling setting {unknown[0]!r}: choose among {', '.join(sorted(known))}")
    return SamplingParams(**settings)  # pyright: ignore[reportArgumentType]


def seed_number(seed: object) -> int:
    """Returns a seed as a plain number.

    Raises:
      ValueError: it is not a whole number from 0 to 2^32 - 1.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = -1
    if not 0 <= number < SEEDS:
        raise ValueError(f"seed must be a whole number in 0..{SEEDS - 1}, got {seed!r:.60}")
    return number


def random_key(seed: object) -> Key[Array, ""]:
    """Returns the key of a seed.

    Raises:
      ValueError: it is not a whole number from 0 to 2^32 - 1.
    """
    return jax.random.key(seed_number(seed))


def text_list(name: str, value: object) -> list[str]:
    """Returns a text, or texts, as a list; None is none.

    Raises:
      ValueError: something else, or half characters.
    """
    many = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    texts: list[str] = []
    for text in [] if value is None else many:
        if not isinstance(text, str):
            raise ValueError(f"{name}: a text or a list of texts is wanted, not {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: {text!r:.60} has half characters (surrogates)") from None
        texts.append(text)
    return texts


def token_ids(name: str, ids: object, vocab_size: int) -> list[int]:
    """Returns token ids as a list.

    Raises:
      ValueError: there is none, or one that is not a whole number in the vocabulary.
    """
    try:
        found = list(ids)  # pyright: ignore[reportArgumentType]
        tokens = [operator.index(token) for token in found if not isinstance(token, bool)]
    except TypeError:
        raise ValueError(f"{name}: a text or a list of token ids is wanted, not {ids!r:.60}") from None
    if len(tokens) < len(found):
        raise ValueError(f"{name}: a text or a list of token ids is wanted, not {ids!r:.60}")
    if not tokens:
        raise ValueError(f"{name}: the text has no token; give at least one")
    if wrong := [token for token in tokens if not 0 <= token < vocab_size]:
        raise ValueError(f"{name}: token {wrong[0]} is outside the vocabulary of {vocab_size}")
    return tokens
