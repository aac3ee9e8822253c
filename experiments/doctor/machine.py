"""The machine: what there is, each by a probe of its own, and what of it will make trouble."""

import dataclasses
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.reporting.findings import Finding
from pallas_kernels import cpu
from rwkv7_jax.compile_cache import use_compilation_cache

GIB = 2**30
LEAST_MEMORY, LEAST_DISK, LEAST_FILES = GIB, GIB, 256
"""Free bytes, free bytes and open files below which runs fail."""
REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9.]+)\s*$")
EXTRAS = {name: f'pip install "rwkv7-jax[{name}]"' for name in ("gpu", "tpu", "cpu")}
SLOW_FLAG = "xla_cpu_multi_thread_eigen=false"


class Accelerator(NamedTuple):
    """A GPU or TPU that the system has, whether JAX uses it or not."""

    kind: str
    """gpu or tpu."""
    name: str
    used: int = 0
    """Bytes of its memory that other programs hold."""
    total: int = 0


class Device(NamedTuple):
    """A device that JAX uses."""

    platform: str
    kind: str
    memory: int | None
    """Bytes that it may hold; None where it does not tell."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the probes found."""

    python: str
    system: str
    packages: Mapping[str, tuple[str | None, str]]
    """Name -> (version, None if it is missing; least version that is needed)."""
    few_rows: bool
    """Whether the kernels for few rows on a CPU are there."""
    devices: tuple[Device, ...]
    jax_error: str | None
    """Why JAX has no devices."""
    accelerators: tuple[Accelerator, ...]
    memory: tuple[int, int]
    """Bytes (free, in all)."""
    disk: Mapping[str, int]
    """Folder that is written to -> free bytes."""
    unwritable: Mapping[str, str]
    """Folder -> why nothing can be written there."""
    cache: str | None
    """Folder of compiled programs; None: they are not kept."""
    cache_bytes: int
    cores: tuple[int, int]
    """(those that this process may use, all)."""
    load: float
    """Programs that want a core, over the last minute."""
    open_files: int
    environment: Mapping[str, str]
    """Variables that change what JAX does."""
    flags: Mapping[str, bool]
    """Settings of JAX."""


def gather() -> Machine:
    """Asks all probes."""
    held = accelerators()
    found, error = devices()
    cache = cache_folder()
    places = {"working folder": Path.cwd(), "temporary folder": Path(tempfile.gettempdir())}
    places |= {"compile cache": Path(cache)} if cache else {}
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=packages(),
        few_rows=few_rows(),
        devices=found,
        jax_error=error,
        accelerators=held,
        memory=memory(),
        disk={f"{name} {path}": free_disk(path) for name, path in places.items()},
        unwritable={f"{name} {path}": why for name, path in places.items() if (why := unwritable(path))},
        cache=cache,
        cache_bytes=sum(path.stat().st_size for path in Path(cache).glob("*")) if cache and Path(cache).is_dir() else 0,
        cores=cores(),
        load=load(),
        open_files=open_files(),
        environment={name: os.environ[name] for name in ("JAX_PLATFORMS", "XLA_FLAGS") if os.environ.get(name)},
        flags=flags(),
    )


def packages() -> dict[str, tuple[str | None, str]]:
    """Returns the packages that are needed, with the version that is installed and the least that is wanted."""
    try:
        wanted = importlib.metadata.requires("rwkv7-jax") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    found = {}
    for text in wanted:
        if "extra ==" not in text and (match := REQUIREMENT.match(text.split(";")[0])):
            found[match[1]] = (version(match[1]), match[2])
    return found | {"jaxlib": (version("jaxlib"), version("jax") or "")}


def few_rows() -> bool:
    """Returns whether the kernels for few rows on a CPU are there."""
    return cpu.available()


def version(package: str) -> str | None:
    """Returns the installed version; None: it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> tuple[tuple[Device, ...], str | None]:
    """Returns JAX's devices, or why there are none."""
    try:
        found = jax.devices()
    except RuntimeError as error:
        return (), str(error)
    stats = [device.memory_stats() or {} for device in found]
    pairs = zip(found, stats, strict=True)
    return tuple(Device(one.platform, one.device_kind, more.get("bytes_limit")) for one, more in pairs), None


def accelerators() -> tuple[Accelerator, ...]:
    """Returns the GPUs and TPUs that the system shows."""
    tpus = [path.name for pattern in ("accel[0-9]*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)]
    return (*_gpus(), *(Accelerator("tpu", name) for name in sorted(tpus)))


def _gpus() -> list[Accelerator]:
    """Those of NVIDIA."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]
    if shutil.which(asked[0]):
        try:
            told = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=3, check=True).stdout
            rows = [line.rsplit(",", 2) for line in told.splitlines() if line.count(",") >= 2]
            return [
                Accelerator("gpu", name.strip(), int(used) * 2**20, int(total) * 2**20) for name, used, total in rows
            ]
        except (OSError, subprocess.SubprocessError, ValueError):
            pass
    return [Accelerator("gpu", path.name) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def memory() -> tuple[int, int]:
    """Returns bytes of memory (free, in all), within the bounds of a container."""
    file = Path("/proc/meminfo")
    if file.is_file():
        rows = dict(line.split(":") for line in file.read_text(encoding="utf-8").splitlines())
        free, total = (1024 * int(rows[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    else:
        free = total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, use in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        bounds = [Path("/sys/fs/cgroup") / name for name in (limit, use)]
        try:
            most, used = (int(path.read_text(encoding="utf-8")) for path in bounds)
        except (OSError, ValueError):
            continue
        if most < total:
            free, total = min(free, most - used), most
    return max(0, free), total


def free_disk(path: Path) -> int:
    """Returns the bytes that are free where a folder is or will be."""
    return shutil.disk_usage(_there(path)).free


def unwritable(path: Path) -> str | None:
    """Returns why no file can be written into a folder; None if one can."""
    try:
        with tempfile.TemporaryFile(dir=_there(path)) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _there(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


def cache_folder() -> str | None:
    """Returns the folder of compiled programs."""
    use_compilation_cache()
    kept, folder = (
        getattr(jax.config, f"jax_{name}") for name in ("enable_compilation_cache", "compilation_cache_dir")
    )
    return folder if kept else None


def cores() -> tuple[int, int]:
    """Returns the number of cores (that this process may use, in all)."""
    count = os.cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count, count


def load() -> float:
    """Returns how many programs want a core, over the last minute."""
    return os.getloadavg()[0]


def open_files() -> int:
    """Returns how many files a process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def flags() -> dict[str, bool]:
    """Returns settings of JAX that change what is computed, and how fast."""
    return {name: bool(getattr(jax.config, f"jax_{name}")) for name in ("disable_jit", "debug_nans", "enable_x64")}


def describe(found: Machine) -> list[str]:
    """Returns lines about the machine."""
    kinds = dict.fromkeys(f"{one.platform} {one.kind}" for one in found.devices)
    shown = ", ".join(f"{sum(f'{d.platform} {d.kind}' == kind for d in found.devices)} x {kind}" for kind in kinds)
    named = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = ", ".join(f"{name} {found.packages[name][0]}" for name in named if name in found.packages)
    cache = f"{found.cache} ({found.cache_bytes / 1e6:.0f} MB)" if found.cache else "not kept"
    free, total = found.memory
    disk = ", ".join(f"{name} {count / GIB:.1f} GiB" for name, count in found.disk.items())
    return [
        f"machine: Python {found.python}, {found.system}, {versions}",
        f"devices: {shown or 'none'}; {found.cores[0]} of {found.cores[1]} cores, load {found.load:.1f}; memory "
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB free",
        f"compiled programs: {cache}; free disk: {disk}",
    ]


def judge(found: Machine) -> list[Finding]:
    """Returns what will make trouble on a machine, and what is good to know."""
    parts = (_software(found), _hardware(found), _folders(found))
    return [Finding("machine", text, fault) for part in parts for text, fault in part]


def _software(found: Machine) -> Iterator[tuple[str, bool]]:
    for name, (have, least) in found.packages.items():
        if have is None:
            yield f"the package {name} is missing; install it: pip install '{name}>={least}'", True
        elif name == "jaxlib" and have != least:
            yield f"jaxlib {have} beside jax {least}; install the same version: pip install jaxlib=={least}", True
        elif name != "jaxlib" and _numbers(have) < _numbers(least):
            yield f"{name} {have} is older than {least}; update it: pip install -U '{name}>={least}'", True
    if found.flags.get("disable_jit"):
        yield "JAX_DISABLE_JIT is set: every operation runs on its own, many times slower; unset it", True
    if found.flags.get("debug_nans"):
        yield "JAX_DEBUG_NANS is set: each step waits for a check; unset it when no NaN is looked for", False
    if found.flags.get("enable_x64"):
        yield "JAX_ENABLE_X64 is set: some numbers are float64 and results differ; unset it", True
    if SLOW_FLAG in found.environment.get("XLA_FLAGS", ""):
        yield f"XLA_FLAGS holds {SLOW_FLAG}: one core alone computes; take it out", True


def _hardware(found: Machine) -> Iterator[tuple[str, bool]]:
    if found.jax_error:
        wanted = found.environment.get("JAX_PLATFORMS")
        hint = f"JAX_PLATFORMS={wanted} asks for what is not there; unset it" if wanted else "reinstall jax and jaxlib"
        yield f"JAX has no device ({found.jax_error[:200]}); {hint}", True
    unused = {one.kind: one for one in found.accelerators}
    if found.devices and all(device.platform == "cpu" for device in found.devices):
        for kind, one in unused.items():
            wanted = found.environment.get("JAX_PLATFORMS")
            way = f"JAX_PLATFORMS={wanted} hides it: unset it" if wanted else f"install JAX for it: {EXTRAS[kind]}"
            yield f"there is a {kind.upper()} ({one.name}) and JAX uses the CPU alone; {way}", True
        if not found.few_rows:
            yield f"few sequences are generated at up to twice the speed with llvmlite: {EXTRAS['cpu']}", False
    for number, one in enumerate(found.accelerators):
        if 2 * one.used > one.total > 0:
            held = f"{one.used / GIB:.0f} of {one.total / GIB:.0f} GiB of {one.kind} {number} ({one.name})"
            yield f"another program holds {held}; end it, or choose another with CUDA_VISIBLE_DEVICES", True
    free, total = found.memory
    if free < LEAST_MEMORY:
        yield f"{free / GIB:.2f} of {total / GIB:.1f} GiB of memory are free; end other programs", True
    usable, count = found.cores
    if usable < count:
        yield f"this process may use {usable} of {count} cores (taskset or a container); give it more", usable == 1
    if found.load > 2 * usable:
        yield f"{found.load:.0f} programs want {usable} cores: timings say little, and runs are slow", False
    if found.open_files < LEAST_FILES:
        yield f"a process may open {found.open_files} files; allow more: ulimit -n 4096", True


def _folders(found: Machine) -> Iterator[tuple[str, bool]]:
    for place, why in found.unwritable.items():
        way = {
            "compile cache": "set JAX_COMPILATION_CACHE_DIR to a folder of yours",
            "temporary folder": "set TMPDIR to a folder of yours",
            "working folder": "change to a folder of yours, or give --output",
        }
        name = next(key for key in way if place.startswith(key))
        yield f"{place} cannot be written to ({why}); {way[name]}", True
    for place, free in found.disk.items():
        if free < LEAST_DISK:
            yield f"{free / 2**20:.0f} MiB are free in the {place}; make room, checkpoints need some", True
    if found.cache is None:
        yield "compiled programs are not kept, so that every start compiles anew; set JAX_COMPILATION_CACHE_DIR", False


def _numbers(text: str) -> tuple[int, ...]:
    """A version as numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])
