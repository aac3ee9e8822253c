"""The order of packages and modules: one chain, no circles, public names documented."""

import ast
import graphlib
import pathlib

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
