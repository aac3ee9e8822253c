"""JSON that every reader opens: a number that is not finite becomes null."""

import json
import math
from collections.abc import Callable, Mapping


def json_text(
    value: object,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = True,
    default: Callable[[object], object] | None = None,
) -> str:
    """Returns a value as JSON text; numbers and arrays of numpy and JAX are written as plain ones.

    Args:
      value: what `json.dumps` takes.
      indent: spaces a level; None: one line.
      sort_keys: whether the keys of each object are sorted.
      ensure_ascii: whether other characters are escaped.
      default: gives what stands for a value that JSON does not have.

    Returns:
      The text, without a line end.

    Example:
      >>> json_text({"loss": float("nan"), "step": 3})
      '{"loss": null, "step": 3}'
    """
    plain = _plain(value, default)
    return json.dumps(plain, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii, allow_nan=False)


def _plain(value: object, default: Callable[[object], object] | None) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): _plain(one, default) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, default) for one in value]
    if callable(tolist := getattr(value, "tolist", None)):  # numpy and JAX
        found = tolist()
        return _plain(float(str(found)) if type(found) is type(value) else found, default)
    return value if default is None else _plain(default(value), default)


def _key(key: object) -> object:
    """A key as `json.dumps` takes it."""
    if isinstance(key, str):
        return _whole(key)
    return key if key is None or isinstance(key, bool | int | float) else str(key)


def _whole(text: str) -> str:
    """A text whose halves of surrogate pairs are joined or, alone, replaced by U+FFFD: many readers refuse them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
