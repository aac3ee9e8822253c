"""Compiled programs of continuous batching: one shape each, for one model, number of slots and length of a chunk."""

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial

import jax
import numpy as np
from jaxtyping import PyTree

from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.inference.program_store import compiled
from rwkv7_jax.inference.slots import decode, empty, head, idle_rows, place, read, score, take
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import zero_state

WORKERS = 2
"""Programs compiled at a time: tracing holds one processor, and compiling uses others."""


class Program:
    """A function that is compiled once, for the shapes of its first arguments; it refuses others.

    Args:
      name: tells it from others, together with the shapes of its arguments; None: later processes compile it again.
      function: what it computes.
      donated: the argument whose memory is written over.
    """

    def __init__(self, name: str | None, function: Callable[..., PyTree], donated: int | None = None):
        self._name, self._function, self._donated = name, function, () if donated is None else (donated,)
        self._compiled: Callable[..., PyTree] | None = None
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether it is compiled."""
        return self._compiled is not None

    def compile(self, *args: PyTree) -> Callable[..., PyTree]:
        """Compiles for arrays, or shapes, like these, unless that was done before."""
        with self._lock:
            if self._compiled is None:
                self._compiled = compiled(self._name, self._function, args, self._donated)
            return self._compiled

    def __call__(self, *args: PyTree) -> PyTree:
        """Runs it."""
        return (self._compiled or self.compile(*args))(*args)


class Programs:
    """All programs for one model, number of slots and length of a chunk.

    `read` has one for a whole chunk, and two for shorter ends of prompts.
    """

    def __init__(self, model: RWKV7, count: int, chunk: int):
        self.model, self.count, self.chunk = model, count, chunk

        def program(name: str, function: Callable[..., PyTree], donated: int | None = None) -> Program:
            own = type(model) is RWKV7
            return Program(f"{name} {count} slots of {model!r}, chunks of {chunk}" if own else None, function, donated)

        self.empty = program("empty", partial(empty, model, count))
        self.place, self.take = program("place", place, 0), program("take", take)
        self.read = {size: program("read", partial(read, model, chunk), 1) for size in (chunk // 16, chunk // 4, chunk)}
        self.head, self.score = program("head", partial(head, model), 1), program("score", partial(score, model))
        self.decode = program("decode", partial(decode, model), 1)

    @property
    def compiled(self) -> int:
        """Number of programs that are compiled."""
        single = (self.empty, self.place, self.take, self.head, self.score, self.decode)
        return sum(program.ready for program in (*single, *self.read.values()))

    def compile(self, params: Params) -> Future[None]:
        """Compiles all that are not yet; returns once a short prompt can be answered.

        Returns:
          What is done when the others, which longer prompts and log-probabilities need, are there too.
        """
        c, shape = self.model.config, jax.ShapeDtypeStruct
        number, vector = shape((), np.int32), shape((c.vocab_size,), np.float32)
        slots = jax.eval_shape(partial(empty, self.model, self.count))
        x = shape((self.chunk, c.n_embd), c.activation_dtype)
        reads = [
            (program, (params, slots, number, shape((1, size), np.int32), shape((1, size), np.bool_)))
            for size, program in self.read.items()
        ]
        first: list[tuple[Program, tuple[PyTree, ...]]] = [
            (self.decode, (params, slots, idle_rows(self.count), number, number, vector)),
            reads[0],
            (self.head, (params, slots, number, x)),
            (self.place, (slots, number, jax.eval_shape(partial(zero_state, c, None)), vector)),
            (self.empty, ()),
        ]
        others = [
            *reads[1:],
            (self.take, (slots, number)),
            (self.score, (params, x, shape((self.chunk,), np.int32), number)),
        ]
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="rwkv7-compile") as pool:
            list(pool.map(lambda task: task[0].compile(*task[1]), first))
        rest: Future[None] = Future()
        threading.Thread(target=_finish, args=(others, rest), name="rwkv7-compile").start()
        return rest


def _finish(tasks: Sequence[tuple[Program, tuple[PyTree, ...]]], done: Future[None]) -> None:
    """Compiles one after another, so that answers go on beside, until it is done or cancelled."""
    try:
        for program, args in tasks:
            if done.cancelled():
                return
            program.compile(*args)
    except BaseException as error:
        if not done.cancelled():
            done.set_exception(error)
        return
    if not done.cancelled():
        done.set_result(None)


def programs_for(model: RWKV7, params: Params, count: int, chunk: int) -> Programs:
    """Returns the programs for weights like these; engines of one shape share them."""
    leaves, tree = jax.tree.flatten(params)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    return _programs(type(model), model.config, tree, shapes, count, chunk)


@lru_cache(maxsize=8)
def _programs(
    kind: type[RWKV7], config: RWKV7Config, tree: Hashable, shapes: Hashable, count: int, chunk: int
) -> Programs:
    return Programs(kind(config), count, chunk)
