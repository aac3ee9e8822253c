"""The Pallas calls: which blocks a program sees, and the state that its chunks hand on.

Tokens are [B, T, H * N] in memory, as a model leaves them: no transposes. A program owns a sequence and up to
MAX_PACKS packs of heads and walks over the chunks, the last grid dimension, with its states in VMEM scratch. States of
packs are [., packs, V, 128], lanes (head, key).

Where the body of a chunk has two parts (`chunk.Body`) and the matrix units are 256 wide, the first part runs a chunk
ahead: what it leaves in scratch the second one reads in the next step of the grid, of which there is one more. Each
has work for the units that the other leaves idle. The first step ends what was never begun; its results are
overwritten by the next one, as its blocks are the same and the states are set only then.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.chunked.layout import shape_like
from pallas_kernels.tpu import chunk, wide
from pallas_kernels.tpu.chunk import Ahead, Body
from pallas_kernels.tpu.inverse import BASE
from pallas_kernels.tpu.levels import make_spans
from pallas_kernels.tpu.packing import CHUNK, LANES, make_masks
from pallas_kernels.tpu.schedule import Stages, interleave, returned

VMEM_LIMIT = 48 << 20
"""Bytes that a kernel may take, of 64 MiB on the smallest chip; the compiler's own limit is 16 MiB."""
MAX_PACKS = {"bfloat16": 16, "float32": 8}
"""Packs per program, by the dtype of the operands: more fill the gaps better but take longer to compile."""
MAX_WIDE_PACKS = {"bfloat16": 8, "float32": 4}
"""The same of the kernels for log_w down to -20, which hold more."""
SPREAD = 5
"""Rounds over which packs begin the part that runs ahead, when the other parts are about to multiply matrices."""


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

    def ahead(self, body: Callable[..., Stages]) -> Body | None:
        """The body if its first part runs a chunk ahead; with float32 operands products take nearly all time."""
        return body if isinstance(body, Body) and self.unit > LANES and self.operand == jnp.bfloat16 else None


Setting: TypeAlias = chunk.Setting | wide.Setting


class Read(NamedTuple):
    """References that a grid step reads: tokens, states before chunks, first states; with resets the segments of the
    chunk, and where a part runs ahead those of the chunk before it."""

    tokens: list
    states: list
    first: Any
    segments: list


class Written(NamedTuple):
    """References that a grid step writes: tokens, states before chunks, last states."""

    tokens: list
    states: list
    last: Any


def _kernel(
    read: Read, written: Written, state, kept: tuple[tuple, ...], *, body: Callable[..., Stages], plan: Plan
) -> None:
    """One grid step. state: states of all packs; kept: what the part that runs ahead leaves for the next step."""
    position, count, packs = pl.program_id(2), pl.num_programs(2), state.shape[0]
    segments = read.segments or [None, None]

    @pl.when(position == (1 if kept else 0))
    def _():
        _copy(read.first.at[0], state)

    def tokens(i: int) -> list[Array]:
        return [ref[0, :, i * LANES : (i + 1) * LANES].astype(jnp.float32) for ref in read.tokens]

    def states(i: int) -> list[Array]:
        return [ref[0, 0, i].astype(jnp.float32) for ref in read.states]

    def kept_of(i: int) -> Ahead:
        products, exact = (tuple(ref[i] for ref in part) for part in kept)
        return Ahead(products, exact)

    def begin(i: int, part: Stages[Ahead]) -> Stages[None]:
        made = yield from part
        for ref, value in zip(jax.tree.leaves(kept), jax.tree.leaves(made), strict=True):
            ref[i] = value.astype(ref.dtype)

    def finish(i: int, part: Callable[..., Stages], at: Setting, *given) -> Stages[None]:
        before = state[i]
        *results, state[i] = yield from part(*given, before, at)
        for ref, result in zip(written.tokens, results, strict=False):
            ref[0, :, i * LANES : (i + 1) * LANES] = result.astype(ref.dtype)
        for ref in written.states:
            ref[0, 0, i] = before.astype(ref.dtype)

    if kept:
        assert isinstance(body, Body)
        now, before = (_setting(segment, plan) for segment in segments)
        parts, starts = [], []
        for i in range(packs):
            *first, last = tokens(i)
            parts += [finish(i, body.after, before, kept_of(i), last), begin(i, body.ahead(*first, now))]
            starts += [0, BASE + 1 + i * SPREAD // packs]
        interleave(parts, plan.unit, starts)
    else:
        at = _setting(segments[0], plan)
        interleave([finish(i, body, at, *tokens(i), *states(i)) for i in range(packs)], plan.unit)

    @pl.when(position == count - 1)
    def _():
        _copy(state, written.last.at[0])


def _setting(segment, plan: Plan) -> Setting:
    """segment: a reference to the resets so far, or None."""
    masks = make_masks(None if segment is None else segment[0, 0], plan.pack)
    if plan.wide:
        return wide.Setting(masks, make_spans(plan.pack, plan.operand), plan.pack, plan.operand)
    return chunk.Setting(masks, plan.pack, plan.operand, plan.unit)


def _copy(source, target) -> None:
    """Pack by pack: what runs once a sequence is little code."""

    def one(i: Array, _: None) -> None:
        target[i] = source[i]

    jax.lax.fori_loop(0, target.shape[0], one, None)


def _kept(body: Callable[..., Stages], plan: Plan, tokens: int, packs: int) -> tuple[tuple, ...]:
    """Scratch for what the first part of a body leaves to the next step, if it runs ahead."""
    if (parts := plan.ahead(body)) is None:
        return ()
    token = jax.ShapeDtypeStruct((CHUNK, LANES), jnp.float32)
    made = jax.eval_shape(lambda *given: returned(parts.ahead(*given, _setting(None, plan))), *[token] * tokens)
    dtypes = plan.operand, jnp.float32
    return tuple(tuple(pltpu.VMEM((packs, *x.shape), d) for x in part) for d, part in zip(dtypes, made, strict=True))


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
    ahead = 0 if plan.ahead(body) is None else 1

    def at(t, behind: int = 0):
        """The chunk of a step; the first and the last step have that of their neighbours where there is none."""
        t = jnp.clip(t - behind, 0, chunks - 1) if ahead else t
        return chunks - 1 - t if plan.reverse else t

    def row(behind: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, CHUNK, here * LANES), lambda i, j, t: (i, at(t, behind), j))

    def flags(behind: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, 1, plan.pack * CHUNK), lambda i, j, t: (i, at(t, behind), 0, 0))

    whole = pl.BlockSpec((1, here, plan.head, LANES), lambda i, j, t: (i, j, 0, 0))
    step = pl.BlockSpec((1, 1, here, plan.head, LANES), lambda i, j, t: (at(t, ahead), i, j, 0, 0))
    segments = [] if segment is None else [segment] * (1 + ahead)
    specs = Read(
        [row(0)] * (len(tokens) - 1) + [row(ahead)],
        [step] * len(saved),
        whole,
        [flags(behind) for behind in range(len(segments))],
    )
    given = Read(list(tokens), list(saved), state, segments)
    results = Written(
        [shape_like(state, (batch, length, width), dtype) for dtype in out],
        [] if save is None else [shape_like(state, (chunks, *state.shape), save)],
        shape_like(state, state.shape, jnp.float32),
    )
    (found,) = pl.pallas_call(
        partial(_kernel, body=body, plan=plan),
        grid=(batch, packs // here, chunks + ahead),
        in_specs=(specs,),
        out_specs=(Written([row(ahead)] * len(out), [step] * len(results.states), whole),),
        out_shape=(results,),
        scratch_shapes=(
            pltpu.VMEM((here, plan.head, LANES), jnp.float32),
            _kept(body, plan, len(tokens) - 1, here),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=plan.interpret,
        name=f"wkv7_{plan.rule}{'_wide' if plan.wide else ''}",
    )(given)
    return found.tokens, found.states, found.last
