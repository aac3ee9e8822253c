"""Kernels compiled for hardware that is not attached: none fails, and no schedule grows. The table of the command."""

import pathlib

import pytest

import pallas_kernels.aot
from pallas_kernels.aot import __main__ as command
from pallas_kernels.aot import table, tpu
from pallas_kernels.aot.table import COMPILED, Row

RESULTS = pathlib.Path(pallas_kernels.aot.__file__).parent / "results"
GROWTH = 1.05


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
@pytest.mark.parametrize("kernel", tpu.KERNELS)
def test_compiles_for_v5e_with_no_more_bundles_than_committed(kernel):
    committed = table.from_json((RESULTS / "v5e.json").read_text())
    (before,) = (row for row in committed if (row.kernel, row.dtype) == (kernel, "bfloat16"))
    now = tpu.row(kernel, "v5e", before.shape, "bfloat16")
    assert now.status == COMPILED
    assert now.bundles <= GROWTH * before.bundles


@pytest.mark.parametrize("target", tpu.TARGETS)
def test_committed_results_are_complete(target):
    rows = table.from_json((RESULTS / f"{target}.json").read_text())
    assert {(row.kernel, row.dtype) for row in rows} == {(k, d) for k in tpu.KERNELS for d in tpu.DTYPES}
    assert {row.status for row in rows} == {COMPILED}
    assert {row.target for row in rows} == {target}


def test_committed_results_meet_their_goals():
    rows = table.from_json((RESULTS / "v5e.json").read_text())
    bound = {row.kernel: row.bound_ms for row in rows if row.dtype == "bfloat16"}
    assert bound["forward"] <= 3
    assert bound["backward"] <= 7
    assert bound["state_backward"] <= bound["backward"] / 2


def test_table_leaves_out_what_no_row_has():
    rows = [Row("forward", "v5e", (1, 64, 2, 64), "bfloat16", COMPILED, memory=2048, bundles=7, bound_ms=0.5),
            Row("backward", "v5e", (1, 64, 2, 64), "bfloat16", "no such instruction")]  # fmt: skip
    lines = [line.split() for line in table.text(rows).splitlines()]
    assert lines[0] == ["kernel", "dtype", "memory", "KiB", "bundles", "bound", "ms", "status"]
    assert lines[1] == ["forward", "bfloat16", "2", "7", "0.50", "compiled"]
    assert lines[2] == ["backward", "bfloat16", "-", "-", "-", "no", "such", "instruction"]
    assert table.from_json(table.to_json(rows)) == rows


def test_the_exit_status_tells_of_a_kernel_that_does_not_compile(monkeypatch, tmp_path, capsys):
    def rows(target, shape):
        return [Row("forward", target, shape, "bfloat16", "no such instruction")]

    monkeypatch.setattr(tpu, "rows", rows)
    path = tmp_path / "rows.json"
    assert command.main(["--target", "v5e", "--shape", "1,64,2,64", "--json", str(path)]) == 1
    assert table.from_json(path.read_text()) == rows("v5e", (1, 64, 2, 64))
    assert "no such instruction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "v9"], "invalid choice"),
        (["--target", "v5e", "--shape", "1,2"], "is not a shape"),
        (["--target", "v5e", "--shape", "1,64,2,32"], "N must be 64 or 128"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(tpu, "missing", lambda: "no libtpu: install it")
    with pytest.raises(FileNotFoundError, match="no libtpu"):
        tpu.rows("v5e", (1, 64, 2, 64))
