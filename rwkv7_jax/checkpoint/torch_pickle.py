"""The pickle inside a torch file, read without torch and without running anything.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever the file names; the
one here knows a fixed set of instructions and three constructors, and builds nothing but dicts, tuples, numbers,
strings and descriptions of tensors. Whatever else a file asks for is refused by name.

Its work is bounded: bytes, instructions, copied items, open marks, and the nesting and the size of what it builds,
where a value counts as often as it is reached. No message prints a container of the file, and no dict key is an
integer of more than 62 bits (multiples of 2^61 - 1 share a hash).
"""

import pickletools
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import numpy as np

from rwkv7_jax.checkpoint.files import BFLOAT16, CheckpointError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


MAX_BYTES = 2**24
"""Bytes of a pickle; one of 2,000 tensors has about 600,000."""
MAX_STEPS = 400_000
"""Instructions, copied items and values reached from the result, each; a tensor needs about 35 instructions."""
MAX_NESTING = 64


class StorageRef(NamedTuple):
    """A file entry `data/{key}` of `numel` numbers."""

    dtype: np.dtype
    key: str
    numel: int


class TensorRef(NamedTuple):
    """A strided view of a storage; offset and strides in numbers, all checked to be inside it."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Global(NamedTuple):
    """An allowed `module name` that the pickle mentions; a name, never the object."""

    name: str


def read_pickle(data: bytes) -> object:
    """Reads the object that a torch pickle describes, tensors as `TensorRef`; runs nothing from the file.

    Raises:
      CheckpointError: an instruction or global outside the fixed set, or more work than any tensor file needs.
      ValueError, IndexError, KeyError: damaged bytes (the caller's `guard` turns them into one line).
    """
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"refused pickle: {len(data)} bytes, no plain tensor file has more than {MAX_BYTES}")
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        machine.charge(1)
        run = getattr(machine, f"op_{opcode.name}", None)
        if run is None:
            raise CheckpointError(f"refused pickle instruction {opcode.name}: no plain tensor file needs it")
        run(argument)
    if len(machine.stack) != 1:
        raise ValueError("the pickle ends with a stack of wrong size")
    _check_size(machine.stack[0])
    return machine.stack[0]


def _check_size(tree: object) -> None:
    """Bounds the nesting of a value and the number of values reached from it, shared ones counted each time."""
    level, reached = [tree], 0
    for _ in range(MAX_NESTING):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict | list | tuple) and not isinstance(value, StorageRef | TensorRef | Global):
                reached += len(value)
                if reached > MAX_STEPS:
                    raise CheckpointError(f"refused pickle: it describes more than {MAX_STEPS} values")
                inner.extend(value.values() if isinstance(value, dict) else value)
        if not inner:
            return
        level = inner
    raise CheckpointError(f"refused pickle: values nested in more than {MAX_NESTING} levels")


class _Machine:
    """One method an allowed instruction, named as in `pickletools`."""

    def __init__(self):
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.steps = 0

    def charge(self, steps: int) -> None:
        """Counts work."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"refused pickle: more than {MAX_STEPS} steps, no plain tensor file needs as many")

    def push(self, value: object) -> None:
        """Pushes a value."""
        self.stack.append(value)

    def nothing(self, _: object) -> None:
        """Ignores the instruction."""

    def remember(self, index: int) -> None:
        """Stores the top of the stack in the memo."""
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Pushes a value of the memo."""
        self.push(self.memo[index])

    def pop_to_mark(self) -> list[object]:
        """Pops all values above the last mark."""
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def pop(self, count: int) -> list[object]:
        """Pops `count` values, none of them below the last mark."""
        at = len(self.stack) - count
        if at < (self.marks[-1] if self.marks else 0):
            raise ValueError("the pickle takes more from its stack than is there")
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def store(self, target: object, pairs: list[object]) -> None:
        """Stores (key, value, key, value, ...) in a dict."""
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("the pickle stores items in something that is not a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_key(key)] = value

    def top_list(self) -> list:
        """Returns the list on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("the pickle appends to something that is not a list")
        return target

    op_PROTO = op_FRAME = op_STOP = nothing
    op_BININT = op_BININT1 = op_BININT2 = op_LONG1 = op_BINFLOAT = push
    op_BINUNICODE = op_SHORT_BINUNICODE = push
    op_BINPUT = op_LONG_BINPUT = remember
    op_BINGET = op_LONG_BINGET = recall

    def op_MEMOIZE(self, _: object) -> None:
        """Stores the top of the stack under the next number."""
        self.remember(len(self.memo))

    def op_NONE(self, _: object) -> None:
        """Pushes None."""
        self.push(None)

    def op_NEWTRUE(self, _: object) -> None:
        """Pushes True."""
        self.push(True)

    def op_NEWFALSE(self, _: object) -> None:
        """Pushes False."""
        self.push(False)

    def op_MARK(self, _: object) -> None:
        """Marks the top of the stack."""
        if len(self.marks) == MAX_NESTING:
            raise CheckpointError(f"refused pickle: more than {MAX_NESTING} open marks")
        self.marks.append(len(self.stack))

    def op_EMPTY_DICT(self, _: object) -> None:
        """Pushes a new dict."""
        self.push({})

    def op_EMPTY_LIST(self, _: object) -> None:
        """Pushes a new list."""
        self.push([])

    def op_EMPTY_TUPLE(self, _: object) -> None:
        """Pushes an empty tuple."""
        self.push(())

    def op_TUPLE(self, _: object) -> None:
        """Makes a tuple of all values above the last mark."""
        self.push(tuple(self.pop_to_mark()))

    def op_TUPLE1(self, _: object) -> None:
        """Makes a tuple of the last value."""
        self.push(tuple(self.pop(1)))

    def op_TUPLE2(self, _: object) -> None:
        """Makes a tuple of the last two values."""
        self.push(tuple(self.pop(2)))

    def op_TUPLE3(self, _: object) -> None:
        """Makes a tuple of the last three values."""
        self.push(tuple(self.pop(3)))

    def op_SETITEM(self, _: object) -> None:
        """Stores one item in the dict below it."""
        pair = self.pop(2)
        self.store(self.stack[-1], pair)

    def op_SETITEMS(self, _: object) -> None:
        """Stores all items above the last mark in the dict below them."""
        pairs = self.pop_to_mark()
        self.store(self.stack[-1], pairs)

    def op_APPEND(self, _: object) -> None:
        """Appends one value to the list below it."""
        (value,) = self.pop(1)
        self.top_list().append(value)

    def op_APPENDS(self, _: object) -> None:
        """Appends all values above the last mark to the list below them."""
        values = self.pop_to_mark()
        self.top_list().extend(values)

    def op_GLOBAL(self, argument: str) -> None:
        """Pushes an allowed name."""
        self.push(_allowed(argument))

    def op_STACK_GLOBAL(self, _: object) -> None:
        """Pushes an allowed name that lies on the stack."""
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global's name is not text")
        self.push(_allowed(f"{module} {name}"))

    def op_BINPERSID(self, _: object) -> None:
        """Pushes a reference to a storage."""
        (identity,) = self.pop(1)
        self.push(_storage(identity))

    def op_REDUCE(self, _: object) -> None:
        """Calls an allowed constructor."""
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or function.name not in CONSTRUCTORS or not isinstance(arguments, tuple):
            raise CheckpointError("refused pickle: it calls something that is not a tensor constructor")
        self.charge(sum(len(value) for value in (arguments, *arguments) if isinstance(value, dict | list | tuple)))
        self.push(CONSTRUCTORS[function.name](*arguments))

    def op_BUILD(self, _: object) -> None:
        """Drops attributes of an ordered dict (torch's `_metadata`)."""
        target, _ = self.pop(2)
        if not isinstance(target, dict):
            raise CheckpointError("refused pickle: it sets attributes of something that is not a dict")
        self.push(target)


def _allowed(name: str) -> Global:
    module, _, attribute = name.partition(" ")
    if name not in CONSTRUCTORS and not (module == "torch" and attribute in STORAGES):
        raise CheckpointError(
            f"refused pickle: it asks for {module}.{attribute}, which no plain tensor file needs; "
            "save model.state_dict() alone"
        )
    return Global(name)


def _storage(identity: object) -> StorageRef:
    """Reads ('storage', type, key, location, numel), as torch.save writes it."""
    kind, storage, key, _, numel = cast(tuple, identity)
    module, _, name = storage.name.partition(" ")
    if kind != "storage" or module != "torch" or not isinstance(key, str) or not _is_size(numel):
        raise ValueError("a storage reference is not of torch's form")
    return StorageRef(STORAGES[name], key, numel)


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> TensorRef:
    """Makes a tensor, checked to lie inside its storage. Source: torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, StorageRef) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor is not of torch's form")
    if len(shape) > 8 or len(strides) > 8 or not all(type(value) is int for value in (offset, *shape, *strides)):
        raise CheckpointError("a tensor has more than 8 axes, or an offset, shape or strides that are not integers")
    if len(shape) != len(strides) or not all(map(_is_size, (offset, *shape, *strides))):
        raise CheckpointError(f"a tensor has offset {offset}, shape {shape}, strides {strides}: not a sound view")
    offset, shape, strides = cast(tuple[int, tuple[int, ...], tuple[int, ...]], (offset, shape, strides))
    numel = int(np.prod(shape, dtype=object))
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if numel and last >= storage.numel:
        raise CheckpointError(f"a tensor of shape {shape} reaches beyond its storage of {storage.numel} numbers")
    return TensorRef(storage, offset, shape, strides)


def _rebuild_parameter(data: object, *_: object) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise ValueError("a parameter is not a tensor")
    return data


def _ordered_dict(items: Iterable[tuple[object, object]] = ()) -> dict:
    out: dict = {}
    for key, value in items:
        out[_key(key)] = value
    return out


def _key(key: object) -> str | int:
    """Returns a dict's key, checked: text, or an integer below 2^62, of which no more than a few share a hash."""
    if not isinstance(key, str | int) or (isinstance(key, int) and abs(key) >= 2**62):
        raise ValueError("a dict key is neither text nor a small number")
    return key


def _size(values: Iterable[object]) -> tuple:
    return tuple(values)


CONSTRUCTORS: dict[str, Callable[..., object]] = {
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "collections OrderedDict": _ordered_dict,
    "torch Size": _size,
    "__builtin__ set": _size,
    "builtins set": _size,
}


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62
