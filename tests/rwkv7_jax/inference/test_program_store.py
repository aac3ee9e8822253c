"""Programs that an earlier process compiled: the same numbers without tracing, and never those of something else."""

import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import SamplingParams
from rwkv7_jax.inference import program_store, programs
from rwkv7_jax.inference.engine import Engine, Request
from rwkv7_jax.inference.program_store import SUFFIX, compiled


class Pair(NamedTuple):
    a: jax.Array
    b: list


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(program_store, "_folder", lambda: tmp_path / "programs")
    return tmp_path / "programs"


class Traced:
    """A function that counts how often it is traced."""

    def __init__(self):
        self.times = 0

    def __call__(self, pair: Pair, x: jax.Array) -> Pair:
        self.times += 1
        return Pair(pair.a + x, [jnp.sin(pair.b[0])])


def args(size: int = 3) -> tuple[Pair, jax.Array]:
    return Pair(jnp.arange(size, dtype=jnp.float32), [jnp.ones(2)]), jnp.ones(size)


def test_a_kept_program_is_not_traced_and_gives_the_same(folder):
    traced = Traced()
    first = compiled("one", traced, args())
    again = compiled("one", traced, args())
    assert traced.times == 1
    for one, other in zip(jax.tree.leaves(first(*args())), jax.tree.leaves(again(*args())), strict=True):
        assert np.array_equal(one, other)
    assert type(again(*args())) is Pair
    with pytest.raises(TypeError):
        again(*args(4))


def test_memory_is_written_over_as_before(folder):
    for _ in range(2):
        given = args()
        compiled("one", lambda pair, x: Pair(pair.a + x, pair.b), given, (0,))(*given)
        assert given[0].a.is_deleted()


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "code", "setting", "processor"])
def test_anything_else_is_another_program(folder, monkeypatch, change):
    traced, given, name = Traced(), args(), "one"
    compiled(name, traced, given)
    if change == "name":
        name = "other"
    elif change == "shape":
        given = args(4)
    elif change == "dtype":
        given = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given)
    elif change == "setting":
        jax.config.update("jax_default_matmul_precision", "highest")
    else:
        monkeypatch.setattr(program_store, f"_{change}", lambda: "other")
    try:
        compiled(name, traced, given)
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert traced.times == 2
    assert len(list(folder.glob(f"*{SUFFIX}"))) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-1] + b"x", lambda data: b""])
def test_a_damaged_file_is_compiled_again(folder, damage):
    traced = Traced()
    compiled("one", traced, args())
    (path,) = folder.glob(f"*{SUFFIX}")
    path.write_bytes(damage(path.read_bytes()))
    compiled("one", traced, args())(*args())
    compiled("one", traced, args())
    assert traced.times == 2


def test_what_cannot_be_written_is_compiled_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(program_store, "_folder", lambda: tmp_path / "file" / "programs")
    traced = Traced()
    for _ in range(2):
        compiled("one", traced, args())(*args())
    assert traced.times == 2


def test_nothing_is_kept_without_a_name_or_a_cache(folder, monkeypatch):
    compiled(None, Traced(), args())
    assert not folder.exists()
    monkeypatch.undo()
    assert program_store._folder() is None


def test_the_oldest_go(folder, monkeypatch):
    monkeypatch.setattr(program_store, "MOST", 2)
    for name in ("one", "two", "three"):
        compiled(name, Traced(), args())
    assert len(list(folder.glob(f"*{SUFFIX}"))) == 2


def test_an_engine_of_a_later_process_answers_the_same(folder, tiny, monkeypatch):
    def answer():
        programs._programs.cache_clear()
        with Engine(tiny, slots=2) as engine:
            engine.warm_up(wait=False)
            asked = Request(tuple(b"Hello"), SamplingParams(max_new_tokens=6), keep_state=True, logprobs=2)
            result = engine.submit(asked).result()
            engine.warm_up()
            assert engine.stats().programs == 9
            return result

    first = answer()
    assert len(list(folder.glob(f"*{SUFFIX}"))) == 9
    monkeypatch.setattr(program_store, "_keep", lambda *_: pytest.fail("compiled again"))
    again = answer()
    assert (again.tokens, again.logprobs) == (first.tokens, first.logprobs)
    for one, other in zip(jax.tree.leaves(first.state), jax.tree.leaves(again.state), strict=True):
        assert np.array_equal(one, other)
    programs._programs.cache_clear()


LOADS = """
import pathlib, sys
import jax.numpy as jnp
from rwkv7_jax.inference import program_store
from rwkv7_jax.streamed import StreamedWeight, product

def traced(x, weight):
    print("traced")
    return product(x, weight, "float32")

program_store._folder = lambda: pathlib.Path(sys.argv[1])
given = jnp.ones((1, 32)), StreamedWeight(jnp.full((3, 32), 0.5))
print(program_store.compiled("streamed", traced, given)(*given).tolist())
"""


def test_a_new_process_knows_the_kernels_of_a_kept_program(tmp_path):
    for first in ("traced\n", ""):
        found = subprocess.run(
            [sys.executable, "-c", LOADS, tmp_path], capture_output=True, text=True, check=True, timeout=120
        )
        assert found.stdout == f"{first}[[16.0, 16.0, 16.0]]\n"
