"""Compiled programs kept whole between processes: a later one neither traces nor compiles them.

JAX's own cache spares the compiler and still has every program traced first, which takes longer on a small model. They
lie beside that cache, where it is on, and on a CPU alone. A program is another one for any other code of this package,
version of JAX, setting, machine or shape.
"""

import functools
import hashlib
import importlib.util
import os
import pathlib
import pickle
import platform
import secrets
from collections.abc import Callable

import jax
import jaxlib.version
import numpy as np
from jaxtyping import PyTree

from rwkv7_jax import streamed
from rwkv7_jax.checkpoint.files import atomic

SUFFIX = ".program"
MOST = 200
"""Programs that are kept; the oldest go."""
ELSEWHERE = ("jax_compilation_cache", "jax_persistent_cache", "jax_log", "jax_logging", "jax_dump", "jax_explain")
"""Beginnings of settings that change no program."""
PACKAGES = ("rwkv7_jax", "pallas_kernels")
"""The code that programs are traced from."""


def compiled(
    name: str | None, function: Callable[..., PyTree], args: tuple[PyTree, ...], donated: tuple[int, ...] = ()
) -> Callable[..., PyTree]:
    """Compiles a function for arrays, or shapes, like these, unless an earlier process has kept it.

    Args:
      name: what tells the function from others of the same arguments; None: it is not kept.
      function: what is computed.
      args: arrays or `jax.ShapeDtypeStruct`.
      donated: the arguments whose memory is written over.

    Returns:
      The program; it refuses other shapes.
    """
    folder = _folder()
    if name is None or folder is None:
        return jax.jit(function, donate_argnums=donated).lower(*args).compile()
    path = folder / f"{_key(name, args, donated)}{SUFFIX}"
    streamed.prepare(args)
    found = _loaded(path)
    if found is not None:
        return found

    def fresh(*args: PyTree) -> PyTree:
        return function(*args)

    # Under a name of its own JAX's cache does not know it: what comes from there cannot be written a second time.
    fresh.__name__ = f"program_{secrets.token_hex(8)}"
    made = jax.jit(fresh, donate_argnums=donated).lower(*args).compile()
    _keep(path, made)
    return made


def _folder() -> pathlib.Path | None:
    """Where programs are kept, if they are."""
    settings = jax.config.values
    folder, enabled = settings["jax_compilation_cache_dir"], settings["jax_enable_compilation_cache"]
    if not folder or not enabled or "://" in folder or jax.default_backend() != "cpu":
        return None
    return pathlib.Path(folder) / "programs"


def _key(name: str, args: tuple[PyTree, ...], donated: tuple[int, ...]) -> str:
    """What identifies a program."""
    leaves, tree = jax.tree.flatten(args)
    arrays = [
        (np.shape(leaf), str(leaf.dtype), getattr(leaf, "weak_type", False), str(getattr(leaf, "sharding", None)))
        for leaf in leaves
    ]
    return hashlib.sha256(repr((name, str(tree), arrays, donated, _surroundings())).encode()).hexdigest()


def _surroundings() -> tuple[object, ...]:
    """All beside the arguments that a program depends on."""
    settings = sorted((key, str(value)) for key, value in jax.config.values.items() if not key.startswith(ELSEWHERE))
    flags = [os.environ.get(key, "") for key in ("XLA_FLAGS", "JAX_TRACEBACK_IN_LOCATIONS_LIMIT")]
    device = jax.devices()[0]
    versions = (jax.__version__, jaxlib.version.__version__, device.client.platform_version, platform.python_version())
    return _code(), versions, _processor(), jax.device_count(), str(device), settings, flags


@functools.cache
def _code() -> str:
    """Hash of the code that programs are traced from."""
    digest = hashlib.sha256()
    found = [importlib.util.find_spec(package) for package in PACKAGES]  # which does not import them
    for root in (pathlib.Path(spec.origin or "").parent for spec in found if spec):
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """What the machine code may use."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line for line in lines if line.startswith(("flags", "model name", "Features", "CPU part"))}
    return f"{platform.machine()} {os.cpu_count()} {sorted(told)}"


def _loaded(path: pathlib.Path) -> Callable[..., PyTree] | None:
    """The program of a file; None if there is none that can be used."""
    from jax.experimental.serialize_executable import deserialize_and_load

    try:
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        os.utime(path)
        return deserialize_and_load(*pickle.loads(data[32:]), execution_devices=jax.devices()[:1])
    except Exception:  # damaged, or of another version: it is compiled again
        return None


def _keep(path: pathlib.Path, made: Callable[..., PyTree]) -> None:
    """Writes a program; one that cannot be written is compiled again the next time."""
    from jax.experimental.serialize_executable import serialize

    try:
        data = pickle.dumps(serialize(made))  # pyright: ignore[reportArgumentType]
        with atomic(path) as file:
            file.write(hashlib.sha256(data).digest() + data)
        kept = sorted(path.parent.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
        for old in kept[:-MOST]:
            old.unlink(missing_ok=True)
    except Exception:
        return
