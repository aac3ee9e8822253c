"""Compiling for GPUs that are not attached, and what the committed tables promise."""

import pathlib

import pytest

from pallas_kernels.aot import gpu, nvidia, table
from pallas_kernels.aot.table import COMPILED

RESULTS = pathlib.Path(gpu.__file__).parent / "results"
SHAPE = (8, 4096, 32, 64)


@pytest.fixture(params=sorted(nvidia.TARGETS))
def committed(request):
    """(target, rows) of a committed table."""
    return request.param, table.from_json((RESULTS / f"{request.param}.json").read_text())


def test_every_kernel_compiles_and_none_spills_on_hopper(committed):
    target, rows = committed
    assert {(row.kernel, row.dtype) for row in rows} >= {
        (kernel, dtype)
        for kernel in ("forward", "forward_saving", "backward", "state_backward", "decode")
        for dtype in ("bfloat16", "float32")
    }
    for row in rows:
        assert (row.target, row.status, row.shape) == (target, COMPILED, SHAPE), row
        assert row.registers <= 255
        assert row.memory < nvidia.TARGETS[target].shared_memory
        if target != "a100":
            assert row.spills == 0, row


def test_floors_at_the_size_of_the_documentation(committed):
    """Bytes per token and head are 896, 1024, 1792 and 640, plus the states at both ends."""
    _, rows = committed
    count, state = 8 * 4096 * 32, 2 * 8 * 32 * 64 * 64 * 4
    expected = {"forward": 896, "forward_saving": 1024, "backward": 1792, "state_backward": 640}
    for row in rows:
        if row.dtype == "bfloat16" and row.kernel in expected:
            moved = nvidia.floor_bytes(row.kernel, row.shape, row.dtype)
            assert moved == expected[row.kernel] * count + state
            assert row.floor_ms == pytest.approx(1e3 * moved / nvidia.TARGETS[row.target].bandwidth)


def test_unknown_target():
    with pytest.raises(ValueError, match="no GPU called 'b200': choose one of h100, h200, a100"):
        gpu.rows("b200", SHAPE)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install -e '\.\[aot\]'"):
        gpu.rows("h200", SHAPE)


@pytest.mark.skipif(gpu.missing() is not None, reason=str(gpu.missing()))
def test_no_more_spills_than_committed():
    """The committed table holds for this version of the compilers."""
    before = {(row.kernel, row.dtype): row for row in table.from_json((RESULTS / "h200.json").read_text())}
    for row in gpu.rows("h200", SHAPE):
        old = before[row.kernel, row.dtype]
        assert row.status == COMPILED, row
        assert row.spills <= old.spills, (row, old)
