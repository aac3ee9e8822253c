"""What two servers are measured on: the same random weights for each, a vocabulary, states, and requests."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.bench import gguf_file
from experiments.bench.inputs import SHAPES
from experiments.bench.weights import make_checkpoint, make_gguf
from rwkv7_jax import RWKV7Config, save_state, zero_state
from rwkv7_jax.tokenizer import WorldTokenizer

OURS, PEER = "ours", "llama.cpp"
STATES = ("first", "second")
"""Names of two states."""
PROMPT = 32
"""Tokens of a prompt while streams are counted."""


class Files(NamedTuple):
    """The same weights for both servers."""

    shape: str
    checkpoint: Path
    tokenizer: str
    states: Path
    problem: str
    """Why llama.cpp has no file."""

    def words(self, who: str, slots: int) -> list[str]:
        """Returns the command line of a server."""
        if who == PEER:
            file = gguf_file.beside(self.checkpoint, "float32")
            return [sys.executable, "-m", "experiments.bench.llama_server", str(file), str(slots)]
        own = ["--model.checkpoint", str(self.checkpoint), "--model.tokenizer", self.tokenizer]
        return [*command(slots), *own, "--model.dtype", "float32", "--states", str(self.states)]


def command(slots: int) -> list[str]:
    """Returns the command line of our server, without a model."""
    return [sys.executable, "-m", "experiments.cli", "serve", "--slots", str(slots), "--port", "0", "--quiet"]


def prepare(folder: Path, shape: str, peer: bool) -> Files:
    """Writes the weights for both, the vocabulary, and two states."""
    size, checkpoint, states = SHAPES[shape], folder / "random.pth", folder / "states"
    make_checkpoint(checkpoint, shape)
    tokenizer, problem = write_vocabulary(folder / "vocabulary.txt", size.vocab_size), ""
    if peer:
        tokens = WorldTokenizer(None if tokenizer == "auto" else tokenizer)
        spelled = [tokens.decode_bytes([token]) if token < tokens.used else b"" for token in range(size.vocab_size)]
        try:
            make_gguf(checkpoint, shape, "float32", spelled)
        except ImportError as error:
            problem = str(error)
    states.mkdir()
    zero = zero_state(RWKV7Config(*size), None)
    for seed, name in enumerate(STATES):
        drawn = np.random.default_rng(seed).normal(0, 0.1, np.shape(zero.wkv)).astype(np.float32)
        save_state(states / f"{name}.safetensors", zero._replace(wkv=jnp.asarray(drawn)), metadata={})
    return Files(shape, checkpoint, tokenizer, states, problem)


def write_vocabulary(path: Path, size: int) -> str:
    """Returns "auto" where the World vocabulary fits; else writes single bytes and pairs, and returns the path."""
    if size >= 65536:
        return "auto"
    pairs = (bytes((97 + pair // 26, 97 + pair % 26)) for pair in range(26 * 26))
    spelled = [*(bytes([byte]) for byte in range(256)), *pairs][: size - 1]
    lines = [f"{token} {text!r} {len(text)}\n" for token, text in enumerate(spelled, 1)]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def prompt(seed: int, shape: str, length: int = PROMPT) -> list[int]:
    """Returns random tokens, others for each seed."""
    most = min(SHAPES[shape].vocab_size, 65530)
    return np.random.default_rng(seed).integers(1, most, length).tolist()


def greedy(tokens: Sequence[int], length: int) -> dict[str, object]:
    """Returns a request for an answer of so many tokens; where tokens end a text, llama.cpp goes on."""
    return {"prompt": list(tokens), "max_tokens": length, "temperature": 0, "ignore_eos": True}
