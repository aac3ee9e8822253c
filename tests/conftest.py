"""Strict settings for every test: exact dtypes, exact ranks, warnings are errors, annotated shapes are checked."""

import gc
import os
import pathlib
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Unoptimised machine code: the suite compiles much more than it computes. One thread a product: its workers share the
# cores.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FLAGS}")
# Threads of XLA's pools. A thread waits inside a collective, and a simulated device is in several at a time: as many
# threads as devices, which is the default on a small machine, can all wait for one that finds no thread any more.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook(["pallas_kernels", "rwkv7_jax", "state_tuning"], "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# Traced programs are many small objects that stay: seldom worth a search for cycles.
gc.set_threshold(20_000)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No time limits, which a busy machine would exceed. Where CI is set, Hypothesis draws the same examples in every run.
hypothesis.settings.register_profile(
    "suite", hypothesis.settings(), deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


MAPPINGS = 20_000
"""Of memory; Linux allows a process 65,530, every compiled program has some, and one too many is a crash."""


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped() -> Iterator[None]:
    """Forgets compiled programs after a module, where there are many."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real checkpoints and benchmark files, which are not part of the project (see CONTRIBUTING.md)."""
    folder = os.environ.get("RWKV7_TEST_DATA")
    if not folder:
        pytest.skip("RWKV7_TEST_DATA is not set: no folder of real checkpoints and benchmark files")
    path = pathlib.Path(folder)
    assert path.is_dir(), f"RWKV7_TEST_DATA={folder} is not a folder"
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A safetensors file of two layers of width 8; every weight random, so that the state matters."""
    import numpy as np

    from rwkv7_jax import RWKV7, RWKV7Config, checkpoint, zero_state

    config = RWKV7Config(
        vocab_size=256, n_layer=2, n_embd=8, head_size=4, decay_lora=2, aaa_lora=2, mv_lora=2, gate_lora=2
    )
    tokens = jax.numpy.zeros((1, 2), jax.numpy.int32)
    init = jax.jit(lambda key: RWKV7(config).init({"params": key}, tokens, zero_state(config, 1))["params"])
    rng = np.random.default_rng(1)
    noise = lambda leaf: np.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), np.float32)  # noqa: E731
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoint.save(path, jax.tree.map(noise, jax.device_get(init(jax.random.key(0)))))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: pathlib.Path):
    """The tiny model, loaded."""
    from rwkv7_jax import LanguageModel

    return LanguageModel.load(tiny_checkpoint, wkv="scan")
