"""Weights on large pages: what is moved, that values and addresses stay, and where nothing is done."""

import ctypes
import mmap
import platform
import re
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, huge_pages
from rwkv7_jax.generation import weights
from rwkv7_jax.huge_pages import PAGE, ranges
from rwkv7_jax.model import init_params

KERNEL = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
needs_pages = pytest.mark.skipif(not huge_pages.available(), reason="this system has no large pages")


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(huge_pages, "DELAY", 0.0)
    monkeypatch.setattr(huge_pages, "LEAST", 1)


def test_whole_pages_of_neighbours():
    assert ranges([(PAGE - 1, PAGE + 1)]) == [(PAGE, 2 * PAGE)]
    assert ranges([(PAGE + 1, PAGE)]) == []
    assert ranges([(3 * PAGE // 2, PAGE // 2), (PAGE, PAGE // 2 - 64)]) == [(PAGE, 2 * PAGE)]
    assert ranges([(0, PAGE), (PAGE + huge_pages.GAP, PAGE)]) == [(0, 2 * PAGE)]
    assert ranges([(0, PAGE), (PAGE + huge_pages.GAP + 1, PAGE)]) == [(0, PAGE)]
    assert ranges([]) == []


def on_large_pages(address: int) -> int:
    """Bytes of the mapping around an address that lie on large pages."""
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(area[1], 16) <= address < int(area[2], 16)
        elif found and line.startswith("AnonHugePages"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no such mapping")


def gives_large_pages() -> bool:
    """Whether the system has one for fresh memory now: it may have none left."""
    with mmap.mmap(-1, 2 * PAGE) as memory:
        memory[:] = bytes([1]) * len(memory)
        view = ctypes.c_char.from_buffer(memory)
        refused = huge_pages._madvise()(-(-ctypes.addressof(view) // PAGE) * PAGE, PAGE, huge_pages._COLLAPSE)
        del view
    return not refused


@pytest.mark.skipif(KERNEL < (6, 1), reason="the system moves no memory when it is asked to")
@needs_pages
def test_values_and_addresses_stay(at_once):
    array = jnp.asarray(np.random.default_rng(0).standard_normal(2**23), jnp.float32) * 2
    before, address = np.array(array), array.unsafe_buffer_pointer()
    huge_pages.use({"a": array, "no array": 3, "host": np.ones(2)}).join()
    assert array.unsafe_buffer_pointer() == address
    np.testing.assert_array_equal(array, before)
    if on_large_pages(address) < array.nbytes // 2 and not gives_large_pages():
        pytest.skip("the system has no large page left")
    assert on_large_pages(address) >= array.nbytes // 2


@needs_pages
def test_stops_when_it_is_refused(at_once, monkeypatch):
    calls = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *args: calls.append(args) or -1)
    monkeypatch.setattr(huge_pages, "AT_ONCE", 1)
    huge_pages.use([jnp.ones(2**23)]).join()
    assert len(calls) == huge_pages.REFUSED


def test_nothing_is_done_for_few_weights_or_on_other_systems(monkeypatch):
    assert huge_pages.use({"a": jnp.ones(2**21)}) is None
    monkeypatch.setattr(huge_pages, "LEAST", 1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages.use({"a": jnp.ones(2**23)}) is None


@needs_pages
def test_what_lies_in_a_file_is_copied(tmp_path):
    numbers = np.arange(PAGE, dtype=np.float32).reshape(4, -1)
    numbers.tofile(tmp_path / "numbers")
    mapped = np.asarray(np.memmap(tmp_path / "numbers", np.float32, mode="r")).reshape(4, -1)
    given = {
        "file": jax.device_put(mapped),
        "small": jax.device_put(mapped[0, :256]),
        "own": jnp.ones(PAGE),
        "other": 3,
    }
    assert given["file"].unsafe_buffer_pointer() == mapped.ctypes.data  # JAX copies nothing
    found = huge_pages.out_of_files(given)
    places = {name: found[name].unsafe_buffer_pointer() for name in ("file", "small", "own")}
    assert places["file"] != mapped.ctypes.data
    assert [places[name] == given[name].unsafe_buffer_pointer() for name in ("small", "own")] == [True, True]
    assert found["other"] == 3
    np.testing.assert_array_equal(found["file"], numbers)


def test_decoding_moves_all_but_the_embedding(monkeypatch):
    seen = []
    monkeypatch.setattr(huge_pages, "use", seen.append)
    model = RWKV7(RWKV7Config(vocab_size=32, n_layer=1, n_embd=64, scan_layers=False))
    params = init_params(model, jax.random.key(0))
    made = weights.decoding_weights(model.config, params)
    (given,) = seen
    assert sorted(given) == sorted(set(made) - {"emb"})
    assert jax.tree.leaves(given)
    assert not [thread for thread in threading.enumerate() if thread.name == "huge pages"]
