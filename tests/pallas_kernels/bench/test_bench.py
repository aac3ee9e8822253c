"""The benchmark: its rows, its refusal of a wrong result, its arguments."""

import json

import jax
import pytest

import pallas_kernels
from pallas_kernels.bench import __main__ as bench
from pallas_kernels.bench.measure import DECODE, TASKS
from pallas_kernels.bench.peers import of_jax
from pallas_kernels.bench.shapes import Shape
from pallas_kernels.reference import wkv7_scan
from pallas_kernels.triton import launch as triton


def test_table_and_json(tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert bench.main(["--shape", "1,5,1,4", "--repeats", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {(r["task"], r["implementation"]) for r in rows} == {
        *((task, name) for task in TASKS for name in bench.runnable()),
        (DECODE, "xla"),
    }
    scan = {r["task"]: r["seconds"] for r in rows if r["implementation"] in bench.BASELINES}
    assert all(r["error"] <= 1e-5 and r["ratio"] == pytest.approx(scan[r["task"]] / r["seconds"]) for r in rows)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_a_wrong_result_is_not_timed(monkeypatch, capsys):
    wrong = jax.jit(lambda *x: jax.tree.map(lambda y: 1.001 * y, wkv7_scan(*x)))
    monkeypatch.setitem(pallas_kernels.IMPLEMENTATIONS, "wrong", wrong)
    assert bench.main(["--shape", "1,5,1,4", "--repeats", "1"]) == 1
    assert "wrong, forward, (1, 5, 1, 4, 4): relative error" in capsys.readouterr().err


def test_the_failure_of_a_library_is_a_row_without_a_time():
    def refuses(*x):
        raise TypeError("not\nhere")

    rows = list(bench.measure(Shape(1, 5, 1, 4, 4), "float32", 1, [of_jax("other", refuses)], rate=1e9))
    failed = [r for r in rows if "failed" in r]
    assert [(r["task"], r["implementation"], r["failed"]) for r in failed] == [(t, "other", "not here") for t in TASKS]
    assert "not here" in bench.show(failed[0])
    assert all(r["of_bandwidth"] > 0 for r in rows if r not in failed)


@pytest.mark.parametrize(
    "arguments",
    [["--shape", "1,2"], ["--shape", "1,0,1,4"], ["--repeats", "0"], ["--json", "/nowhere/x"], ["--json", "/"]],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_only_what_this_machine_can_run_is_timed(monkeypatch):
    assert set(bench.runnable()) == set(pallas_kernels.IMPLEMENTATIONS) - {"gpu", "triton", "tpu"}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(triton, "missing", lambda: "jax-triton")
    assert set(bench.runnable()) == set(pallas_kernels.IMPLEMENTATIONS) - {"tpu", "triton"}
