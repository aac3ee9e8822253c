"""What `chunked.make_op` needs, on top of the kernels: op arrays to and from the layout of the kernels."""

from types import ModuleType
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import tpu as pallas_tpu
from jaxtyping import Float

from pallas_kernels import decode
from pallas_kernels.chunked.layout import OpInputs, Saved, pad_time
from pallas_kernels.support import only_on
from pallas_kernels.tpu import chunk
from pallas_kernels.tpu import wide as wide_chunk
from pallas_kernels.tpu.kernels import Plan, call
from pallas_kernels.tpu.packing import CHUNK, LANES

State = Float[Array, "B H V K"]
Values = Float[Array, "B T H V"]
Interpret: TypeAlias = bool | pallas_tpu.InterpretParams
"""Whether, and how, `pallas_call` runs a kernel without a TPU."""
UNITS_OF_256 = "TPU v6"
"""How the names of TPUs begin whose matrix units are 256 wide."""


def _on_tpu(s: State, interpret: Interpret) -> State:
    """The state, in a program for a TPU only unless the kernels are interpreted."""
    return s if interpret else only_on(s, "tpu", "tpu")


def matrix_unit() -> int:
    """Returns the width of the matrix units of the TPU that programs are compiled for; 128 where nothing names one."""
    named = jax.sharding.get_abstract_mesh().abstract_device
    kind = ""
    if named is not None and named.platform == "tpu":
        kind = named.device_kind
    elif jax.default_backend() == "tpu":
        kind = jax.devices()[0].device_kind
    return 256 if kind.startswith(UNITS_OF_256) else 128


def _plan(rule: str, x: OpInputs, interpret: Interpret, wide: bool, unit: int | None) -> Plan:
    """Products of bfloat16 operands if that is what all vectors are, else of float32."""
    half = all(z.dtype == jnp.bfloat16 for z in (x.r, x.k, x.v, x.a, x.b))
    operand = jnp.dtype(jnp.bfloat16 if half else jnp.float32)
    return Plan(rule, x.r.shape[3], operand, rule.endswith("backward"), interpret, wide, unit or matrix_unit())


def _bodies(wide: bool) -> ModuleType:
    """What computes a chunk. wide: for log_w down to -20."""
    return wide_chunk if wide else chunk


def _pack_heads(x: Array, axis: int, pack: int) -> Array:
    """Zeros for the heads that are missing in the last pack."""
    missing = -x.shape[axis] % pack
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x


def _tokens(x: Array, pack: int) -> Array:
    """[B, T, H, N] -> [B, n * C, packs * 128]."""
    x = _pack_heads(pad_time(x, CHUNK), 2, pack)
    return x.reshape(*x.shape[:2], -1)


def _forward_tokens(x: OpInputs, pack: int) -> list[Array]:
    """v last: what of a chunk does not depend on the state does not depend on v."""
    return [_tokens(z, pack) for z in (x.r, x.log_w, x.k, x.a, x.b, x.v)]


def _from_tokens(x: Array, like: Array) -> Array:
    """[B, n * C, packs * 128] -> the shape of `like` [B, T, H, N]."""
    _, length, heads, size = like.shape
    return x.reshape(*x.shape[:2], -1, size)[:, :length, :heads]


def _states(s: State, pack: int) -> Array:
    """[B, H, V, K] -> [B, packs, V, 128]."""
    s = _pack_heads(s, 1, pack)
    batch, heads, value, key = s.shape
    s = s.reshape(batch, heads // pack, pack, value, key)
    return jnp.moveaxis(s, 2, 3).reshape(batch, heads // pack, value, LANES)


def _from_states(s: Array, heads: int, pack: int) -> State:
    """[B, packs, V, 128] -> [B, H, V, K]."""
    batch, packs, value, _ = s.shape
    s = jnp.moveaxis(s.reshape(batch, packs, value, pack, -1), 3, 2)
    return s.reshape(batch, packs * pack, value, -1)[:, :heads]


def _segments(reset: Array | None, pack: int) -> Array | None:
    """Resets so far within each chunk, once per head of a pack: [B, n, 1, pack * C] float32."""
    if reset is None:
        return None
    reset = pad_time(reset, CHUNK)
    counts = jnp.cumsum(reset.reshape(reset.shape[0], -1, 1, CHUNK), axis=-1, dtype=jnp.float32)
    return jnp.concatenate([counts] * pack, -1)


def forward(
    x: OpInputs, s0: State, *, interpret: Interpret = False, wide: bool = False, unit: int | None = None
) -> tuple[Values, State]:
    """(y, s_T); a single token is a step of decoding.

    unit: width of the matrix units, of this rule and the others; None for `matrix_unit()`.
    """
    s0 = _on_tpu(s0, interpret)
    if x.v.shape[1] == 1:
        return decode.forward(x, s0)
    plan = _plan("forward", x, interpret, wide, unit)
    tokens = _forward_tokens(x, plan.pack)
    first, segments = _states(s0, plan.pack), _segments(x.reset, plan.pack)
    (y,), _, last = call(_bodies(wide).forward, plan, tokens, first, segments, out=[x.v.dtype])
    return _from_tokens(y, x.v), _from_states(last, s0.shape[1], plan.pack)


def forward_saving(
    x: OpInputs, s0: State, *, interpret: Interpret = False, wide: bool = False, unit: int | None = None
) -> tuple[Values, State, Saved]:
    """(y, s_T, what the full backward needs): the states before all chunks, packed, and u as it lies in memory."""
    s0 = _on_tpu(s0, interpret)
    plan = _plan("forward_saving", x, interpret, wide, unit)
    tokens = _forward_tokens(x, plan.pack)
    (y, u), (states,), last = call(
        _bodies(wide).forward,
        plan,
        tokens,
        _states(s0, plan.pack),
        _segments(x.reset, plan.pack),
        out=[x.v.dtype, plan.operand],
        save=plan.operand,
    )
    saved = Saved(x, states, _from_tokens(u, x.v))
    return _from_tokens(y, x.v), _from_states(last, s0.shape[1], plan.pack), saved


def backward(
    saved: Saved,
    dy: Values,
    ds: State,
    *,
    interpret: Interpret = False,
    wide: bool = False,
    unit: int | None = None,
) -> tuple[Array, ...]:
    """Gradients of (r, log_w, k, v, a, b, s0), in their dtypes, from those of y and s_T."""
    x, ds = saved.inputs, _on_tpu(ds, interpret)
    plan = _plan("backward", x, interpret, wide, unit)
    tokens = [_tokens(z, plan.pack) for z in (*x[:6], saved.u, dy)]
    grads, _, first = call(
        _bodies(wide).backward,
        plan,
        tokens,
        _states(ds, plan.pack),
        _segments(x.reset, plan.pack),
        saved=[saved.states],
        out=[z.dtype for z in x[:6]],
    )
    return (
        *(_from_tokens(g, z) for g, z in zip(grads, x[:6], strict=True)),
        _from_states(first, ds.shape[1], plan.pack),
    )


def state_backward(
    x: OpInputs, dy: Values, ds: State, *, interpret: Interpret = False, wide: bool = False, unit: int | None = None
) -> State:
    """The gradient of s0 alone, from r, log_w, a, b and dy."""
    ds = _on_tpu(ds, interpret)
    plan = _plan("state_backward", x, interpret, wide, unit)
    tokens = [_tokens(z, plan.pack) for z in (x.r, x.log_w, x.a, x.b, dy)]
    last, segments = _states(ds.mT, plan.pack), _segments(x.reset, plan.pack)
    _, _, first = call(_bodies(wide).state_backward, plan, tokens, last, segments, out=[])
    return _from_states(first, ds.shape[1], plan.pack).mT
