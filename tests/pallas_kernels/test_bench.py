"""The benchmark: its rows, its refusal of a wrong result, its arguments."""

import json

import jax
import pytest

import pallas_kernels
from pallas_kernels import bench
from pallas_kernels.reference import wkv7_scan


def test_table_and_json(tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert bench.main(["--shape", "1,5,1,4", "--repeats", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {(r["task"], r["implementation"]) for r in rows} == {
        (task, name) for task in bench.TASKS for name in pallas_kernels.IMPLEMENTATIONS
    }
    assert all(r["ratio"] == pytest.approx(r["scan_seconds"] / r["seconds"]) for r in rows)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_a_wrong_result_is_not_timed(monkeypatch, capsys):
    wrong = jax.jit(lambda *x: jax.tree.map(lambda y: 1.001 * y, wkv7_scan(*x)))
    monkeypatch.setitem(pallas_kernels.IMPLEMENTATIONS, "wrong", wrong)
    assert bench.main(["--shape", "1,5,1,4", "--repeats", "1"]) == 1
    assert "wrong, forward, (1, 5, 1, 4, 4): relative error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--shape", "1,2"], ["--shape", "1,0,1,4"], ["--repeats", "0"], ["--json", "/nowhere/x"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
