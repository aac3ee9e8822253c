"""Runs that are killed by SIGKILL at random moments and started again until they are done: the result must be the same.

    python -m tests.experiments.training.kill_loop FOLDER --kills 1000 [--seed N] [--whole 0.1] [--minutes N]

This process has imported all that a run needs, and has neither threads nor a JAX backend: it forks each session of a
run instead of starting Python anew. A session is killed after a random amount of CPU time, or kills itself before a
random one of its operations on files (an audit hook counts them); Orbax writes arrays outside of Python, so the first
kind finds moments that the second does not. `--whole` is the share of runs that are `rwkv7 tune` from the command line
to the report; the others are the training loop alone (`loop_worker`).
"""

import os

os.environ.update(JAX_PLATFORMS="cpu", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", TQDM_DISABLE="1")
os.environ.update(XLA_FLAGS="--xla_force_host_platform_device_count=1", JAX_ENABLE_COMPILATION_CACHE="true")

import argparse
import collections
import gc
import json
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grain  # noqa: F401
import jax
import numpy as np
import orbax.checkpoint  # noqa: F401

from experiments import run, session  # noqa: F401
from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import save
from rwkv7_jax.checkpoint.names import expected_shapes, flat_to_params
from tests.experiments.training import loop_worker as small

OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
TICK = 1 / os.sysconf("SC_CLK_TCK")
SESSIONS = 6
"""Kills of one run at most."""
TUNE = (
    "--config jsonl --tune.steps 6 --tune.learning_rate 0.3 --data.batch_size 4 --evaluate.batch_size 4 "
    "--model.wkv scan --system.checkpoint_every 1 --report.sample_tokens 4 --report.plots false"
)


class Kind(NamedTuple):
    """What is run in a folder, and what of its result must be the same again."""

    name: str
    work: Callable[[Path], None]
    result: Callable[[Path], object]


class Ended(NamedTuple):
    """How a session ended."""

    status: int
    seconds: float
    """CPU time."""
    operation: str
    """On files, before which it killed itself."""
    count: int
    """Operations on files."""


def loop_kind() -> Kind:
    """The training loop, 24 steps and 6 checkpoints."""

    def work(folder: Path) -> None:
        leaves = jax.tree.leaves(small.finish(folder))
        (folder / "last.json").write_text(json.dumps([leaf.tolist() for leaf in leaves]))

    return Kind("loop", work, lambda folder: ((folder / "last.json").read_text(), small.untimed(folder)))


def tune_kind(folder: Path) -> Kind:
    """`rwkv7 tune` with a tiny model: 6 steps, a checkpoint each, measured before and after."""
    config = RWKV7Config(256, 2, 8, 4, 16, 2, 2, 2, 2)
    rng, folder = np.random.default_rng(0), folder / "tune-files"
    flat = {name: 0.3 * rng.standard_normal(shape) for name, shape in expected_shapes(config).items()}
    flat = {name: array.astype(np.float32) for name, array in flat.items()}
    save(folder / "tiny.safetensors", flat_to_params(flat))
    rows = [{"prompt": f"{i}", "completion": "ab" * (1 + i % 3)} for i in range(30)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--model.checkpoint", str(folder / "tiny.safetensors"), "--data.train", str(folder / "mine.jsonl")]

    def work(folder: Path) -> None:
        status = run.main([*TUNE.split(), *files, "--output", str(folder)])
        assert status == 0, f"exit status {status}"

    def result(folder: Path) -> object:
        body = json.loads((folder / "results.json").read_text())
        return body["sha256"], body["jobs"], small.untimed(folder), (folder / "jsonl/state.safetensors").read_bytes()

    return Kind("tune", work, result)


def die_at(folder: Path, number: int, told: int) -> None:
    """Kills this process before operation `number` on files below `folder`; writes how many there were to `told`."""
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        writes = event == "open" and bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if not (writes or event in OPERATIONS) or not isinstance(args[0], str | os.PathLike):
            return
        if str(args[0]).startswith(str(folder)):
            seen += 1
            os.pwrite(told, f"{seen:08d} {event} {Path(args[0]).name}\n".encode().ljust(200), 0)
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def session_of(kind: Kind, folder: Path, seconds: float = 0.0, number: int = 0) -> Ended:
    """One session in a fork, killed after so many CPU seconds or before this file operation (0: neither)."""
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads is not forked"
    path = folder.with_suffix(".told")
    told = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            out = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            die_at(folder, number, told)
            kind.work(folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    while seconds and _cpu(pid) < seconds and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.002)
    if seconds:
        time.sleep(random.random() * TICK)
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    text = os.pread(told, 200, 0).decode().strip()
    os.close(told)
    count, _, operation = text.partition(" ")
    ended = os.waitstatus_to_exitcode(status)
    log = folder.with_suffix(".log")
    assert ended in (0, -signal.SIGKILL), f"{kind.name}: a session fails\n{log.read_text()[-3000:]}"
    operation = re.sub(r"[0-9a-z_]{8}(?=\.tmp)|\d{6,}", "#", operation) if ended and number else ""
    return Ended(ended, usage.ru_utime + usage.ru_stime, operation, int(count or 0))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def _rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def phase(kind: Kind, folder: Path, before: int, since: float) -> str:
    """Where a run was when it was killed, by its files; `before`: rows of metrics at `since`, its session's start."""
    rows = _rows(folder)
    if any(path.stat().st_mtime > since for path in folder.rglob(".part_*")):
        return "a checkpoint half written"
    done = {"loop": small.STEPS // 2, "tune": 6}[kind.name]
    if rows >= done:
        return "after the last step"
    if rows <= before:
        return "before the first new row, resumed" if before else "before the first row"
    return "between steps"


def killed_until_done(kind: Kind, folder: Path, rng: random.Random, whole: Ended, kills: int) -> list[str]:
    """Kills a run up to so many times and lets it end; returns where it was killed."""
    places = []
    for _ in range(rng.randint(1, min(kills, SESSIONS))):
        before, since = _rows(folder), time.time()
        if rng.random() < 0.5:
            ended = session_of(kind, folder, number=rng.randint(1, whole.count))
        else:
            ended = session_of(kind, folder, seconds=max(TICK, rng.random() * whole.seconds))
        if ended.status == 0:
            break
        where = f"before {ended.operation}" if ended.operation else phase(kind, folder, before, since)
        places.append(f"{kind.name}: {where}")
    while session_of(kind, folder).status:
        pass
    return places


def main() -> int:
    """Kills until the number is reached; returns 1 at the first run that ends otherwise than an uninterrupted one."""
    parser = argparse.ArgumentParser(prog="python -m tests.experiments.training.kill_loop")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no more runs after this time")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(args.folder / "cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(args.folder / "cache" / "jax")
    jax.config.update("jax_compilation_cache_dir", str(args.folder / "cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    gc.collect()
    gc.freeze()  # what is imported is not looked through again in every session
    kinds, rng, begin = [loop_kind()], random.Random(args.seed), time.monotonic()
    if args.whole:
        kinds.append(tune_kind(args.folder))
    sound = {}
    for kind in kinds:
        session_of(kind, args.folder / f"{kind.name}-cold")
        sound[kind.name] = session_of(kind, args.folder / kind.name), kind.result(args.folder / kind.name)
    places, runs = collections.Counter(), 0
    while places.total() < args.kills and time.monotonic() - begin < 60 * args.minutes:
        kind, folder = kinds[rng.random() < args.whole], args.folder / f"{runs:06d}"
        whole, wanted = sound[kind.name]
        places.update(killed_until_done(kind, folder, rng, whole, args.kills - places.total()))
        runs += 1
        if kind.result(folder) != wanted:
            print(f"{kind.name} run {folder} of seed {args.seed} ends otherwise than an uninterrupted one")
            return 1
        left = [str(path) for path in folder.rglob("*") if path.name.startswith(".part_")]
        assert not left, left
        shutil.rmtree(folder)
    seconds = os.times().children_user + os.times().children_system
    for place, count in sorted(places.items()):
        print(f"{count:5} x {place}")
    print(
        f"{places.total()} kills in {runs} runs, all with the result of an uninterrupted one, "
        f"{seconds:.0f} s of CPU, {time.monotonic() - begin:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
