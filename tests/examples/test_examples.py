"""Every example runs as it stands, with few steps, and prints what is finite."""

import importlib.util
import pathlib
import re

import jax
import pytest

from experiments.pocket import benchmarks

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.py"))
SMALL = (
    (r"steps=\d+", "steps=2"),
    (r"max_new_tokens=\d+", "max_new_tokens=4"),
    (r"max_tokens=\d+", "max_tokens=4"),
    (r"\[:(?:100|200|50|40)\]", "[:8]"),
    (r"count: int = 40", "count: int = 4"),
)
"""Settings that make an example small."""
NEEDS = {"serve_and_call": ("openai", "starlette", "uvicorn")}
"""Optional packages of an example."""


RECORDS = 4
"""Of each split of a benchmark; a batch then has as many sequences."""


@pytest.fixture
def few_records(monkeypatch):
    """Benchmarks of a few records."""
    load = benchmarks.load
    monkeypatch.setattr(benchmarks, "load", lambda name, split: load(name, split)[:RECORDS])


def small(text: str) -> str:
    """The program with few steps and short texts."""
    for pattern, value in SMALL:
        text = re.sub(pattern, value, text)
    return text


@pytest.mark.usefixtures("few_records")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path, monkeypatch, capsys):
    for package in NEEDS.get(path.stem, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") < 60
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(small(source), str(path), "exec"), {"__name__": "__main__", "__file__": str(path)})
    said = capsys.readouterr().out
    assert said.strip()
    assert not re.search(r"\b(nan|inf)\b", said)


def test_the_gallery_shows_every_example():
    page = (EXAMPLES[0].parents[1] / "docs" / "examples.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"../examples/{path.name}" not in page] == []
