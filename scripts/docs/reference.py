"""The pages of the reference: each public module from its docstrings, each command from its `--help`."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import re
import textwrap
import types
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

FACES = ("rwkv7_jax", "state_tuning", "pallas_kernels")
"""Packages whose `__all__` is public, and so are the modules that it names."""
WITHOUT_FACE = {
    "rwkv7_jax": ("model", "quantisation"),
    "rwkv7_jax.generation": ("generate", "sampling", "forced", "chat_template"),
    "rwkv7_jax.inference": ("engine", "scoring"),
    "state_tuning": ("objectives",),
}
"""Modules that are public too, although no `__all__` names them."""
SNIPPETS = Path(__file__).parents[2] / "docs" / "reference" / "snippets"
"""Programs that show several names together; the first line of each file, a comment, lists them."""
SECTION = re.compile(r"^(\w+):$", re.MULTILINE)
"""The head of a docstring's section."""
ITEM = re.compile(r"^  ([*\w][*\w, ]*):", re.MULTILINE)
"""What an entry of a section describes: one name or several."""
LATER = re.compile(r"^(Returns|Raises|Examples?):$", re.MULTILINE)
"""The head of the first section that stands below the fields of a class."""
METHODS = (types.FunctionType, property, cached_property, classmethod, staticmethod)
SETTING = re.compile(r"^  (--[\w.-]+|[A-Z][A-Z_.]*)\s+(.*?) ?\[(.*)\]$")


class Public(NamedTuple):
    """A public name of a module."""

    module: str
    name: str
    value: object

    @property
    def path(self) -> str:
        """Its dotted path, as it is imported."""
        return f"{self.module}.{self.name}"

    @property
    def home(self) -> str:
        """Where it is defined; the same for all paths to one function or class."""
        defined = inspect.isclass(self.value) or inspect.isfunction(self.value)
        return f"{self.value.__module__}.{self.value.__qualname__}" if defined else self.path


def modules() -> list[str]:
    """Returns the public modules: the packages, and below each all modules that it names, without repetition."""
    found: dict[str, None] = {}
    homes = set()

    def visit(name: str) -> None:
        module = importlib.import_module(name)
        if module.__name__ in homes:
            return
        homes.add(module.__name__)
        found[name] = None
        for child in [*getattr(module, "__all__", ()), *WITHOUT_FACE.get(name, ())]:
            value = getattr(module, child, None)
            if isinstance(value, types.ModuleType):
                visit(value.__name__)
            elif child in WITHOUT_FACE.get(name, ()):
                visit(f"{name}.{child}")

    for face in FACES:
        visit(face)
    return list(found)


def names(module: str) -> list[Public]:
    """Returns the public names of a module: those of `__all__`, else the functions and classes that it defines."""
    loaded = importlib.import_module(module)
    listed = getattr(loaded, "__all__", None)
    if listed is None:
        listed = [
            name
            for name, value in vars(loaded).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == loaded.__name__ and has_text(value)
        ]
    values = [Public(module, name, getattr(loaded, name)) for name in listed if not name.startswith("_")]
    return [one for one in values if not isinstance(one.value, types.ModuleType)]


def has_text(value: object) -> bool:
    """Returns whether a value is a function or class with a docstring of its own."""
    return (inspect.isclass(value) or callable(value)) and bool(getattr(value, "__doc__", None))


def documented() -> dict[str, list[Public]]:
    """Returns the names that stand on each module's page; a name that several modules have stands on the first."""
    known, found = set(), dict[str, list[Public]]()
    for module in modules():
        own = [one for one in names(module) if one.home not in known]
        known |= {one.home for one in own}
        found[module] = own
    return found


def module_page(module: str, own: list[Public]) -> str:
    """Returns the page of a module as Markdown for mkdocstrings."""
    shown, programs = {one.name for one in own}, dict[str, Public]()
    parts = [f"# {module}", *_of_module(module)]
    for one in own:
        parts.append(f"::: {one.path}\n    options:\n      heading_level: 2")
        if inspect.isclass(one.value):
            parts[-1] += f"\n      members: {_methods(one.value) or 'false'}"
        if snippet := snippet_of(one):
            first = programs.setdefault(snippet, one) if "```" in snippet else one
            parts.append(snippet if first is one else f"**Example**: the program under [`{first.name}`][{first.path}].")
    if below := [name for name in modules() if name.startswith(f"{module}.")]:
        parts += ["## Modules", "\n".join(f"- [`{name}`]({name}.md): {_summary(name)}" for name in below)]
    more = [one for one in names(module) if one.name not in shown]
    if more:
        parts += ["## Also here", "\n".join(f"- [{one.name}][{one.home}]" for one in more)]
    return "\n\n".join(parts) + "\n"


def _methods(kind: type) -> list[str]:
    """The methods and properties that a class defines; fields stand in its docstring, see `with_fields`."""
    own = [name for name, value in vars(kind).items() if isinstance(value, METHODS)]
    return [name for name in own if name == "__call__" or not name.startswith("_")]


def with_fields(text: str, fields: dict[str, str]) -> str:
    """Returns the docstring of a class with what stands under its fields as the section `Attributes`."""
    items = "".join(f"  {name}: {' '.join(what.split())}\n" for name, what in fields.items())
    head, section, rest = text.partition("Attributes:\n")
    if not items or section:
        return f"{head}{section}{items}{rest}"
    later = LATER.search(text)
    end = later.start() if later else len(text)
    return f"{text[:end].rstrip()}\n\nAttributes:\n{items}\n{text[end:]}".rstrip()


@cache
def _snippets() -> dict[str, str]:
    """Text by the path of a name."""
    found = {}
    for file in sorted(SNIPPETS.glob("*.md")):
        head, _, text = file.read_text(encoding="utf-8").partition("\n")
        found |= dict.fromkeys(head.removeprefix("<!--").removesuffix("-->").split(), text.strip())
    return found


def snippet_of(public: Public) -> str:
    """Returns the program that shows a name, if its docstring has no example; "" if there is none."""
    text = inspect.getdoc(public.value) or ""
    found = "" if "Example:" in text else _snippets().get(public.path) or _snippets().get(public.home, "")
    return f"**Example**, with its neighbours:\n\n{found}" if found.startswith("```") else found


def lacking(public: Public) -> list[str]:
    """Returns what is not said of a function or class: its parameters or fields, "Returns", "Example" that runs."""
    value = inspect.unwrap(public.value) if callable(public.value) else None
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return []
    text = inspect.getdoc(value) or ""
    parts = SECTION.split(text)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    items = ITEM.findall(sections.get("Args", "") + sections.get("Attributes", ""))
    described = {name.strip("* ") for item in items for name in item.split(",")}
    if inspect.isclass(value):
        missing = [name for name, has_text in _fields(value).items() if not has_text and name not in described]
    elif "Args, Returns" in text:  # as for another function, which it names
        missing = []
    else:
        signature = inspect.signature(value)
        missing = [name for name in signature.parameters if name not in described]
        if signature.return_annotation not in (None, "None") and not {"Returns", "Yields"} & set(sections):
            missing.append("Returns")
    examples = doctest.DocTestParser().get_examples(sections.get("Example", ""))
    shown = snippet_of(public) or any(not one.options.get(doctest.SKIP) for one in examples)
    return missing if shown else [*missing, "Example"]


def _fields(kind: type) -> dict[str, bool]:
    """What a class is made of: its fields and the parameters of `__init__`, and whether a string under each tells."""
    found: dict[str, bool] = {}
    constructors: list[ast.arguments] = []
    for one in kind.__mro__:
        if one.__module__.partition(".")[0] not in FACES:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for line, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                under = following.value if isinstance(following, ast.Expr) else None
                found.setdefault(line.target.id, isinstance(under, ast.Constant) and isinstance(under.value, str))
            elif isinstance(line, ast.FunctionDef) and line.name == "__init__":
                constructors.append(line.args)
    for given in constructors[:1]:
        found |= {one.arg: False for one in [*given.posonlyargs, *given.args[1:], *given.kwonlyargs]}
    return {name: has_text for name, has_text in found.items() if not name.startswith("_")}


def _of_module(module: str) -> list[str]:
    """The docstring of a module: its indented parts are code already."""
    return [inspect.getdoc(importlib.import_module(module)) or ""]


def _summary(module: str) -> str:
    """The first paragraph of a module's docstring as Markdown."""
    return escaped(" ".join(_of_module(module)[0].partition("\n\n")[0].split()))


def module_file(module: str) -> str:
    """Returns where the page of a module lies in the site."""
    return f"reference/api/{module}.md"


def command_file(command: str) -> str:
    """Returns where the page of a command lies in the site."""
    return f"reference/commands/{command}.md"


def help_of(command: str) -> str:
    """Returns what `rwkv7 COMMAND --help` prints."""
    from experiments.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([command, "--help"]) == 0
    return said.getvalue()


def command_page(command: str, text: str) -> str:
    """Returns the page of a command: its help, with the settings as tables."""
    parts, held = [f"# rwkv7 {command}"], list[str]()

    def flush() -> None:
        if held:
            parts.append("\n".join(["| setting | what it is | default |", "|---|---|---|", *held]))
            held.clear()

    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        if all(line.startswith("    ") for line in lines):
            parts.append("\n".join(["```text", *(line[4:] for line in lines), "```"]))
            continue
        for prose, group in _groups(lines):
            if prose:
                flush()
                parts += _prose(group)
            else:
                held += [_row(line) for line in group]
        flush()
    return "\n\n".join(parts) + "\n"


def _groups(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Runs of lines that are settings, and of others."""
    group: list[str] = []
    for line in lines:
        if group and (SETTING.match(line) is None) != (SETTING.match(group[-1]) is None):
            yield SETTING.match(group[-1]) is None, group
            group = []
        group.append(line)
    if group:
        yield SETTING.match(group[-1]) is None, group


def _prose(lines: list[str]) -> Iterator[str]:
    """Text as paragraphs: a line that ends in a colon heads settings, `name: what it is` begins an item."""
    held: list[str] = []
    for line in lines:
        heading = re.fullmatch(r"((?:with --)?[\w.-]+(?: [\w.-]+)*)(?: \[.*\])?:", line)
        if heading or re.match(r"^[\w-]+: ", line):
            if held:
                yield " ".join(held)
            held = []
        if line.startswith("settings, "):
            how, _, column = line.removeprefix("settings, ").rstrip(":").partition(" [")
            yield "## Settings"
            yield f"Written as {escaped(how)}. In the last column: {escaped(column.rstrip(']'))}."
        elif heading:
            yield f"### {heading[1]}"
        else:
            item = re.match(r"^([\w-]+): (.*)", line)
            held.append(f"**{item[1]}**: {escaped(item[2])}" if item else escaped(line.strip()))
    if held:
        yield " ".join(held)


def _row(line: str) -> str:
    found = SETTING.match(line)
    assert found is not None
    key, what, default = found.groups()
    default = f"`{default}`".replace("|", "\\|") if default else ""
    return f"| `{key}` | {escaped(what)} | {default} |"


def escaped(text: str) -> str:
    """Returns plain text as Markdown that shows it; what stands between backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([\\*_<>|\[\]#])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts)]
    return "".join(part.replace("|", "\\|") if i % 2 else part for i, part in enumerate(plain))


def index_page() -> str:
    """Returns the first page of the reference: all commands and all modules with what they are."""
    from experiments.cli import COMMANDS

    lines = ["# Reference", "", "## Commands", "", "| command | what it does |", "|---|---|"]
    lines += [f"| [`rwkv7 {name}`](commands/{name}.md) | {what} |" for name, what in COMMANDS.items()]
    lines += ["", "## Python", "", "| module | what it is |", "|---|---|"]
    lines += [f"| [`{module}`](api/{module}.md) | {_summary(module)} |" for module in modules()]
    return "\n".join(lines) + "\n"
