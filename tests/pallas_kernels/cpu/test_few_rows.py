"""Products of few rows on a CPU: against float64, for every kind of number, any sizes, threads, and what is refused."""

import os
import platform
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.cpu import available, few_rows, fits, machine_code
from pallas_kernels.cpu.handler import handler
from pallas_kernels.cpu.sharing import PIECE, WORTH_SHARING, WORTH_WAKING
from pallas_kernels.cpu.sums import Form, outputs
from rwkv7_jax.quantisation import quantise, to_numpy

KINDS = [("float32", 1), ("bfloat16", 1), ("int8", 1), ("int8", 2), ("int4", 2)]
product = jax.jit(few_rows)


def weight(rng: np.random.Generator, kind: str, outputs: int, inputs: int, groups: int):
    """(the arguments that stand for a matrix, the matrix in float64)."""
    matrix = rng.standard_normal((outputs, inputs)).astype(np.float32)
    if kind in ("float32", "bfloat16"):
        given = jnp.asarray(matrix, kind)
        return (given,), np.asarray(given, np.float64)
    quantised = quantise(matrix, 8 if kind == "int8" else 4, inputs // groups)
    return tuple(quantised), to_numpy(quantised).astype(np.float64)


def check(rng: np.random.Generator, kind: str, rows: int, outputs: int, inputs: int, groups: int) -> None:
    given, exact = weight(rng, kind, outputs, inputs, groups)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    found = np.asarray(product(x, *given))
    bound = np.abs(x.astype(np.float64)) @ np.abs(exact).T
    assert found.dtype == np.float32
    assert (np.abs(found - x.astype(np.float64) @ exact.T) <= 1e-6 * bound).all()
    for row in range(rows):
        np.testing.assert_array_equal(product(x[row : row + 1], *given)[0], found[row])


@pytest.mark.parametrize(("kind", "groups"), KINDS)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 3, 64), (2, 1, 128), (5, 7, 192), (8, 33, 320)])
def test_is_the_product_and_a_row_has_the_same_bits_alone(rng, kind, groups, rows, outputs, inputs):
    check(rng, kind, rows, outputs, inputs, groups)


@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_rows_that_are_wanted_have_their_bits_and_the_others_are_zero(rng, kind, groups):
    given, _ = weight(rng, kind, 7, 64, groups)
    x = rng.standard_normal((6, 64)).astype(np.float32)
    whole = np.asarray(product(x, *given))
    x[[0, -1]] = np.nan
    one = jax.jit(lambda x, wanted, weight, scales=None: few_rows(x, weight, scales, wanted))
    for first, end in ((1, 5), (1, 2), (4, 5), (3, 3), (5, 2), (9, 12), (7, -1)):
        found = np.asarray(one(x, np.array([first, end], np.int32), *given))
        wanted = np.zeros_like(whole)
        wanted[first:end] = whole[first:end]
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(one(x, np.array([1, -1], np.int32), *given)[1:5], whole[1:5])


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3))
def test_sizes_of_any_kind(seed, rows, outputs, vectors, groups):
    """Rows that are no multiple of what is added up at a time, and groups of any size."""
    rng = np.random.default_rng(seed)
    check(rng, "float32", rows, outputs, 16 * vectors, 1)
    check(rng, "int8", rows, outputs, 16 * vectors * groups, groups)
    check(rng, "int4", rows, outputs, 32 * vectors * groups, groups)


def test_a_matrix_that_is_shared_out(rng):
    """Several pieces for each thread, of different sizes; the same sums in every run."""
    inputs = 64
    count = (WORTH_WAKING + 3 * PIECE) // inputs + 5
    given, exact = weight(rng, "int8", count, inputs, 1)
    x = rng.standard_normal((2, inputs)).astype(np.float32)
    first = np.asarray(product(x, *given))
    np.testing.assert_allclose(first, x @ exact.T, rtol=0, atol=1e-4)
    for _ in range(20):
        np.testing.assert_array_equal(product(x, *given), first)


def test_a_chain_of_products(rng):
    """Threads that stay awake take what follows, large and small, and a later program after they went to sleep."""
    sizes = [WORTH_WAKING, 64, 2 * WORTH_SHARING, 3 * WORTH_SHARING, WORTH_WAKING, 9 * WORTH_SHARING]
    matrices = [jnp.asarray(rng.standard_normal((size // 64, 64)), jnp.float32) for size in sizes]
    x = jnp.asarray(rng.standard_normal((1, 64)), jnp.float32)
    chain = jax.jit(lambda x, matrices: [few_rows(x * n, matrix) for n, matrix in enumerate(matrices, 1)])
    first = jax.device_get(chain(x, matrices))
    for n, (found, matrix) in enumerate(zip(first, matrices, strict=True), 1):
        np.testing.assert_allclose(found, n * np.asarray(x) @ np.asarray(matrix).T, rtol=0, atol=1e-4)
    for pause in [0.0] * 30 + [0.01] * 3:
        time.sleep(pause)
        for found, expected in zip(jax.device_get(chain(x, matrices)), first, strict=True):
            np.testing.assert_array_equal(found, expected)


PROGRAMS = """
import concurrent.futures
import jax
import numpy as np
from pallas_kernels.cpu import few_rows, sharing

rng = np.random.default_rng(0)
weight = rng.standard_normal((5 * sharing.WORTH_WAKING // 64, 64), np.float32)
x = rng.standard_normal((1, 64), np.float32)
several = jax.jit(lambda x, w: [few_rows(x * n, w[: len(w) // n]) for n in range(1, 7)])
expected = jax.device_get(several(x, weight))

def right(_):
    return all(map(np.array_equal, jax.device_get(several(x, weight)), expected))

with concurrent.futures.ThreadPoolExecutor(6) as pool:
    print(all(pool.map(right, range(60))), np.allclose(expected[0], x @ weight.T, atol=1e-4))
"""


def test_programs_on_several_threads_at_once():
    """More products at a time than XLA has threads, which share them: none waits for another for ever, and the process
    ends while some are awake."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAMS], capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    assert found.stdout == "True True\n"


def test_numbers_that_are_not_finite_are_kept(rng):
    (matrix,), _ = weight(rng, "float32", 3, 16, 1)
    x = np.ones((1, 16), np.float32)
    assert np.isnan(product(x, matrix.at[1, 3].set(jnp.nan))[0]).tolist() == [False, True, False]
    assert np.isposinf(product(x, matrix.at[2, 0].set(jnp.inf))[0]).tolist() == [False, False, True]


def test_over_a_batch(rng):
    (matrix,), exact = weight(rng, "float32", 5, 32, 1)
    x = rng.standard_normal((3, 2, 32)).astype(np.float32)
    found = jax.vmap(few_rows, (0, None))(x, matrix)
    np.testing.assert_allclose(found, x @ exact.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "weight", "scales", "message"),
    [
        ((1, 8), ("float32", 3, 8), None, "rows of 8 float32 numbers in 1 groups are no whole vectors of 16"),
        ((1, 48), ("int8", 3, 48), 2, "rows of 48 int8 numbers in 2 groups are no whole vectors of 16"),
        ((1, 16), ("float32", 3, 32), None, r"float32\[1, 16\] with float32\[3, 32\] and scales none"),
        ((1, 16), ("int8", 3, 16), None, r"int8\[3, 16\] and scales none do not go together"),
        ((1, 16), ("bfloat16", 3, 16), 1, r"bfloat16\[3, 16\] and scales float32\[3, 1\] do not go together"),
        ((1, 16), ("float16", 3, 16), None, "no kernel for matrices of float16"),
    ],
)
def test_refuses_in_one_line(x, weight, scales, message):
    dtype, *shape = weight
    given = None if scales is None else jnp.ones((shape[0], scales))
    with pytest.raises(ValueError, match=message) as caught:
        few_rows(jnp.ones(x), jnp.ones(shape, dtype), given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'llvmlite'"), OSError("libstdc++.so.6")])
def test_not_available_where_llvmlite_cannot_be_loaded(monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "llvmlite":
                raise error

    for name in [name for name in sys.modules if name.startswith(("llvmlite", "pallas_kernels.cpu.machine_code"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert not available.__wrapped__()
    monkeypatch.undo()
    assert available()


def test_what_fits():
    assert fits("float32", 48)
    assert not fits("float32", 40)
    assert fits("int8", 96, 3)
    assert not fits("int8", 96, 4)
    assert fits("int4", 96, 3)
    assert not fits("int4", 96, 6)


@pytest.mark.parametrize("form", [Form(2, 2), Form(4, 4), Form(1, 1)], ids=str)
@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_the_forms_of_other_machines(rng, monkeypatch, kind, groups, form):
    """What a machine with fewer registers runs is right on this one too."""
    monkeypatch.setattr(machine_code, "form", lambda: form)
    monkeypatch.setattr(machine_code, "PREFIX", f"few_rows_{form.sums}_{form.rows}")
    given, exact = weight(rng, kind, 5, 192, groups)
    x = rng.standard_normal((7, 192)).astype(np.float32)
    found = jax.jit(lambda *args: few_rows(*args))(x, *given)
    np.testing.assert_allclose(found, x @ exact.T, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_compiles_for_arm(monkeypatch, kind, groups):
    """Machine code for a processor that is not at hand, with its multiplications and its instruction for waiting."""
    import llvmlite.binding as llvm

    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(handler() + outputs(kind, groups > 1 or kind == "int4", Form(2, 2)))
    machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(opt=3)
    code = machine.emit_assembly(module)
    assert "fmla" in code
    assert "isb" in code
