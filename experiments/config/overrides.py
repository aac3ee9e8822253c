"""Dotted command-line overrides (`--tune.steps 100`, `tune.steps=100`) of any tree of frozen dataclasses.

Not tyro: an unknown key or a wrong value must give one line with a suggestion.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

C = TypeVar("C")
TRUE, FALSE, NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")


class UsageError(ValueError):
    """A wrong key, value, name or file, told in one line: what was wrong, where, what to do."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with one line of help for `--help`."""
    return dataclasses.field(default=default, metadata={"help": help})


class Leaf(typing.NamedTuple):
    """One setting of a config tree: its type, present value and line of help."""

    kind: Any
    value: Any
    help: str


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """All settings of a dataclass tree as (dotted key, Leaf), in order of definition."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, tags = getattr(config, field.name), variants(kinds[field.name])
        for key, leaf in leaves(value, f"{prefix}{field.name}.") if dataclasses.is_dataclass(value) else ():
            yield key, leaf._replace(kind=Literal[tuple(tags)]) if tags and key.endswith(".kind") else leaf
        if dataclasses.is_dataclass(value):
            continue
        else:
            yield prefix + field.name, Leaf(kinds[field.name], value, field.metadata.get("help", ""))


def variants(kind: Any) -> dict[str, type]:
    """The members of a tagged union, dataclasses that tell themselves apart by `kind`; {} for any other type."""
    members = typing.get_args(kind)
    return {member().kind: member for member in members} if all(map(dataclasses.is_dataclass, members)) else {}


def choose_variants(config: C, args: Sequence[str]) -> tuple[C, dict[str, str]]:
    """(The config with every tagged union switched to the member that `--field.kind` names, with its defaults;
    the keys of the members that are not chosen, with what chooses them)."""
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


def parse_value(kind: Any, text: str, key: str) -> Any:
    """`text` as a value of the type `kind`: int, float, bool, str, Literal, X | None or tuple[X, ...] (by commas).

    Raises:
      UsageError: the text is no such value.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if text.lower() in NONE else parse_value(inner, text, key)
    if origin is tuple:
        return tuple(parse_value(args[0], part.strip(), key) for part in text.split(",") if part.strip())
    if origin is Literal:
        if text in args:
            return text
        raise UsageError(f"{key}: {text!r} is not one of {', '.join(args)}{suggest(text, args)}")
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise UsageError(f"{key}: {text!r} is not true or false")
    try:
        return kind(text)
    except ValueError:
        name = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise UsageError(f"{key}: {text!r} is not {name}") from None


def split_arguments(
    args: Sequence[str], known: Mapping[str, Leaf], elsewhere: Mapping[str, str] = types.MappingProxyType({})
) -> Iterator[tuple[str, str]]:
    """Pairs (key, text) from `--key value`, `--key=value`, `key=value` and, for a bool, `--key` alone.

    elsewhere: keys that another choice would make known, and that choice.

    Raises:
      UsageError: a key is unknown or has no value.
    """
    rest = list(args)
    while rest:
        word = rest.pop(0)
        written = re.fullmatch(r"(?:--)?([\w.-]+)=(.*)", word, re.DOTALL) or re.fullmatch(r"--([\w.-]+)", word)
        if written is None:
            raise UsageError(f"argument {word!r} is not understood: write --key value or key=value")
        key = written[1].replace("-", "_")
        if key not in known and key in elsewhere:
            raise UsageError(f"unknown key {key!r}; it goes with {elsewhere[key]}")
        if key not in known:
            inside = next((name for name in known if name.startswith(f"{key}.")), None)
            hint = f"; it is a group, name a setting such as {inside}" if inside else suggest(key, list(known))
            raise UsageError(f"unknown key {key!r}{hint or '; --help lists the keys'}")
        if len(written.groups()) == 2:
            yield key, written[2]
        elif known[key].kind is bool and (not rest or rest[0].lower() not in TRUE + FALSE):
            yield key, "true"
        elif not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
            raise UsageError(f"{key} needs a value: --{key} VALUE")
        else:
            yield key, rest.pop(0)


def replace_at(config: C, key: str, value: Any) -> C:
    """A copy of the dataclass tree with the setting at the dotted key replaced."""
    head, _, tail = key.partition(".")
    new = replace_at(getattr(config, head), tail, value) if tail else value
    return dataclasses.replace(config, **{head: new})  # pyright: ignore[reportArgumentType, reportCallIssue]


def apply_overrides(config: C, args: Sequence[str]) -> C:
    """The config with every override applied, the last one winning.

    Raises:
      UsageError: unknown key (with a suggestion), missing value or value of the wrong type, in one line.
    """
    config, elsewhere = choose_variants(config, args)
    known = dict(leaves(config))
    for key, text in split_arguments(args, known, elsewhere):
        value = parse_value(known[key].kind, text, key)
        try:
            config = replace_at(config, key, value)
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from None
    return config
