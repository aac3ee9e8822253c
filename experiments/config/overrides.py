"""The one language of settings: dotted overrides (`--tune.steps 100`, `tune.steps=100`) of any frozen dataclass tree.

An unknown key or a wrong value is one line with a suggestion.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar, Union

from experiments.config.escapes import unescape
from experiments.config.old_names import renamed
from rwkv7_jax.terminal import readable

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
T = TypeVar("T")
TRUE, FALSE, NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


class UsageError(ValueError):
    """A wrong key, value, name or file, told in one line: what was wrong, where, what to do.

    Characters from outside that are not printable are escaped in the message, and a long one is cut.
    """

    def __init__(self, message: str):
        super().__init__(readable(message))


def option(
    default: T,
    help: str,
    *,
    positional: bool = False,
    repeat: bool = False,
    required: bool = False,
    escapes: bool = False,
    address: bool = False,
    download: bool = False,
) -> T:
    """A dataclass field with one line of help.

    Args:
      default: value when nothing is given.
      help: one line for `--help`.
      positional: the setting also takes words without a key, in order of definition; a tuple takes all that are left.
      repeat: each occurrence adds one element to the tuple, commas included.
      required: `parse` refuses a config in which the value is still None or empty.
      escapes: `\\n` and the like are understood in what is typed.
      address: an address of HTTP counts as a value.
      download: hf:// and https:// count as values: what is behind them is downloaded.
    """
    tags = {"help": help, "positional": positional, "repeat": repeat, "required": required, "escapes": escapes}
    tags |= {"address": address, "download": download}
    return dataclasses.field(default=default, metadata=tags)


class Leaf(NamedTuple):
    """One setting of a config tree."""

    kind: object
    """Its type, as annotated."""
    value: object
    help: str = ""
    positional: bool = False
    repeat: bool = False
    required: bool = False
    escapes: bool = False
    address: bool = False
    download: bool = False

    @property
    def schemes(self) -> tuple[str, ...]:
        """Kinds of addresses that are values of it."""
        return (("http", "https") if self.address else ()) + (("hf", "https") if self.download else ())


def leaves(config: "DataclassInstance", prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """All settings of a dataclass tree as (dotted key, Leaf), in order of definition."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, tags = getattr(config, field.name), variants(kinds[field.name])
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            yield prefix + field.name, Leaf(kinds[field.name], value, **field.metadata)
            continue
        for key, leaf in leaves(value, f"{prefix}{field.name}."):
            yield key, leaf._replace(kind=Literal[tuple(tags)]) if tags and key.endswith(".kind") else leaf


def variants(kind: object) -> dict[str, type]:
    """The members of a tagged union, dataclasses that tell themselves apart by `kind`; {} for any other type."""
    members = typing.get_args(kind)
    return {member().kind: member for member in members} if all(map(dataclasses.is_dataclass, members)) else {}


def choose_variants(config: C, args: Sequence[str]) -> tuple[C, dict[str, str]]:
    """Switches every tagged union to the member that `--field.kind` names, with its defaults.

    Returns:
      (the config, the keys of the members that are not chosen with what chooses them).
    """
    elsewhere: dict[str, list[str]] = {}
    for name, kind in typing.get_type_hints(type(config)).items():
        tags = variants(kind)
        words = " ".join(args)
        asked = re.findall(rf"(?:^|\s|--){name}\.kind[ =](\S+)", words)
        if tags and asked and asked[-1] in tags and getattr(config, name).kind != asked[-1]:
            config = replace_at(config, name, tags[asked[-1]]())
        for tag, member in tags.items():
            for key, _ in leaves(member(), f"{name}."):
                elsewhere.setdefault(key, []).append(f"--{name}.kind {tag}")
    return config, {key: " or ".join(ways) for key, ways in elsewhere.items()}


def suggest(word: str, known: Sequence[str]) -> str:
    """'; did you mean ...?' for the known words nearest to `word` (last part, initials, spelling), or ''."""
    last = word.rsplit(".", 1)[-1]
    by_last = {name: name.rsplit(".", 1)[-1] for name in known}
    exact = [name for name, part in by_last.items() if last in (part, "".join(w[0] for w in part.split("_") if w))]
    near = difflib.get_close_matches(last, by_last.values(), 2, 0.75)
    alike = [name for name, part in by_last.items() if part in near]
    found = list(dict.fromkeys(exact or difflib.get_close_matches(word, known, 2, 0.7) + alike))[:2]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def parse_value(kind: object, text: str, key: str) -> object:
    """`text` as a value of the type `kind`: int, float, bool, str, Literal, X | None or tuple[X, ...] (by commas).

    Raises:
      UsageError: the text is not such a value.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        plain = [arg for arg in args if arg is not type(None)]
        words = [word for arg in plain if typing.get_origin(arg) is Literal for word in typing.get_args(arg)]
        if text in words:
            return text
        return None if type(None) in args and text.lower() in NONE else parse_value(plain[0], text, key)
    if origin is tuple:
        return tuple(parse_value(args[0], part.strip(), key) for part in text.split(",") if part.strip())
    if origin is dict:
        raise UsageError(f"{key}: tables are set in a config of Python, not as text")
    if origin is Literal:
        if text in args:
            return text
        raise UsageError(f"{key}: {text!r} is not one of {', '.join(args)}{suggest(text, args)}")
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise UsageError(f"{key}: {text!r} is not true or false")
    try:
        value = typing.cast(Callable[[str], object], kind)(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{key}: {text} must be finite")
        return value
    except UsageError:
        raise
    except ValueError:
        name = {int: "a whole number", float: "a number"}.get(typing.cast(type, kind), str(kind))
        raise UsageError(f"{key}: {text!r} is not {name}") from None


def split_arguments(
    args: Sequence[str], known: Mapping[str, Leaf], elsewhere: Mapping[str, str] = types.MappingProxyType({})
) -> Iterator[tuple[str, str]]:
    """Pairs (key, text) from `--key value`, `--key=value`, `key=value`, positional words and, for a bool, `--key`.

    Args:
      args: the words.
      known: the settings by key.
      elsewhere: keys that another choice would make known, and that choice.

    Raises:
      UsageError: a key is unknown or has no value.
    """
    rest = list(args)
    places = [key for key, leaf in known.items() if leaf.positional]
    while rest:
        word = rest.pop(0)
        written = re.fullmatch(r"(?:--)?([\w.-]+)=(.*)", word, re.DOTALL) or re.fullmatch(r"--([\w.-]+)", word)
        key = written[1].replace("-", "_") if written else ""
        if places and not word.startswith("--") and key not in known:
            yield places[0], word
            places = places if known[places[0]].repeat else places[1:]
            continue
        if written is None:
            raise UsageError(f"argument {word!r} is not understood: write --key value or key=value")
        if key not in known:
            raise UsageError(f"unknown key {key!r}{_hint(key, known, elsewhere)}")
        if len(written.groups()) == 2:
            yield key, written[2]
        elif known[key].kind is bool and (not rest or rest[0].lower() not in TRUE + FALSE):
            yield key, "true"
        elif not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
            raise UsageError(f"{key} needs a value: --{key} VALUE")
        else:
            yield key, rest.pop(0)


def _hint(key: str, known: Mapping[str, Leaf], elsewhere: Mapping[str, str]) -> str:
    """What to write instead of an unknown key."""
    if key in elsewhere:
        return f"; it goes with {elsewhere[key]}"
    if new := renamed(key, known):
        return f"; it is now --{new}"
    if inside := next((name for name in known if name.startswith(f"{key}.")), None):
        return f"; it is a group, name a setting such as {inside}"
    if (group := key.rpartition(".")[0]) in known:
        return f"; {group} is one setting, not a group"
    return suggest(key, list(known)) or "; --help lists the keys"


def replace_at(config: C, key: str, value: object) -> C:
    """A copy of the dataclass tree with the setting at the dotted key replaced."""
    head, _, tail = key.partition(".")
    new = replace_at(getattr(config, head), tail, value) if tail else value
    return dataclasses.replace(config, **{head: new})  # pyright: ignore[reportArgumentType]


def apply_overrides(config: C, args: Sequence[str], *, typed: bool = True) -> C:
    """The config with every override applied, the last one winning.

    Args:
      config: the tree.
      args: overrides.
      typed: whether escapes are understood where a setting says so; a file has its own.

    Raises:
      UsageError: unknown key (with a suggestion), missing value or value of the wrong type, in one line.
    """
    config, elsewhere = choose_variants(config, args)
    known, lists = dict(leaves(config)), {}
    for key, text in split_arguments(args, known, elsewhere):
        leaf = known[key]
        text = _unescaped(key, text) if typed and leaf.escapes else text
        if leaf.repeat:
            lists[key] = value = (*lists.get(key, ()), text)
        else:
            value = parse_value(leaf.kind, text, key)
        try:
            config = replace_at(config, key, value)
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from None
    _check_local(config)
    return config


def _check_local(config: "DataclassInstance") -> None:
    """Refuses an address (gs://, https://, ...) where a path is read or written, unless the setting takes such ones."""
    for key, leaf in leaves(config):
        values: tuple[object, ...] = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
        for value in values:
            if leaf.escapes or not isinstance(value, str):
                continue
            found = ADDRESS.match(value)
            if found and found[1].lower() not in leaf.schemes:
                ways = "hf://OWNER/NAME, https://..." if leaf.download else "download the file"
                raise UsageError(
                    f"{key}: {value[:200]!r} is an address; give a local path ({ways}, or mount the bucket as "
                    "docs/pods.md says)"
                )


def _unescaped(key: str, text: str) -> str:
    try:
        return unescape(text)
    except ValueError as error:
        raise UsageError(f"{key}: {error}") from None


def check_required(config: C, usage: str = "") -> C:
    """The same config, if every required setting has a value.

    Raises:
      UsageError: the first one without.
    """
    for key, leaf in leaves(config):
        if leaf.required and leaf.value in (None, "", ()):
            how = usage if leaf.positional and usage else f"--{key} VALUE"
            raise UsageError(f"{key} is missing ({leaf.help}): {how}")
    return config


def take(config: C, args: Sequence[str]) -> tuple[C, list[str]]:
    """Applies the overrides that belong to this tree and leaves the others.

    Returns:
      (the config, the words that it has no setting for).

    Raises:
      UsageError: a missing value or a value of the wrong type.
    """
    known = dict(leaves(config))
    mine: list[str] = []
    rest: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        written = re.match(r"(?:--)?([\w.-]+)(=|$)", word)
        key = written[1].replace("-", "_") if written else ""
        if key not in known or not (word.startswith("--") or "=" in word):
            rest.append(word)
            continue
        mine.append(word)
        if "=" not in word and words and not words[0].startswith("--"):
            mine.append(words.pop(0))
    return apply_overrides(config, mine), rest
