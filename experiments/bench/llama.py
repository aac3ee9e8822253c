"""llama.cpp's steps, by the C functions of the library inside the wheel `xllamacpp`.

Only fields of C structures are used that can be recognised by their defaults; another layout is an error, not a guess.
"""

import ctypes
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.bench.inputs import PROMPT, SHAPES, STEP, Timed, decoded, tokens

CONTEXT = (512, 2048, 512, 1)
"""Defaults of the first fields: places, tokens of a call, tokens of a pass, sequences."""
BYTES = {"float32": 4.0, "bfloat16": 2.0, "q8_0": 34 / 32}
"""Bytes of a number in a matrix; 32 numbers of q8_0 share a scale of two."""
ERROR = 4
"""A log line of this level says what went wrong."""


class Settings(ctypes.Structure):
    """Larger than any of the library's structures of settings, which are handed over by value."""

    _fields_ = [("numbers", ctypes.c_uint32 * 128)]


class Batch(ctypes.Structure):
    """llama_batch: tokens, their places and sequences, and whose logits are wanted."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
POINTER, INT, BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "llama_log_set": (None, [LOG, POINTER]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Settings, []),
    "llama_context_default_params": (Settings, []),
    "llama_model_load_from_file": (POINTER, [ctypes.c_char_p, Settings]),
    "llama_init_from_model": (POINTER, [POINTER, Settings]),
    "llama_set_n_threads": (None, [POINTER, INT, INT]),
    "llama_model_size": (ctypes.c_uint64, [POINTER]),
    "llama_get_memory": (POINTER, [POINTER]),
    "llama_memory_clear": (None, [POINTER, BOOL]),
    "llama_batch_init": (Batch, [INT, INT, INT]),
    "llama_decode": (INT, [POINTER, Batch]),
    "llama_synchronize": (None, [POINTER]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [POINTER, INT]),
}


class Library(NamedTuple):
    """The library with the types of its functions declared."""

    call: dict[str, Callable]
    errors: list[str]
    kept: object
    """What the library calls back."""


def library_path() -> Path:
    """Returns the file of llama.cpp's library.

    Raises:
      ImportError: xllamacpp is not installed.
    """
    found = importlib.util.find_spec("xllamacpp")
    for place in (found and found.submodule_search_locations) or ():
        for file in sorted(Path(place).glob("xllamacpp*.so")):
            return file
    raise ImportError("xllamacpp is not installed")


def load_library() -> Library:
    """Loads it.

    Raises:
      ImportError: there is none, or it lacks a function.
    """
    path = library_path()
    library, call, errors = ctypes.CDLL(str(path)), {}, []
    for name, (result, arguments) in FUNCTIONS.items():
        if not hasattr(library, name):
            raise ImportError(f"{path.name} has no function {name}; install another version")
        call[name] = getattr(library, name)
        call[name].restype, call[name].argtypes = result, arguments

    @LOG
    def log(level: int, text: bytes, _: object) -> None:
        if level == ERROR:
            errors.append(text.decode("utf-8", "replace").strip())

    call["llama_log_set"](log, None)
    call["llama_backend_init"]()
    return Library(call, errors, log)


class Context:
    """A model and the states of some sequences.

    Raises:
      RuntimeError: one line, for a file that it does not read.
    """

    def __init__(self, file: Path, rows: int):
        self.library, self.rows = load_library(), rows
        call = self.call = self.library.call
        self.model = call["llama_model_load_from_file"](str(file).encode(), call["llama_model_default_params"]())
        if not self.model:
            raise RuntimeError((self.library.errors or ["llama.cpp did not load the file"])[0])
        settings = call["llama_context_default_params"]()
        if tuple(settings.numbers[: len(CONTEXT)]) != CONTEXT:
            raise RuntimeError("this version of llama.cpp has other settings; install another one")
        most = max(512, rows * PROMPT)
        settings.numbers[: len(CONTEXT)] = (most, most, 512, rows)
        self.context = call["llama_init_from_model"](self.model, settings)
        if not self.context:
            raise RuntimeError((self.library.errors or ["llama.cpp made no context"])[-1])
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        call["llama_set_n_threads"](self.context, threads, threads)
        self.batch, self.at = call["llama_batch_init"](rows * PROMPT, 0, 1), 0

    def restart(self) -> None:
        """Puts every sequence to the zero state."""
        self.call["llama_memory_clear"](self.call["llama_get_memory"](self.context), False)
        self.at = 0

    def feed(self, text: Sequence[int]) -> None:
        """Feeds the same tokens to every sequence; logits are computed after the last.

        Raises:
          RuntimeError: llama.cpp refuses.
        """
        self.batch.n_tokens = self.rows * len(text)
        for row in range(self.rows):
            for place, token in enumerate(text):
                index = row * len(text) + place
                self.batch.token[index], self.batch.pos[index] = token, self.at + place
                self.batch.n_seq_id[index], self.batch.seq_id[index][0] = 1, row
                self.batch.logits[index] = place == len(text) - 1
        if status := self.call["llama_decode"](self.context, self.batch):
            raise RuntimeError((self.library.errors or [f"llama_decode returns {status}"])[-1])
        self.call["llama_synchronize"](self.context)
        self.at += len(text)

    def logits(self, size: int) -> list[float]:
        """Returns those of the last sequence."""
        return np.ctypeslib.as_array(self.call["llama_get_logits_ith"](self.context, -1), (size,)).tolist()


def decoding(dtype: str, rows: int, file: Path, shape: str) -> Timed:
    """Returns the bare step, and the logits of the last sequence after the prompt.

    Args:
      dtype: type of the file's matrices.
      rows: sequences.
      file: what `gguf_file.write` wrote.
      shape: of the model.
    """
    size, context = SHAPES[shape], Context(file, rows)
    context.feed(tokens(PROMPT, size.vocab_size))
    result = context.logits(size.vocab_size)

    def steps() -> None:
        context.restart()
        for _ in range(decoded(STEP, rows)):
            context.feed([5])

    embedding = int(size.vocab_size * size.n_embd * BYTES[dtype])
    return Timed({STEP: steps}, result, context.call["llama_model_size"](context.model) - embedding)
