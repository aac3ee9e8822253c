"""`@outputs` as LLVM IR: sums of products of rows of a weight with rows of activations.

Of a weight [O, K] and activations [R, K] it computes y[r, o] = sum_k weight[o, k] x[r, k], for a range of o. A row of
the weight is read once, in order, for `Form.rows` rows of activations at a time. How many there are does not change the
order of a sum, so that a row has the same bits alone and beside others.
"""

# llvmlite's annotations call most values None.
# pyright: reportArgumentType=false, reportReturnType=false, reportAssignmentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llvmlite import ir

LANES = 16
"""Numbers of a vector; LLVM divides it where the machine's are shorter."""

F32, I32, I64, POINTER = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.PointerType()
VECTOR = ir.VectorType(F32, LANES)
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
"""Size of a number of a weight, by kind."""

AHEAD = 2048
"""Weights are asked for so many bytes before they are used, where several rows or few bits keep the machine busy."""

JOB = ("weight", "scales", "x", "y", "outputs", "inputs", "rows", "groups")
"""The first fields of `%job`: four pointers, four sizes."""


class Form(NamedTuple):
    """What the registers of the machine hold."""

    sums: int
    """Partial sums of an output, which are independent of each other."""
    rows: int
    """Rows of activations at a time."""


def outputs(kind: str, grouped: bool, form: Form) -> str:
    """Returns the IR of `@outputs(ptr job, i64 begin, i64 end)`.

    Args:
      kind: numbers of the weight, a key of `BITS`. Of "int4" a byte holds two, of each group the first half in the low
        bits.
      grouped: whether a row has several scales, one a group; else it has one, with which the sum is multiplied.
      form: what the registers hold.
    """
    module = ir.Module()
    tiles = {rows: _tile(module, kind, grouped, form.sums, rows) for rows in {1, form.rows}}
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64, I64]), "outputs")
    function.linkage = "private"
    job, begin, end = function.args
    b = ir.IRBuilder(function.append_basic_block())
    weight, scales, x, y, count, inputs, rows, groups = (_field(b, job, at) for at in range(len(JOB)))
    row_bytes = b.udiv(b.mul(inputs, I64(BITS[kind])), I64(8))

    def at_output(output: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
        own = _at(b, weight, b.mul(output, row_bytes), 1)
        scale = _at(b, scales, b.mul(output, groups), 4)

        def at_rows(size: int) -> Callable:
            def body(row: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
                places = _at(b, x, b.mul(row, inputs), 4), _at(b, y, b.add(b.mul(row, count), output), 4)
                b.call(tiles[size], [own, scale, *places, inputs, count, groups])
                return []

            return body

        whole = b.mul(b.udiv(rows, I64(form.rows)), I64(form.rows))
        _loop(b, I64(0), whole, form.rows, [], at_rows(form.rows))
        _loop(b, whole, rows, 1, [], at_rows(1))
        return []

    _loop(b, begin, end, 1, [], at_output)
    b.ret_void()
    return "\n".join(line for line in str(module).splitlines() if not line.startswith("target "))


def _tile(module: ir.Module, kind: str, grouped: bool, sums: int, rows: int) -> ir.Function:
    """Returns the function that computes one output of `rows` rows."""
    signature = ir.FunctionType(ir.VoidType(), [POINTER] * 4 + [I64] * 3)
    function = ir.Function(module, signature, f"tile{rows}")
    function.linkage = "private"
    weight, scales, x, y, inputs, outputs, groups = function.args
    b = ir.IRBuilder(function.append_basic_block())
    xs = [_at(b, x, b.mul(I64(row), inputs), 4) for row in range(rows)]
    add = _by_groups if grouped else _by_row
    for row, total in enumerate(add(b, kind, sums, weight, scales, xs, inputs, groups)):
        b.store(total, _at(b, y, b.mul(I64(row), outputs), 4))
    b.ret_void()
    return function


def _by_row(b, kind, sums, weight, scales, xs, inputs, groups) -> list[ir.Value]:
    """Adds up a row that has one scale or none."""
    del groups
    step = LANES * sums
    whole = b.mul(b.udiv(inputs, I64(step)), I64(step))

    def add(k: ir.Value, found: Sequence[ir.Value], count: int) -> list[ir.Value]:
        found = list(found)
        for part in range(count):
            at = b.add(k, I64(part * LANES))
            (numbers,) = _numbers(b, kind, weight, at, ahead=len(xs) > 1)
            for row, x in enumerate(xs):
                held = row * sums + part
                found[held] = _fma(b, numbers, _vector(b, x, at), found[held])
        return found

    zeros = [_zero()] * (sums * len(xs))
    found = _loop(b, I64(0), whole, step, zeros, lambda k, found: add(k, found, sums))
    found = _loop(b, whole, inputs, LANES, found, lambda k, found: add(k, found, 1))
    totals = [_total(b, found[row * sums : (row + 1) * sums]) for row in range(len(xs))]
    if kind == "int8":
        scale = b.load(scales, typ=F32)
        return [b.fmul(total, scale) for total in totals]
    return totals


def _by_groups(b, kind, sums, weight, scales, xs, inputs, groups) -> list[ir.Value]:
    """Adds up a row group by group; the sums of a group are multiplied with its scale."""
    del sums
    size = b.udiv(inputs, groups)
    stored = b.udiv(size, I64(2)) if kind == "int4" else size

    def group(index: ir.Value, found: Sequence[ir.Value]) -> list[ir.Value]:
        first, first_stored = b.mul(index, size), b.mul(index, stored)

        def add(k: ir.Value, parts: Sequence[ir.Value]) -> list[ir.Value]:
            parts = list(parts)
            for half, numbers in enumerate(_numbers(b, kind, weight, b.add(first_stored, k), ahead=len(xs) > 1)):
                at = b.add(first, b.add(k, b.mul(stored, I64(half))))
                parts = [_fma(b, numbers, _vector(b, x, at), part) for x, part in zip(xs, parts, strict=True)]
            return parts

        parts = _loop(b, I64(0), stored, LANES, [_zero()] * len(xs), add)
        scale = _splat(b, b.load(_at(b, scales, index, 4), typ=F32))
        return [_fma(b, part, scale, total) for part, total in zip(parts, found, strict=True)]

    found = _loop(b, I64(0), groups, 1, [_zero()] * len(xs), group)
    return [_total(b, [vector]) for vector in found]


def _numbers(b: ir.IRBuilder, kind: str, weight: ir.Value, at: ir.Value, ahead: bool) -> list[ir.Value]:
    """Returns `LANES` numbers of a weight as floats; of "int4" two such vectors, the low and the high bits of as many
    bytes."""
    if ahead or BITS[kind] <= 8:
        _ask(b, _at(b, weight, b.add(at, I64(AHEAD * 8 // max(BITS[kind], 8))), max(BITS[kind] // 8, 1)))
    if kind == "float32":
        return [_vector(b, weight, at)]
    if kind == "bfloat16":
        raw = _load(b, weight, at, ir.IntType(16))
        wide = b.zext(raw, ir.VectorType(I32, LANES))
        return [b.bitcast(b.shl(wide, _all(I32, 16)), VECTOR)]
    raw = _load(b, weight, at, ir.IntType(8))
    if kind == "int8":
        return [b.sitofp(raw, VECTOR)]
    byte = ir.IntType(8)
    halves = b.and_(raw, _all(byte, 15)), b.lshr(raw, _all(byte, 4))
    return [b.sitofp(b.sub(half, _all(byte, 8)), VECTOR) for half in halves]


def _ask(b: ir.IRBuilder, pointer: ir.Value) -> None:
    """Asks for the cache line at an address, which may lie outside of the matrix."""
    types, name = [POINTER, I32, I32, I32], "llvm.prefetch.p0"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(ir.VoidType(), types), name)
    read, keep, data = I32(0), I32(3), I32(1)
    b.call(function, [pointer, read, keep, data])


def _loop(b: ir.IRBuilder, begin, end, step: int, values: Sequence[ir.Value], body: Callable) -> list[ir.Value]:
    """Builds `for i in range(begin, end, step): values = body(i, values)` and returns the values after it."""
    before = b.block
    check, inside, after = (b.append_basic_block(name) for name in ("check", "inside", "after"))
    b.branch(check)
    b.position_at_end(check)
    index = b.phi(I64)
    held = [b.phi(value.type) for value in values]
    b.cbranch(b.icmp_unsigned("<", index, end), inside, after)
    b.position_at_end(inside)
    made = body(index, held)
    for phi, first, later in zip([index, *held], [begin, *values], [b.add(index, I64(step)), *made], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, b.block)
    b.branch(check)
    b.position_at_end(after)
    return held


def _field(b: ir.IRBuilder, job: ir.Value, at: int) -> ir.Value:
    return b.load(_at(b, job, I64(at), 8), typ=POINTER if at < 4 else I64)


def _at(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value, size: int) -> ir.Value:
    """Returns the address of number `index`, each of `size` bytes."""
    return b.gep(pointer, [b.mul(index, I64(size))], source_etype=ir.IntType(8))


def _load(b: ir.IRBuilder, pointer: ir.Value, at: ir.Value, number: ir.Type) -> ir.Value:
    size = 4 if number == F32 else number.width // 8
    return b.load(_at(b, pointer, at, size), typ=ir.VectorType(number, LANES), align=size)


def _vector(b: ir.IRBuilder, pointer: ir.Value, at: ir.Value) -> ir.Value:
    return _load(b, pointer, at, F32)


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    name = f"llvm.fmuladd.v{LANES}f32"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(VECTOR, [VECTOR] * 3), name)
    return b.call(function, [x, y, z])


def _total(b: ir.IRBuilder, vectors: Sequence[ir.Value]) -> ir.Value:
    """Returns the sum of all numbers of vectors, halving them: the order is that of pairs."""
    vectors = list(vectors)
    while len(vectors) > 1:
        vectors = [b.fadd(*pair) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
    (vector,), width = vectors, LANES
    while width > 1:
        width //= 2
        low, high = (_part(b, vector, range(first, first + width)) for first in (0, width))
        vector = b.fadd(low, high)
    return b.extract_element(vector, I32(0))


def _part(b: ir.IRBuilder, vector: ir.Value, lanes: Sequence[int]) -> ir.Value:
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), [I32(lane) for lane in lanes])
    return b.shuffle_vector(vector, vector, mask)


def _splat(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    one = b.insert_element(ir.Constant(VECTOR, ir.Undefined), value, I32(0))
    return _part(b, one, [0] * LANES)


def _all(number: ir.Type, value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(number, LANES), [number(value)] * LANES)


def _zero() -> ir.Constant:
    return ir.Constant(VECTOR, [F32(0.0)] * LANES)
