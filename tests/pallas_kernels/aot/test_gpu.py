"""Compiling for GPUs that are not attached, and what the committed tables promise."""

import pathlib
import types

import pytest

from pallas_kernels.aot import gpu, nvidia, table
from pallas_kernels.aot.table import COMPILED

RESULTS = pathlib.Path(gpu.__file__).parent / "results"
SHAPE = (8, 4096, 32, 64)
RULES = ("forward", "forward_saving", "backward", "state_backward")


@pytest.fixture(params=sorted(nvidia.TARGETS))
def committed(request):
    """(target, rows) of a committed table."""
    return request.param, table.from_json((RESULTS / f"{request.param}.json").read_text())


def test_every_kernel_compiles_and_none_spills(committed):
    target, rows = committed
    assert {(row.kernel, row.dtype) for row in rows if row.shape == SHAPE} >= {
        (kernel, dtype)
        for kernel in (*RULES, *(f"{rule}{nvidia.WIDE}" for rule in RULES), "decode")
        for dtype in ("bfloat16", "float32")
    }
    for row in rows:
        assert (row.target, row.status) == (target, COMPILED), row
        assert row.registers <= 255
        assert row.memory < nvidia.TARGETS[target].shared_memory
        assert row.spills == 0, row


def test_bounds_of_the_bfloat16_backward(committed):
    """Before it was divided: 165 barriers, 353 shared loads and 175 stores for each 16 tokens, each by 8 warps, and no
    asynchronous copy. Now for 32 tokens, loads and stores by 4 or 8 warps; half the loads, and on Hopper the stores."""
    target, rows = committed
    (whole,) = (row for row in rows if key(row) == ("backward", "bfloat16", SHAPE, False))
    assert whole.async_copies > 0
    assert whole.barriers <= 2 * 40
    assert whole.shared_loads <= 353
    assert target == "a100" or whole.shared_stores <= 175
    for resets in (False, True):
        (triton,) = (row for row in rows if key(row) == ("triton backward", "bfloat16", SHAPE, resets))
        assert triton.barriers <= 2 * 40
    (scan,) = (row for row in rows if key(row) == ("backward: state_gradients", "bfloat16", SHAPE, False))
    assert scan.barriers <= 22
    assert scan.blocks * nvidia.TARGETS[scan.target].multiprocessors >= 2 * 8 * 32, "one wave"


def test_heads_of_32_are_in_the_tables(committed):
    """With square tiles their gradients spilt 424 bytes, 844 with resets."""
    _, rows = committed
    for kernel in RULES:
        found = {row.resets: row.spills for row in rows if key(row)[:3] == (kernel, "bfloat16", (*SHAPE[:3], 32))}
        assert found == {False: 0, True: 0}, kernel


def key(row):
    return row.kernel, row.dtype, row.shape, row.resets


def test_floors_at_the_size_of_the_documentation(committed):
    """Bytes per token and head are 896, 1024, 1792 and 640, plus the states at both ends."""
    _, rows = committed
    count, state = 8 * 4096 * 32, 2 * 8 * 32 * 64 * 64 * 4
    expected = {"forward": 896, "forward_saving": 1024, "backward": 1792, "state_backward": 640}
    for row in rows:
        if row.dtype == "bfloat16" and row.kernel in expected and row.shape == SHAPE:
            moved = nvidia.floor_bytes(row.kernel, row.shape, row.dtype)
            assert moved == expected[row.kernel] * count + state
            assert row.floor_ms == pytest.approx(1e3 * moved / nvidia.TARGETS[row.target].bandwidth)


def test_unknown_target():
    with pytest.raises(ValueError, match="no GPU called 'b200': choose one of h100, h200, a100"):
        gpu.rows("b200", [nvidia.MAIN])


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install -e '\.\[aot\]'"):
        gpu.rows("h200", [nvidia.MAIN])


@pytest.mark.skipif(gpu.missing() is not None, reason=str(gpu.missing()))
def test_no_more_than_committed():
    """The committed table holds for this version of the compilers."""
    before = {key(row): row for row in table.from_json((RESULTS / "h200.json").read_text())}
    for row in gpu.rows("h200", [nvidia.MAIN._replace(dtypes=("bfloat16",))]):
        old = before[key(row)]
        assert row.status == COMPILED, row
        assert row.spills <= old.spills, (row, old)
        assert row.barriers <= 1.1 * old.barriers, (row, old)


def test_counts_of_ptx(tmp_path, monkeypatch):
    """Two kernels of one file, each with what its own instructions and its own report say."""
    ptx = tmp_path / "two.ptx"
    body = ".reqntid {}\n{{ bar.sync 0; ld.shared.b32 %r1; ldmatrix.sync.x4; {} st.shared.b32; cp.async.cg.shared; }}"
    ptx.write_text(
        f".visible .entry one()\n{body.format(128, '')}\n.visible .entry two()\n{body.format(256, 'bar.sync 0;')}"
    )
    report = "".join(
        f"ptxas info : Compiling entry function '{name}' for 'sm_90a'\n8 bytes spill stores, {loads} bytes spill loads"
        "\nptxas info : Used 40 registers, used 1 barriers\n"
        for name, loads in (("one", 0), ("two", 4))
    )
    monkeypatch.setattr(nvidia.subprocess, "run", lambda *args, **options: types.SimpleNamespace(stderr=report))
    one, two = nvidia.examine(str(ptx), "sm_90a")
    assert one == nvidia.Kernel("one", 4, 40, 8, 1, 2, 1, 1)
    assert two == nvidia.Kernel("two", 8, 40, 12, 2, 2, 1, 1)
    target = nvidia.TARGETS["h200"]
    assert [kernel.blocks(target, 0) for kernel in (one, two)] == [12, 6]
    assert one.blocks(target, 100 << 10) == 2
    row = table.Row("backward", "h200", SHAPE, "bfloat16", COMPILED, floor_ms=1.0)
    whole, *parts = nvidia.joined(row, [(one, 10), (two, 20)], target)
    assert (whole.spills, whole.barriers, whole.memory, whole.blocks, whole.floor_ms) == (20, 3, 20, 6, 1.0)
    assert [part.kernel for part in parts] == ["backward: one", "backward: two"]
