"""`python -m experiments.bench`: speed and memory of the whole model against its peers, as ratios, on this machine.

Every measurement is a process of its own (so that peak memory is its own), all stay alive, and they are timed in
turn, round after round; the best of all rounds counts. Peers (`pip install -e ".[peers]"`): PyPI `rwkv` (torch, CPU)
on the same random checkpoint, and keras-hub's RWKV7 on JAX with random weights of the same shape. Correct first: no
time is printed for logits that differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PREFILL, TUNE, DECODE = 512, 512, 32
TOLERANCE = 1e-3
SHAPES: dict[str, dict[str, Any]] = {
    "0.1B": {"vocab_size": 65536, "n_layer": 12, "n_embd": 768},
    "tiny": {"vocab_size": 512, "n_layer": 2, "n_embd": 128},
}


class Job(NamedTuple):
    """One measured process: who runs, what it does, and its unit of work in tokens."""

    who: str
    task: str
    tokens: int


JOBS = (
    Job("ours", "prefill", PREFILL),
    Job("rwkv", "prefill", PREFILL),
    Job("ours", "prefill, all logits", PREFILL),
    Job("keras-hub", "prefill, all logits", PREFILL),
    Job("ours", "decode", DECODE),
    Job("rwkv", "decode", DECODE),
    Job("ours", "state-tuning step", TUNE),
    Job("WKV as autodiffed scan", "state-tuning step", TUNE),
    Job("token-by-token scan", "state-tuning step", TUNE),
)


def make_checkpoint(path: Path, shape: str) -> None:
    """A random model in BlinkDL's .pth layout (bfloat16), away from the zeros of the official initialisation."""
    import jax
    import jax.numpy as jnp
    import ml_dtypes
    import numpy as np

    from rwkv7_jax import RWKV7, RWKV7Config, zero_state
    from rwkv7_jax.checkpoint import names, pth

    config = RWKV7Config(**SHAPES[shape])
    model = RWKV7(config)
    tree = jax.eval_shape(
        lambda key: model.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(config, 1)), jax.random.key(0)
    )["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = leaf.shape[-1] ** -0.5 if len(leaf.shape) > 1 else 0.2
        return (scale * rng.standard_normal(leaf.shape, np.float32)).astype(ml_dtypes.bfloat16)

    pth.write(path, names.params_to_flat(jax.tree.map(draw, tree)))


def tokens(count: int, vocab: int) -> list[int]:
    """The same pseudo-text for everybody."""
    return [(7919 * i + 13) % (vocab - 1) + 1 for i in range(count)]


def ours(task: str, checkpoint: Path) -> tuple[Callable[[], Any], list[float]]:
    """(function to time, logits after the prefill) of this project."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from rwkv7_jax import RWKV7, unstack_blocks, zero_state
    from rwkv7_jax import checkpoint as files

    loaded = files.load(checkpoint)
    config = dataclasses.replace(loaded.config, scan_layers=False)
    model, params = (
        RWKV7(config),
        unstack_blocks(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)),
    )
    state = zero_state(config, 1)
    prompt = jnp.asarray([tokens(PREFILL, config.vocab_size)], jnp.int32)
    step = jax.jit(lambda p, t, s: model.apply({"params": p}, t, s, last_only=task != "prefill, all logits"))
    logits, after = step(params, prompt, state)
    result = logits[0, -1].tolist()
    if task.startswith("prefill"):
        return lambda: jax.block_until_ready(step(params, prompt, state)), result

    def decode():
        token, current = jnp.argmax(logits[:, -1:], axis=-1), after
        for _ in range(DECODE):
            out, current = step(params, token, current)
            token = jnp.argmax(out[:, -1:], axis=-1)
        return token.block_until_ready()

    return decode, result


def tuning(who: str, checkpoint: Path) -> tuple[Callable[[], Any], list[float]]:
    """(one loss and gradient to S_0 over a text of TUNE tokens, [loss]): ours, or a naive lax.scan model."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from rwkv7_jax import RWKV7, zero_state
    from rwkv7_jax import checkpoint as files
    from state_tuning.objective import chunked_sums, completion_loss

    loaded = files.load(checkpoint)
    config = dataclasses.replace(loaded.config, wkv_implementation=None if who == "ours" else "scan")
    model, zero = RWKV7(config), zero_state(config, 1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)
    text = jnp.asarray([tokens(TUNE + 1, config.vocab_size)], jnp.int32)
    mask = jnp.ones((1, TUNE), jnp.float32)

    def loss(wkv, params):
        variables, state = {"params": params}, zero._replace(wkv=wkv)
        if who == "ours":
            hidden, _ = model.apply(variables, text[:, :-1], state, method="hidden")
            head = lambda x: model.apply(variables, x, method="logits")  # noqa: E731
            nll, count = chunked_sums(hidden, head, text[:, 1:], mask, frozen_head=True)
            return nll.sum() / count.sum()
        if who == "token-by-token scan":

            def one(state, token):
                logits, state = model.apply(variables, token[None, None], state)
                return state, logits[:, 0]

            _, logits = jax.lax.scan(one, state, text[0, :-1])
            return completion_loss(jnp.moveaxis(logits, 0, 1), text[:, 1:], mask)
        return completion_loss(model.apply(variables, text[:, :-1], state)[0], text[:, 1:], mask)

    grad = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(grad(zero.wkv, params)), [float(grad(zero.wkv, params)[0])]


def rwkv_pip(task: str, checkpoint: Path) -> tuple[Callable[[], Any], list[float]]:
    """PyPI rwkv, float32 on CPU."""
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    import torch  # pyright: ignore[reportMissingImports]
    from rwkv.model import RWKV

    model = RWKV(model=str(checkpoint.with_suffix("")), strategy="cpu fp32")
    prompt = tokens(PREFILL, model.args.vocab_size)
    logits, state = model.forward(prompt, None)

    def decode():
        token, current = int(torch.argmax(logits)), [leaf.clone() for leaf in state]
        for _ in range(DECODE):
            out, current = model.forward([token], current)
            token = int(torch.argmax(out))
        return token

    return (lambda: model.forward(prompt, None)) if task == "prefill" else decode, logits.tolist()


def keras_hub(shape: str) -> tuple[Callable[[], Any], list[float]]:
    """keras-hub's RWKV7 backbone on JAX, jitted, random weights (speed alone is compared)."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras_hub as hub  # pyright: ignore[reportMissingImports]
    import numpy as np

    size = SHAPES[shape]
    backbone = hub.models.RWKV7Backbone(
        hidden_size=size["n_embd"], head_size=64, num_layers=size["n_layer"], vocabulary_size=size["vocab_size"],
        intermediate_dim=4 * size["n_embd"], dtype="float32",
    )  # fmt: skip
    ids = np.asarray([tokens(PREFILL, size["vocab_size"])], np.int32)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    call = jax.jit(lambda weights, rest, inputs: backbone.stateless_call(weights, rest, inputs)[0])
    weights, rest = [v.value for v in backbone.trainable_variables], [v.value for v in backbone.non_trainable_variables]
    return lambda: jax.block_until_ready(call(weights, rest, inputs)), []


def importing(checkpoint: Path) -> tuple[Callable[[], Any], list[float]]:
    """Reading the .pth alone: every tensor is touched, as a copy to a device would."""
    import jax

    from rwkv7_jax import checkpoint as files

    return lambda: sum(float(leaf.reshape(-1)[0]) for leaf in jax.tree.leaves(files.load(checkpoint).params)), []


def work(who: str, task: str, checkpoint: Path, shape: str) -> None:
    """A measured process: set up, warm up, then time one call for every line on stdin."""
    started = time.perf_counter()
    if task == "import":
        call, result = importing(checkpoint)
    elif task == "state-tuning step":
        call, result = tuning(who, checkpoint)
    elif who == "keras-hub":
        call, result = keras_hub(shape)
    else:
        call, result = (ours if who == "ours" else rwkv_pip)(task, checkpoint)
    if task != "import":
        call()
    print(json.dumps({"result": result, "set_up_s": time.perf_counter() - started}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "peak": peak_memory()}), flush=True)


def peak_memory() -> int:
    """Largest resident memory of this process so far in bytes (Linux; ru_maxrss would include the parent's)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


class Worker:
    """The parent's end of one measured process."""

    def __init__(self, job: Job, checkpoint: Path, shape: str):
        command = [sys.executable, "-m", "experiments.bench", "--worker", job.who, job.task]
        command += ["--checkpoint", str(checkpoint), "--shape", shape]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.seconds, self.peak = float("inf"), 0
        self.result = self.read()["result"]

    def read(self) -> dict[str, Any]:
        """The next JSON line; other output (banners of peers) is passed over.

        Raises: RuntimeError with the process's last line of error if it ended.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        assert self.process.stderr is not None
        raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["ended without a word"])[-1])

    def measure(self) -> None:
        """Time one call."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        row = self.read()
        self.seconds, self.peak = min(self.seconds, row["seconds"]), max(self.peak, row["peak"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def start(jobs: tuple[Job, ...], checkpoint: Path, shape: str) -> tuple[dict[Job, Worker], dict[Job, str]]:
    """Running workers, and why the others do not run."""
    workers, missing = {}, {}
    for job in jobs:
        print(f"starting {job.who}: {job.task}", file=sys.stderr, flush=True)
        try:
            workers[job] = Worker(job, checkpoint, shape)
        except RuntimeError as error:
            missing[job] = str(error)
    return workers, missing


def disagreement(workers: dict[Job, Worker]) -> dict[Job, str]:
    """Jobs whose result is not the one that it is compared with: PyPI rwkv's logits, or our own loss."""
    wrong = {}
    for job, worker in workers.items():
        tuning = job.task == "state-tuning step"
        peers = (
            w for j, w in workers.items() if (j.who == "ours" and j.task == job.task if tuning else j.who == "rwkv")
        )
        wanted = next((peer.result for peer in peers if peer.result), None)
        if not worker.result or not wanted:
            continue
        scale = max(abs(x) for x in wanted)
        error = max(abs(x - y) for x, y in zip(worker.result, wanted, strict=True)) / scale
        if not error <= TOLERANCE:
            wrong[job] = f"wrong: differs by {error:.1e}"
    return wrong


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| task | who | tokens/s | ours is faster by | peak memory |", "|---|---|---|---|---|"]
    for row in rows:
        if "problem" in row:
            lines.append(f"| {row['task']} | {row['who']} | not measured: {row['problem']} | | |")
            continue
        ratio = "" if row["who"] == "ours" else f"{row['ratio']:.2f}x"
        lines.append(
            f"| {row['task']} | {row['who']} | {row['tokens_per_s']:.0f} | {ratio} | {row['peak'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def compare(shape: str, rounds: int, without: list[str]) -> dict[str, Any]:
    """All measurements as one JSON value, but for those of whom `without` names."""
    jobs = tuple(job for job in JOBS if job.who not in without)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pth"
        make_checkpoint(checkpoint, shape)
        size = checkpoint.stat().st_size
        importer = Worker(Job("ours", "import", 0), checkpoint, shape)
        importer.measure()
        importer.close()
        workers, missing = start(jobs, checkpoint, shape)
        missing |= disagreement(workers)
        for index in range(rounds):
            print(f"round {index + 1} of {rounds}", file=sys.stderr, flush=True)
            for job, worker in workers.items():
                if job not in missing:
                    worker.measure()
        for worker in workers.values():
            worker.close()
    best = {job.task: workers[job].seconds for job in workers if job.who == "ours"}
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"task": job.task, "who": job.who}
        if job in missing:
            rows.append(row | {"problem": missing[job]})
            continue
        seconds = workers[job].seconds
        row |= {"tokens_per_s": job.tokens / seconds, "ratio": seconds / best[job.task], "peak": workers[job].peak}
        rows.append(row)
    return {
        "shape": shape, "rounds": rounds, "rows": rows,
        "import": {"seconds": importer.seconds, "peak": importer.peak, "file": size},
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="0.1B")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times that everybody is measured in turn; the best counts"
    )
    names = ", ".join(sorted({job.who for job in JOBS} - {"ours"}))
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help=f"leave out one of: {names}")
    parser.add_argument("--json", type=Path, help="write all numbers to this file too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        who, task = args.worker
        work(who, task, args.checkpoint, args.shape)
        return 0
    result = compare(args.shape, args.rounds, args.without)
    print(table(result["rows"]))
    found = result["import"]
    print(f"\nimport of the .pth: {found['seconds']:.1f} s, peak memory {found['peak'] / found['file']:.2f} x the file "
          f"({found['file'] / 2**20:.0f} MiB), the interpreter and JAX included")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
