"""How a config comes from a name, a file and overrides.

A config is a Python module whose docstring holds the command and the expected result and which defines
`config = RunConfig(...)` or `get_config()`, or a .toml or .json file whose nested tables are dotted keys:

    base = "quickstart"
    [tune]
    steps = 400
"""

import contextlib
import importlib.util
import json
import tomllib
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.config.curves import CurvesConfig
from experiments.config.overrides import Leaf, UsageError, apply_overrides, leaves, suggest, variants
from experiments.config.schema import PretrainConfig, RunConfig
from rwkv7_jax import checksums

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
CONFIG_FOLDER = Path(__file__).parents[1] / "configs"
TABLES = (".toml", ".json")
COMMANDS = {RunConfig: "tune", PretrainConfig: "pretrain", CurvesConfig: "study"}
"""Kind of config -> the command for it."""
FORMS = "a path to a .py, .toml or .json file"


def config_names(*kinds: type) -> list[str]:
    """Names of the configs that ship with the project, of some kinds (RunConfig, ...) or all; none is imported."""
    files = [path for path in CONFIG_FOLDER.glob("*.py") if not path.stem.startswith("_")]
    wanted = [f"{kind.__name__}(" for kind in kinds]
    texts = {path.stem: path.read_text(encoding="utf-8") if kinds else "" for path in files}
    return sorted(name for name, text in texts.items() if not kinds or any(word in text for word in wanted))


def config_path(name: str, *kinds: type) -> Path:
    """The file of a config given by name or path.

    Raises:
      UsageError: there is no such file; the line lists the names.
    """
    with contextlib.suppress(OSError, RuntimeError):  # a name that is too long, a user (~name) who does not exist
        path = CONFIG_FOLDER / f"{name}.py" if name.isidentifier() else Path(name).expanduser()
        if path.is_file() and path.suffix in (".py", *TABLES):
            return path
    names = config_names(*(kinds or (RunConfig,)))
    known = ", ".join([f"configs: {', '.join(names)}", f"or {FORMS}"] if names else [FORMS])
    raise UsageError(f"no config {name!r}{suggest(name, names)} ({known})")


def load_config(name: str, args: Sequence[str] = (), kind: type[C] = RunConfig) -> C:
    """The config called `name` (or in the file `name`), with dotted overrides applied.

    Raises:
      UsageError: no such config, the file defines none of this kind, or an override is wrong; always one line.
    """
    return apply_overrides(_from_file(config_path(name, kind), kind), args)


def kind_of(name: str, kinds: Sequence[type[C]]) -> type[C]:
    """The first of these kinds that the config called `name` is of.

    Raises:
      UsageError: it is of none, in the words for the first kind, or there is no such config.
    """
    config_path(name, *kinds)
    errors = []
    for kind in kinds:
        try:
            load_config(name, (), kind)
            return kind
        except UsageError as error:
            errors.append(error)
    raise errors[0]


def split_config(args: Sequence[str], *kinds: type) -> tuple[str, list[str]]:
    """(config name, the other arguments); the names of configs of these kinds, or of runs, are listed if it is missing.

    Raises:
      UsageError: no --config.
    """
    name, rest = find_config(args)
    if name is not None:
        return name, rest
    names, first = config_names(*(kinds or (RunConfig,))), args[0] if args else ""
    meant = "--config" if suggest(first, ["--config"]) else f"--config {first}" if first in names else ""
    near = f"; did you mean {meant}?" if meant else ""
    raise UsageError(f"say what to run: --config NAME, one of {', '.join(names)}, or a path{near}")


def find_config(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """(config name or None, the other arguments)."""
    for index, word in enumerate(args):
        if word.startswith("--config="):
            return word.removeprefix("--config="), [*args[:index], *args[index + 1 :]]
        if word == "--config" and index + 1 < len(args):
            return args[index + 1], [*args[:index], *args[index + 2 :]]
    return None, list(args)


def parse(default: C, args: Sequence[str]) -> C:
    """The tree of a command whose `--config` may be left out.

    Raises:
      UsageError: in one line, whatever is wrong with the words or the file.
    """
    name, rest = find_config(args)
    return apply_overrides(default, rest) if name is None else load_config(name, rest, type(default))


def help_lines(config: "DataclassInstance") -> list[str]:
    """One line a setting: key, help, value."""
    lines = [_help_line(key, leaf) for key, leaf in leaves(config)]
    for name, kind in typing.get_type_hints(type(config)).items():
        for tag, member in variants(kind).items():
            own = [_help_line(key, leaf) for key, leaf in leaves(member(), f"{name}.") if key != f"{name}.kind"]
            lines += [f"with --{name}.kind {tag}:", *own] if own else []
    return lines


def _help_line(key: str, leaf: Leaf) -> str:
    shown = ",".join(map(str, leaf.value)) if isinstance(leaf.value, tuple) else _text(leaf.value)
    shown = "required" if leaf.required and shown in ("", "none") else shown
    return f"  {key.upper() if leaf.positional else f'--{key}':<30} {leaf.help} [{shown}]"


def _from_python(path: Path, kind: type[C]) -> C:
    spec = importlib.util.spec_from_file_location(f"experiments_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else getattr(module, "config", None)
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, kind):
        raise UsageError(f"{path}: defines no `config = {kind.__name__}(...)`{_meant(config)}")
    return config


def _meant(config: object) -> str:
    """The command that takes a config of another kind."""
    found = [word for kind, word in COMMANDS.items() if isinstance(config, kind)]
    return f"; it is a config of rwkv7 {found[0]}" if found else ""


def _from_file(path: Path, kind: type[C], above: Sequence[Path] = ()) -> C:
    """The config in a file; `above` are the files whose base it is."""
    return _from_table(path, kind, above) if path.suffix in TABLES else _from_python(path, kind)


def _from_base(base: str, path: Path, kind: type[C], above: Sequence[Path]) -> C:
    """The config that the file at `path` starts from."""
    try:
        near = base.startswith("~") or base.isidentifier()
        found = config_path(base if near else str(path.parent / base), kind)
    except UsageError as error:
        raise UsageError(f"{path}: base: {error}") from None
    files = (*above, path.resolve())
    if found.resolve() in files:
        raise UsageError(f"{path}: base: {found} has this file as its own base")
    return _from_file(found, kind, files)


def _from_table(path: Path, kind: type[C], above: Sequence[Path]) -> C:
    """A .toml or .json file; a run.json that an earlier run wrote counts by its `config`."""
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except RecursionError:
        raise UsageError(f"{path}: brackets are nested too deep") from None
    except ValueError as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(table, dict):
        raise UsageError(f"{path}: a table of settings is needed, not {type(table).__name__}")
    if isinstance(table.get("config"), dict) and "identity" in table:
        table = _checked(path, table)["config"]
    base = table.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UsageError(f"{path}: base: the name or path of a config is needed")
    start = _from_base(base, path, kind, above) if base else kind()
    tags = {name: variants(kind) for name, kind in typing.get_type_hints(type(start)).items()}
    others = [pair for name, members in tags.items() for one in members.values() for pair in leaves(one(), f"{name}.")]
    lists = {key for key, leaf in (*leaves(start), *others) if leaf.repeat}
    try:
        return apply_overrides(start, list(_words(table, lists)), typed=False)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _checked(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """What a run.json holds, if it agrees with its checksum."""
    try:
        checksums.check(run)
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}); take the config that the run was started with") from None
    return run


def _words(table: Mapping[str, object], lists: Container[str], prefix: str = "") -> Iterator[str]:
    """The overrides that nested tables stand for; `lists` take one for each element."""
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict):
            yield from _words(value, lists, f"{key}.")
        elif isinstance(value, list) and key in lists:
            yield from (f"{key}={_text(one)}" for one in value)
        else:
            yield f"{key}={','.join(map(_text, value)) if isinstance(value, list) else _text(value)}"


def _text(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
