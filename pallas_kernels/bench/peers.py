"""WKV-7 of other libraries, where they can be imported: what `bench` times beside our implementations on a GPU.

A peer takes the arrays of `wkv7` and gives back jax arrays; its own tensors are made once, before the clock starts.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Prepared: TypeAlias = dict[str, object]
"""What a peer prepared, and the result of its last run."""


class Peer(NamedTuple):
    """One setting of one library.

    prepare(inputs, dy, ds) -> the state that `run` works on; run(state, task) starts the task once; wait(state) until
    all that was started is done; result(state) -> the arrays of the last run, as of the op's outputs or of
    the gradients of its inputs.
    """

    name: str
    prepare: Callable[[dict[str, Array], Array, Array], Prepared]
    run: Callable[[Prepared, str], None]
    wait: Callable[[Prepared], object]
    result: Callable[[Prepared], tuple[np.ndarray, ...]]


def available() -> tuple[list[Peer], list[str]]:
    """Returns (the peers of this machine, one line for each library that is not here)."""
    found, absent = [], []
    for library, make in (("fla", _flash_linear_attention), ("rwkv_ops", _rwkv_ops), ("ejkernel", _ejkernel)):
        if importlib.util.find_spec(library) is None:
            absent.append(f"{library}: not installed")
            continue
        try:
            found += make()
        except Exception as error:  # other people's libraries fail to import in their own ways
            absent.append(f"{library}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
    return found, absent


def _flash_linear_attention() -> Iterator[Peer]:
    """flash-linear-attention in torch: chunked with each chunk size (and tensor cores within blocks), recurrent."""
    import torch  # pyright: ignore[reportMissingImports]
    from fla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7  # type: ignore[import-not-found]

    def tensor(x, dtype):
        return torch.tensor(np.asarray(x, np.float32), dtype=dtype, device="cuda", requires_grad=True)

    def prepare(inputs, dy, ds):
        """Its state is [B, H, K, V]."""
        dtype = torch.bfloat16 if dy.dtype == jnp.bfloat16 else torch.float32
        turned = np.asarray(ds).swapaxes(2, 3)
        x = {n: tensor(z.swapaxes(2, 3) if n == "s0" else z, torch.float32 if n == "s0" else dtype)
             for n, z in ((n, np.asarray(z, np.float32)) for n, z in inputs.items())}  # fmt: skip
        return {"x": x, "cotangents": (tensor(dy, dtype).detach(), tensor(turned, torch.float32).detach())}

    def run(function, options, state, task):
        x = state["x"]
        with torch.set_grad_enabled(task != "forward"):
            y, s = function(
                r=x["r"], w=x["log_w"], k=x["k"], v=x["v"], a=x["a"], b=x["b"], scale=1.0, initial_state=x["s0"],
                output_final_state=True, **options,
            )  # fmt: skip
            state["result"] = (y, s)
            if task != "forward":
                wanted = list(x.values()) if task == "forward+backward" else [x["s0"]]
                state["result"] = torch.autograd.grad((y, s), wanted, state["cotangents"])

    def result(state):
        arrays = [z.detach().float().cpu().numpy() for z in state["result"]]
        return (*arrays[:-1], arrays[-1].swapaxes(2, 3))

    settings = [("chunk 16", chunk_rwkv7, {"chunk_size": 16}), ("recurrent", fused_recurrent_rwkv7, {})]
    settings += [(f"chunk {n} safe", chunk_rwkv7, {"chunk_size": n, "safe_gate": True}) for n in (16, 32, 64)]
    for name, function, options in settings:
        yield Peer(
            f"fla {name}", prepare, partial(run, function, options), lambda state: torch.cuda.synchronize(), result
        )


def of_jax(name: str, op: Callable[..., tuple[Array, Array]]) -> Peer:
    """Makes a peer of a JAX function of the seven inputs that gives (y, s_T). The loss keeps the forward."""

    def prepare(inputs, dy, ds):
        arrays = [jnp.asarray(x) for x in inputs.values()]

        def loss(*x):
            y, s = op(*x)
            return jnp.sum(y.astype(jnp.float32) * dy.astype(jnp.float32)) + jnp.sum(s.astype(jnp.float32) * ds)

        return {
            "arrays": arrays,
            "forward": jax.jit(op),
            "forward+backward": jax.jit(jax.value_and_grad(loss, argnums=tuple(range(7)))),
            "gradient of s0": jax.jit(jax.value_and_grad(loss, argnums=(6,))),
        }

    def run(state, task):
        out = state[task](*state["arrays"])
        state["result"] = out if task == "forward" else out[1]

    def result(state):
        return tuple(np.asarray(z, np.float32) for z in state["result"])

    return Peer(name, prepare, run, lambda state: jax.block_until_ready(state["result"]), result)


def _rwkv_ops() -> Iterator[Peer]:
    """rwkv-ops through Keras on JAX; w there is the logarithm of minus our log_w."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("KERNEL_TYPE", "triton")
    from rwkv_ops import rwkv7_op  # type: ignore[import-not-found]

    def op(r, log_w, k, v, a, b, s0):
        w = jnp.log(-log_w.astype(jnp.float32)).astype(log_w.dtype)
        return rwkv7_op(r, w, k, v, a, b, initial_state=s0, output_final_state=True)

    yield of_jax(f"rwkv-ops {os.environ['KERNEL_TYPE']}", op)


def _ejkernel() -> Iterator[Peer]:
    """ejkernel: its a writes and its b reads, the other way round; its state is [B, H, K, V]."""
    from ejkernel.modules import rwkv7  # type: ignore[import-not-found]

    def op(platform, r, log_w, k, v, a, b, s0):
        y, s = rwkv7(
            r, log_w, k, v, b, a, softmax_scale=1.0, initial_state=jnp.swapaxes(s0, 2, 3), return_state=True,
            platform=platform,
        )  # fmt: skip
        return y, jnp.swapaxes(s, 2, 3)

    for platform in ("triton", "xla"):
        yield of_jax(f"ejkernel {platform}", partial(op, platform))
