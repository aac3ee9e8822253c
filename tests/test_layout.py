"""The order of packages and modules: one chain, no circles, public names documented."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CHAIN = ("pallas_kernels", "rwkv7_jax", "state_tuning", "experiments")
FACES = ("pallas_kernels", "rwkv7_jax", "state_tuning")


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, ast.Module]:
    paths = [path for package in CHAIN for path in (ROOT / package).rglob("*.py")]
    return {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported(tree: ast.Module, known: set[str]) -> set[str]:
    """The project's modules that a module imports, inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
    return found & known


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    trees = sources()
    return {name: imported(tree, set(trees)) - {name} for name, tree in trees.items()}


def test_no_module_imports_a_package_right_of_its_own(graph):
    order = {name: place for place, name in enumerate(CHAIN)}
    upward = [
        f"{name} -> {other}"
        for name, others in graph.items()
        for other in others
        if order[other.split(".")[0]] > order[name.split(".")[0]]
    ]
    assert upward == []


def test_no_import_circles(graph):
    faces = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    inner = {
        name: {other for other in others if not (name in faces and other.startswith(f"{name}."))}
        for name, others in graph.items()
    }
    graphlib.TopologicalSorter(inner).prepare()


def test_tests_mirror_the_packages():
    """A folder of tests belongs to a folder of the product, and no module of the product looks like a test."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert [str(folder) for folder in folders if not (ROOT / folder).is_dir()] == []
    assert [name for name in sources() if name.rpartition(".")[2].startswith("test_") and "test_time" not in name] == []


def leaves_the_encoding_open(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of the locale."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if None in named or "encoding" in named:
        return False
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return method and len(call.args) <= (name == "write_text")
    if name == "open":
        modes = [one.value for one in (*call.args, *named.values()) if isinstance(one, ast.Constant)]
        modes = [mode for mode in modes if isinstance(mode, str) and re.fullmatch(r"[rwax][+bt]*", mode)]
        return "b" not in modes[0] if modes else len(call.args) == (not method)
    return any(getattr(named.get(key), "value", None) is True for key in ("text", "universal_newlines"))


def test_text_is_utf8_whatever_the_locale_says():
    """`zipfile`'s `open` has no text mode."""
    calls = [(name, node) for name, tree in sources().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [f"{name}: {ast.unparse(call)}" for name, call in calls if leaves_the_encoding_open(call)]
    assert [one for one in found if not one.startswith("rwkv7_jax.checkpoint.pth: archive.open(")] == []


def test_durations_are_measured_by_a_clock_that_nobody_sets():
    """`time.time` is the clock of the wall; dates in a server's answer alone are by it."""
    found = [
        f"{name}: {ast.unparse(node)}" for name, tree in sources().items() for node in ast.walk(tree) if wall(node)
    ]
    assert [one for one in found if "teacher.http_client" not in one and "serve.dates" not in one] == []


def wall(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module in ("time", "datetime") and any(alias.name in ("time", "datetime") for alias in node.names)
    return isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.datetime")


@pytest.mark.parametrize("package", FACES)
def test_every_public_name_is_documented(package):
    """Each public function and class has a docstring, whose first line ends as a sentence does."""
    module = __import__(package)
    assert set(module.__all__) <= set(dir(module))
    bare = []
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) and not (getattr(value, "__doc__", None) or "").strip():
            bare.append(name)
    assert bare == []
