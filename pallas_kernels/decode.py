"""One token for many sequences, each with its own state: what generation does between two choices.

A step moves each state once in and once out and hardly computes: 2 V K 4 bytes and a few vectors per sequence and head.
On GPU and TPU one kernel does all of it and writes the state where it was read; XLA alone would read the state twice.
In a loop, or with the state donated to `jax.jit`, no copy is made.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pallas_tpu
from jax.experimental.pallas import triton as pallas_triton
from jaxtyping import Float

from pallas_kernels import reference
from pallas_kernels.chunked.layout import OpInputs, shape_like
from pallas_kernels.reference import Token

TPU_BLOCK = 1 << 20
"""Most bytes of states that one program of the TPU kernel has in fast memory; with both buffers, four times that."""

State = Float[Array, "B H V K"]
Step: TypeAlias = Callable[[Token, State], tuple[Array, Array]]


def forward(x: OpInputs, s: State) -> tuple[Float[Array, "B 1 H V"], State]:
    """Computes the op on a single token: (y, s_T) with the contract of `chunked.make_op`'s rule of this name."""
    y, s = step(Token(*jax.tree.map(lambda z: z[:, 0], x)), s)
    return y[:, None], s


def step(token: Token, s: State) -> tuple[Float[Array, "B H V"], State]:
    """Returns (y in the dtype of v, the new state).

    The kernel is chosen by the platform that the program is lowered for, and by the sizes of the heads.
    """
    value, key = s.shape[2:]
    choices: dict[str, Step] = {}
    if key == value and key in (16, 32, 64, 128):
        choices["cuda"] = gpu_step
    if key % 8 == 0 and value % 8 == 0:
        choices["tpu"] = tpu_step
    return lax.platform_dependent(token, s, default=xla_step, **choices)


def xla_step(token: Token, s: State) -> tuple[Float[Array, "B H V"], State]:
    """Computes a step without a kernel: on CPU, and for heads that no kernel has."""
    s, (y, _) = reference.step(s, token)
    return y.astype(token.v.dtype), s


def _update(token: Token, s: Array) -> tuple[Array, Array]:
    """(y [..., V], new state [..., V, K]) in float32, by products and sums alone; token holds [..., N] vectors."""
    r, log_w, k, v, a, b = (z.astype(jnp.float32) for z in token[:6])
    if token.reset is not None:
        s = jnp.where(token.reset != 0, jnp.zeros_like(s), s)
    sa = jnp.sum(s * a[..., None, :], axis=-1)
    s = s * jnp.exp(log_w)[..., None, :] + sa[..., None] * b[..., None, :] + v[..., None] * k[..., None, :]
    return jnp.sum(s * r[..., None, :], axis=-1), s


def gpu_step(token: Token, s: State, *, interpret: bool = False) -> tuple[Float[Array, "B H V"], State]:
    """Computes a step on a GPU: one program per sequence and head, the state in registers. K and V: powers of two."""

    def kernel(token_refs, s_ref, y_ref, out_ref):
        values = jax.tree.map(pallas_triton.load, token_refs)
        y, out = _update(values, pallas_triton.load(s_ref))
        pallas_triton.store(y_ref, y.astype(y_ref.dtype))
        pallas_triton.store(out_ref, out)

    batch, heads = s.shape[:2]
    params = pallas_triton.CompilerParams(num_warps=4, num_stages=1)
    return _call(kernel, token, s, (heads, batch), lambda h, b: (b, h), (None, None), params, interpret)


def tpu_step(
    token: Token, s: State, *, interpret: bool | pallas_tpu.InterpretParams = False
) -> tuple[Float[Array, "B H V"], State]:
    """Computes a step on a TPU: one program per sequence and block of heads.

    A block has as many heads as `TPU_BLOCK` holds, all or a multiple of 16.
    """

    def kernel(token_refs, s_ref, y_ref, out_ref):
        values = jax.tree.map(lambda ref: ref[...], token_refs)
        y, out_ref[...] = _update(values, s_ref[...])
        y_ref[...] = y.astype(y_ref.dtype)

    batch, heads, value, key = s.shape
    block = heads
    while block % 32 == 0 and 4 * block * value * max(key, 128) > TPU_BLOCK:
        block //= 2
    params = pallas_tpu.CompilerParams(dimension_semantics=("parallel", "parallel"))
    return _call(kernel, token, s, (batch, heads // block), lambda b, h: (b, h), (None, block), params, interpret)


def _call(
    kernel: Callable[..., None],
    token: Token,
    s: State,
    grid: tuple[int, int],
    index: Callable[..., tuple],
    block: tuple[int | None, int | None],
    params: pallas_triton.CompilerParams | pallas_tpu.CompilerParams,
    interpret: bool | pallas_tpu.InterpretParams,
) -> tuple[Array, Array]:
    """The kernel over `grid`, with the state in place. index: from grid indices to those of sequences and heads."""

    def spec(*rest: int) -> pl.BlockSpec:
        return pl.BlockSpec((*block, *rest), lambda *i: (*index(*i), *(0,) * len(rest)))

    value, key = s.shape[2:]
    specs = Token(*(None if z is None else spec(z.shape[-1]) for z in token[:6]), None)  # type: ignore[arg-type]
    if token.reset is not None:
        flag = jnp.broadcast_to(token.reset[:, None, None, None], (*s.shape[:2], 1, 1)).astype(jnp.int32)
        token, specs = token._replace(reset=flag), specs._replace(reset=spec(1, 1))
    leaves = len(jax.tree.leaves(token))
    return pl.pallas_call(
        kernel,
        out_shape=(shape_like(s, token.v.shape, token.v.dtype), shape_like(s, s.shape, s.dtype)),
        grid=grid,
        in_specs=(specs, spec(value, key)),
        out_specs=(spec(value), spec(value, key)),
        input_output_aliases={leaves: 1},
        compiler_params=params,
        interpret=interpret,
        name="wkv7_decode",
    )(token, s)
