"""The Pallas calls: which blocks a program sees, and the state that its chunks hand on.

Tokens are [B, T, H * N] in memory, as a model leaves them: no transposes. A program owns a sequence and up to
MAX_PACKS packs of heads and walks over the chunks, the last grid dimension, with its states in VMEM scratch. States of
packs are [., packs, V, 128], lanes (head, key).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.chunked.layout import shape_like
from pallas_kernels.tpu import chunk, wide
from pallas_kernels.tpu.levels import make_spans
from pallas_kernels.tpu.packing import CHUNK, LANES, make_masks
from pallas_kernels.tpu.schedule import Stages, interleave

VMEM_LIMIT = 48 << 20
"""Bytes that a kernel may take, of 64 MiB on the smallest chip; the compiler's own limit is 16 MiB."""
MAX_PACKS = {"bfloat16": 16, "float32": 8}
"""Packs per program, by the dtype of the operands: more fill the gaps better but take longer to compile."""
MAX_WIDE_PACKS = {"bfloat16": 8, "float32": 4}
"""The same of the kernels for log_w down to -20, which hold more."""


class Plan(NamedTuple):
    """What a kernel needs to know beside its arrays.

    rule: its name; head: N; operand: dtype of the operands of products; reverse: chunks from the last to the first;
    interpret: as `pallas_call` takes it; wide: for log_w down to -20; unit: width of the matrix units, 128 or 256.
    """

    rule: str
    head: int
    operand: np.dtype
    reverse: bool
    interpret: bool | pltpu.InterpretParams
    wide: bool
    unit: int

    @property
    def pack(self) -> int:
        """Heads per pack."""
        return LANES // self.head


def _kernel(*refs, body: Callable[..., Stages], plan: Plan, resets: bool, counts: tuple[int, int, int]) -> None:
    """One grid step.

    refs: tokens read, states per chunk read, first states, segments if `resets`; tokens written, states per chunk
    written, last states; scratch. counts: of tokens read, states read, tokens written.
    """
    tokens, saved, written = counts
    inputs, refs = refs[: tokens + saved], refs[tokens + saved :]
    first, refs = refs[0], refs[1:]
    segment, refs = (refs[0], refs[1:]) if resets else (None, refs)
    *outputs, last, state = refs
    position, count = pl.program_id(2), pl.num_programs(2)

    @pl.when(position == 0)
    def _():
        state[...] = first[0]

    masks = make_masks(None if segment is None else segment[0, 0], plan.pack)
    if plan.wide:
        at = wide.Setting(masks, make_spans(plan.pack, plan.operand), plan.pack, plan.operand)
    else:
        at = chunk.Setting(masks, plan.pack, plan.operand, plan.unit)

    def one_pack(i: int) -> Stages[None]:
        lanes = slice(i * LANES, (i + 1) * LANES)
        arrays = [ref[0, :, lanes] for ref in inputs[:tokens]] + [ref[0, 0, i] for ref in inputs[tokens:]]
        before = state[i]
        *results, state[i] = yield from body(*(x.astype(jnp.float32) for x in arrays), before, at)
        for ref, result in zip(outputs[:written], results, strict=False):
            ref[0, :, lanes] = result.astype(ref.dtype)
        for ref in outputs[written:]:
            ref[0, 0, i] = before.astype(ref.dtype)

    interleave([one_pack(i) for i in range(state.shape[0])])

    @pl.when(position == count - 1)
    def _():
        last[0] = state[...]


def packs_per_program(packs: int, operand: DTypeLike, *, wide: bool = False) -> int:
    """Returns the largest divisor of `packs` up to MAX_PACKS or MAX_WIDE_PACKS."""
    most = (MAX_WIDE_PACKS if wide else MAX_PACKS)[jnp.dtype(operand).name]
    return max(n for n in range(1, most + 1) if packs % n == 0)


def call(
    body: Callable[..., Stages],
    plan: Plan,
    tokens: Sequence[Array],
    state: Array,
    segment: Array | None,
    *,
    saved: Sequence[Array] = (),
    out: Sequence[DTypeLike],
    save: DTypeLike | None = None,
) -> tuple[list[Array], list[Array], Array]:
    """Runs `body` over all chunks.

    Args:
        tokens: [B, n * C, packs * 128]; state: [B, packs, V, 128] float32; segment: [B, n, 1, pack * C] or None.
        saved: states per chunk to read, [n, B, packs, V, 128]; save: dtype of those to write, or None for none.
        out: dtypes of the arrays of tokens to write.

    Returns:
        (tokens written, states per chunk written, last state).
    """
    batch, length, width = tokens[0].shape
    packs, chunks = width // LANES, length // CHUNK
    here = packs_per_program(packs, plan.operand, wide=plan.wide)

    def at(t):
        return chunks - 1 - t if plan.reverse else t

    row = pl.BlockSpec((1, CHUNK, here * LANES), lambda i, j, t: (i, at(t), j))
    whole = pl.BlockSpec((1, here, plan.head, LANES), lambda i, j, t: (i, j, 0, 0))
    step = pl.BlockSpec((1, 1, here, plan.head, LANES), lambda i, j, t: (at(t), i, j, 0, 0))
    flags = pl.BlockSpec((1, 1, 1, plan.pack * CHUNK), lambda i, j, t: (i, at(t), 0, 0))
    resets = () if segment is None else (segment,)
    written = [shape_like(state, (batch, length, width), dtype) for dtype in out]
    states = [] if save is None else [shape_like(state, (chunks, *state.shape), save)]
    *results, last = pl.pallas_call(
        partial(_kernel, body=body, plan=plan, resets=bool(resets), counts=(len(tokens), len(saved), len(out))),
        grid=(batch, packs // here, chunks),
        in_specs=[row] * len(tokens) + [step] * len(saved) + [whole] + [flags] * len(resets),
        out_specs=[row] * len(out) + [step] * len(states) + [whole],
        out_shape=[*written, *states, shape_like(state, state.shape, jnp.float32)],
        scratch_shapes=[pltpu.VMEM((here, plan.head, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=plan.interpret,
        name=f"wkv7_{plan.rule}{'_wide' if plan.wide else ''}",
    )(*tokens, *saved, state, *resets)
    return results[: len(out)], results[len(out) :], last
