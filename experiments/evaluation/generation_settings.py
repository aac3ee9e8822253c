"""The generation arguments of lm-evaluation-harness, read as the harness itself reads them (`normalize_gen_kwargs`)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rwkv7_jax.generation.sampling import SamplingParams

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the longest answer, the first that is given goes before the others."""
NEUTRAL = {
    "num_beams": 1, "n": 1, "best_of": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1,
    "min_p": 0, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "min_length": 0, "typical_p": 1,
    "early_stopping": False, "presence_penalty": 0, "frequency_penalty": 0, "use_cache": True, "stream": False,
    "num_beam_groups": 1,
}  # fmt: skip
"""Settings that change nothing at this value, the only one that they may have."""


class Settings(NamedTuple):
    """How texts are generated: up to a stop text, greedily unless `sampling` is given."""

    stops: tuple[str, ...]
    limit: int
    """Tokens of a text at most."""
    sampling: SamplingParams | None
    seed: int = 0


def read_settings(arguments: Mapping[str, Any], limit: int) -> Settings:
    """Reads the arguments of one request; null counts as not given.

    Args:
      arguments: the harness's `generation_kwargs`.
      limit: tokens of a text at most, if they do not say it.

    Raises:
      ValueError: in one line, a setting or a value that we do not have.

    Example:
      >>> read_settings({"until": "end", "max_tokens": 5, "top_p": None}, 256)
      Settings(stops=('end',), limit=5, sampling=None, seed=0)
    """
    rest = {name: value for name, value in arguments.items() if value is not None}
    stops = _stops(rest.pop("until", []))
    given = [rest.pop(name) for name in LIMITS if name in rest]
    limit = int(_number("max_gen_toks", given[0], 1)) if given else limit
    temperature = _number("temperature", rest.pop("temperature", 0), 0)
    sampled = _flag("do_sample", rest.pop("do_sample", temperature > 0)) and temperature > 0
    top_p, top_k = _number("top_p", rest.pop("top_p", 1), 0, 1), int(_number("top_k", rest.pop("top_k", 0), -1))
    seed = int(_number("seed", rest.pop("seed", 0), 0, 2**32 - 1))
    for name, value in rest.items():
        if name not in NEUTRAL:
            known = ", ".join(("until", *LIMITS, "do_sample", "temperature", "top_p", "top_k", "seed"))
            raise ValueError(f"generation setting {name!r} is not known; known are {known}")
        if not (isinstance(value, bool | int | float) and value == NEUTRAL[name]):
            raise ValueError(f"generation setting {name} {value!r}: only {NEUTRAL[name]} is possible here")
    sampling = SamplingParams(temperature=temperature, top_p=top_p, top_k=max(0, top_k), max_new_tokens=limit)
    return Settings(stops, limit, sampling, seed) if sampled else Settings(stops, limit, None)


def _stops(until: object) -> tuple[str, ...]:
    texts = [until] if isinstance(until, str) else until
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"generation setting until {until!r}: a text or a list of texts is wanted")
    return tuple(dict.fromkeys(text for text in texts if text))


def _number(name: str, value: object, low: float, high: float = float("inf")) -> float:
    """The value as a number, `2.0` and `"2"` too."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not low <= number <= high or number == float("inf"):
        bounds = f"from {low:g} to {high:g}" if high < float("inf") else f"of at least {low:g}"
        raise ValueError(f"generation setting {name} {value!r}: a number {bounds} is wanted")
    return number


def _flag(name: str, value: object) -> bool:
    word = str(value).lower()
    if word not in ("true", "false", "1", "0"):
        raise ValueError(f"generation setting {name} {value!r}: true or false is wanted")
    return word in ("true", "1")
