"""The Triton kernels: their numbers in Triton's own interpreter, and what is said where they cannot run."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import wkv7
from pallas_kernels.bench.shapes import GATE, Shape, make_example
from pallas_kernels.triton import launch as triton

NAMES = ("r", "log_w", "k", "v", "a", "b", "s0")

INTERPRET = """
import json, sys
import numpy as np
import torch
from pallas_kernels.gpu.parallel import make_weights
from pallas_kernels.triton import backward as triton_backward, kernels as triton_kernels, parallel, wide
triton_kernels.EXACT = "ieee"  # the interpreter knows no products of parts
constants, paths = json.loads(sys.argv[1]), sys.argv[2:]
x = {n: torch.tensor(z) for n, z in np.load(paths[0]).items()}
c = constants
blocks, saved = -(-c["V"] // c["VT"]), -(-(-(-c["T"] // c["C"])) // c["EVERY"])
grid, nan = (c["H"], blocks, c["B"]), float("nan")
vectors = [x[n] for n in ("r", "log_w", "k", "v", "a", "b")]
y, u, dv = (torch.full(x["v"].shape, nan) for _ in range(3))
s_last, ds0, state_only = (torch.full(x["s0"].shape, nan) for _ in range(3))
states = torch.full((saved, *x["s0"].shape), nan)
parts = [torch.full((blocks, *x["r"].shape), nan) for _ in range(5)]
triton_kernels.forward[grid](*vectors, x["reset"], x["s0"], y, s_last, states, u, **c, SAVE=True, SAVE_U=True)
grads = [*parts[:3], dv, *parts[3:]]
triton_backward.backward[grid](*vectors, x["reset"], states, u, x["dy"], x["ds"], *grads, ds0, **c)
fewer = {n: z for n, z in c.items() if n not in ("B", "EVERY")}
triton_kernels.state_backward[grid](
    x["r"], x["log_w"], x["a"], x["b"], x["reset"], x["dy"], x["ds"], state_only, **fewer
)
summed = [g if g is dv else g.sum(0) for g in grads]
out = dict(zip(("r", "log_w", "k", "v", "a", "b"), summed)) | {"y": y, "s_T": s_last, "s0": ds0, "alone": state_only}

n, b, h, k, v = -(-c["T"] // c["C"]), *(c[name] for name in ("B", "H", "K", "V"))
full = lambda *size: torch.full(size, nan)
all_values = {"VT": max(32, 1 << (v - 1).bit_length())}
each, grid = {name: z for name, z in c.items() if name != "EVERY"} | all_values, (h, n, b)
scan = {name: z for name, z in each.items() if name != "RESET"} | {"VT": c["VT"], "SAVE": True, "STAGES": 1}
chunks = lambda: (full(n, b, h, c["C"], c["C"]), full(n, b, h, k, k), full(n, b, h, v, k), full(n, b, h, 3, k))
inverse, step, change, factors = chunks()
shared = [*vectors, x["reset"], torch.tensor(np.array(make_weights(c["C"], np.dtype(np.float32))))]
parallel.prepare[grid](*shared, x["dy"], inverse, step, change, factors, **each, BACKWARD=False)
y, s_last, before, after, ds0 = (torch.full_like(z, nan) for z in (y, s_last, change, change, ds0))
parallel.scan[h, blocks, b](step, change, factors, x["s0"], s_last, before, **scan, REVERSE=False)
parallel.outputs[grid](*shared, inverse, factors, before, y, **each)
inverse, step, change, factors = chunks()
parallel.prepare[grid](*shared, x["dy"], inverse, step, change, factors, **each, BACKWARD=True)
parallel.scan[h, blocks, b](step, change, factors, x["ds"], ds0, after, **scan, REVERSE=True)
grads = [torch.full_like(z, nan) for z in vectors]
parallel.gradients[grid](*shared, inverse, factors, before, after, x["dy"], *grads, **each | {"KT": 64})
divided = dict(zip(("r", "log_w", "k", "v", "a", "b"), grads)) | {"y": y, "s_T": s_last, "s0": ds0}
out |= {f"divided {name}": z for name, z in divided.items()}

vectors[1] = x["gate"]
over_time = {name: z for name, z in c.items() if name != "EVERY"}
inverse, rb, ak, rk = (full(n, b, h, c["C"], c["C"]) for _ in range(4))
y, s_last, u, ds0, dz = (torch.full_like(z, nan) for z in (y, s_last, y, ds0, y))
before, after = (torch.full_like(change, nan) for _ in range(2))
given = [vectors[i] for i in (0, 1, 4, 5)]
wide.prepare[grid](*vectors[:3], *vectors[4:], x["reset"], inverse, rb, ak, rk, **each, LEVELS=4, WITH_K=True)
wide.forward[h, blocks, b](
    *vectors, x["reset"], inverse, rb, ak, rk, x["s0"], y, s_last, before, u, **over_time, SAVE=True
)
wide.state_backward[h, blocks, b](
    *given, x["reset"], inverse, rb, x["dy"], x["ds"], ds0, after, dz, **over_time, SAVE=True
)
grads = [torch.full_like(z, nan) for z in vectors]
wide.gradients[grid](*vectors, x["reset"], ak, rk, before, after, u, dz, x["dy"], *grads, **each, LEVELS=4)
wanted = dict(zip(("r", "log_w", "k", "v", "a", "b"), grads)) | {"y": y, "s_T": s_last, "s0": ds0}
inverse, rb, alone = (torch.full_like(z, nan) for z in (inverse, rb, ds0))
wide.prepare[grid](*vectors[:3], *vectors[4:], x["reset"], inverse, rb, ak, rk, **each, LEVELS=4, WITH_K=False)
wide.state_backward[h, blocks, b](
    *given, x["reset"], inverse, rb, x["dy"], x["ds"], alone, after, dz, **over_time, SAVE=False
)
out |= {f"wide {name}": z for name, z in (wanted | {"alone": alone}).items()}
np.savez(paths[1], **{n: z.numpy() for n, z in out.items()})
"""


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("triton", "torch")),
    reason="Triton's interpreter needs the packages triton and torch",
)
@pytest.mark.parametrize(
    ("tokens", "heads", "key", "value"),
    [(37, 2, 8, 20), (18, 1, 40, 50)],
    ids=["small heads", "heads of several parts"],
)
def test_kernels_match_the_oracle_in_the_interpreter(tmp_path, rng, oracle, error, tokens, heads, key, value):
    """With resets, a ragged last chunk, sizes that are no power of two, and the value axis in several blocks.

    The larger heads are added up in more than one part where the kernels do so, see `part_of`.
    """
    shape = Shape(1, tokens, heads, key, value)
    example = make_example(rng, shape)
    reset = rng.random((1, tokens)) < 0.1
    gate = make_example(rng, shape, GATE).inputs["log_w"]
    arrays = {**example.inputs, "dy": example.dy, "ds": example.ds, "reset": reset.astype(np.int32), "gate": gate}
    np.savez(tmp_path / "in.npz", **arrays)
    constants = {
        "B": 1, "T": tokens, "H": heads, "K": key, "V": value, "KT": max(16, 1 << (key - 1).bit_length()), "VT": 16,
        "C": 16, "EVERY": 2, "HALF": False, "RESET": True,
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", INTERPRET, json.dumps(constants), tmp_path / "in.npz", tmp_path / "out.npz"],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
    )
    result = dict(np.load(tmp_path / "out.npz"))
    strong = example._replace(inputs=example.inputs | {"log_w": gate})
    expected, wide = (oracle(x, np.ones_like(reset), reset) for x in (example, strong))
    expected |= {f"divided {n}": x for n, x in expected.items()} | {"alone": expected["s0"]}
    expected |= {f"wide {n}": x for n, x in wide.items()} | {"wide alone": wide["s0"]}
    errors = {n: error.max(result[n], x) for n, x in expected.items()}
    assert max(errors.values()) <= 1e-5, errors


def test_refusals():
    x, s0 = jnp.zeros((1, 3, 1, 16)), jnp.zeros((1, 1, 16, 16))
    expected = "'triton' needs jax-triton" if triton.missing() else "'triton' runs on an NVIDIA GPU only"
    with pytest.raises(ValueError, match=expected) as caught:
        wkv7(*[x] * 6, s0, implementation="triton")
    assert "\n" not in str(caught.value)


def test_more_saved_states_than_can_be_addressed_are_refused():
    def saving(vector, s0):
        return triton.Launch().forward_saving(triton.OpInputs(*[vector] * 6, None), s0)

    shapes = [jax.ShapeDtypeStruct(size, jnp.float32) for size in ((4096, 4096, 64, 64), (4096, 64, 64, 64))]
    with pytest.raises(ValueError, match="fewer than 2\\^31"):
        jax.eval_shape(saving, *shapes)
