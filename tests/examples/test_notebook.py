"""The notebook's cells run in order as plain Python, with few steps; what is committed has no outputs."""

import json
import pathlib

import jax
import pytest

from tests.examples.test_examples import few_records, small  # noqa: F401

NOTEBOOK = pathlib.Path(__file__).parents[2] / "examples" / "tune_a_state.ipynb"


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.mark.usefixtures("few_records")
def test_the_cells_run_in_order(cells, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                exec(compile(small("".join(cell["source"])), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "TuneResult(2 steps" in said
    assert (tmp_path / "state.safetensors").stat().st_size > 100_000


def test_outputs_are_stripped(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(line.startswith(("%", "!")) for cell in code for line in cell["source"])
