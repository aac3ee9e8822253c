"""A small training run through `experiments.training.loop`: linear regression by Adam on a shuffled Grain pipeline.

As a command it is what is killed, and what runs as one of several processes:

    python -m tests.experiments.training.loop_worker FOLDER [--pause SECONDS]
        [--coordinator HOST:PORT --processes N --process I]
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config.loop import LoopConfig
from experiments.training import loop
from experiments.training.metrics_log import MetricsLog
from experiments.training.preemption import Interrupt, Interrupted

STEPS, SIZE, ROWS = 24, 16, 8
SETTINGS = LoopConfig(checkpoint_every=4, log_every=2, compilation_cache=False)
OPTIMIZER = optax.adam(0.05)


class Regression:
    """Rows x with y = sum x, in an order that a seed fixes; `bad` are batches (counted from 1) that hold a NaN."""

    def __init__(self, bad=()):
        import grain

        dataset = grain.MapDataset.range(64).seed(7).shuffle().repeat().batch(ROWS)
        self.rows = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        self.bad, self.count = bad, 0

    def __iter__(self):
        return self

    def __next__(self):
        numbers = next(self.rows)
        self.count += 1
        x = np.stack([np.random.default_rng(int(n)).normal(size=SIZE) for n in numbers]).astype(np.float32)
        if self.count in self.bad:
            x[0, 0] = np.nan
        return {"x": x, "y": x.sum(1)}

    def get_state(self):
        return {"rows": self.rows.get_state(), "count": self.count}

    def set_state(self, state):
        self.rows.set_state(state["rows"])
        self.count = state["count"]


def fresh(mesh=None):
    """Weights and Adam's moments, cut along their only axis over a mesh."""
    w = np.zeros(SIZE, np.float32)
    with jax.numpy_dtype_promotion("standard"):
        state = jnp.asarray(w), OPTIMIZER.init(w)
    if mesh is None:
        return state
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), cut(mesh, leaf)), state)


def cut(mesh, leaf):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data") if leaf.ndim else whole())


def whole():
    return jax.sharding.PartitionSpec()


@functools.partial(jax.jit, donate_argnums=0)
def step(state, batch):
    w, moments = state
    value, grads = jax.value_and_grad(lambda w: jnp.mean((batch["x"] @ w - batch["y"]) ** 2))(w)
    with jax.numpy_dtype_promotion("standard"):
        updates, new = OPTIMIZER.update(grads, moments, w)
        new = optax.apply_updates(w, updates), new
    ok = jnp.isfinite(value)
    metrics = {"loss": value, "applied": ok, "seen": jnp.sum(batch["y"])}
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state), metrics


def task(steps=STEPS, bad=(), **changes):
    made = loop.Task(
        "small", step, Regression(bad), steps, "identity", tokens=lambda batch: batch["x"].size, values=("loss", "seen")
    )
    return made._replace(**changes)


def place(folder, interrupt=None):
    return loop.Place(folder, folder / "checkpoints", MetricsLog(folder / "metrics.jsonl"), interrupt or Interrupt())


def finish(folder, settings=SETTINGS, interrupt=None, **changes):
    """Run to the end; the last state as numpy."""
    folder.mkdir(exist_ok=True)
    rows = loop.train(task(**changes), fresh(), settings, place(folder, interrupt))
    return jax.tree.map(np.asarray, loop.drain(rows))


def untimed(folder):
    """The rows of metrics, of which a resumed run must have the same."""
    return [{k: v for k, v in row.items() if k != "timing"} for row in MetricsLog(folder / "metrics.jsonl").rows()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    args = parser.parse_args()
    if args.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def put(batch):
        time.sleep(args.pause)
        return {k: jax.make_array_from_callback(v.shape, cut(mesh, v), v.__getitem__) for k, v in batch.items()}

    args.folder.mkdir(exist_ok=True)
    state = fresh(mesh)
    try:
        with Interrupt() as interrupt:
            rows = loop.train(task(put=put), state, SETTINGS, place(args.folder, interrupt))
            del state
            last = loop.drain(rows)
    except Interrupted as where:
        print(f"process {args.process}: interrupted at {where}", flush=True)
        return
    last = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, whole()))(last)
    if jax.process_index() == 0:
        leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(last)]
        (args.folder / "last.json").write_text(json.dumps(leaves))
    print(f"process {args.process}: finished", flush=True)


if __name__ == "__main__":
    main()
