"""Samples for learning from rewards: one compiled program of fixed shapes, each row from a state of its own.

Prompts are padded on the left to one length and answers have room for `max_new_tokens`, so that all steps of a run are
one program. Where a prompt's samples start from the same state, it is read once and its state is copied.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.finite import check_rows
from rwkv7_jax.functional import Params
from rwkv7_jax.generation import decode_loop
from rwkv7_jax.generation.decode_loop import Rules
from rwkv7_jax.generation.sampling import SamplingArrays, SamplingFlags, SamplingParams
from rwkv7_jax.generation.stop_strings import StopText, generated_text
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.model import RWKV7
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.sharding import host, place, row_sharding
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer import Tokenizer

__all__ = ["Drawn", "Prompts", "Sampler", "pad_prompts", "row_keys"]


class Prompts(NamedTuple):
    """Prompts of one length, padded on the left, where `valid` is False."""

    tokens: Int[Array | np.ndarray, "B T"]
    """Token ids, int32."""
    valid: Bool[Array | np.ndarray, "B T"]
    """False in the padding."""

    def take(self, index: Int[np.ndarray, "N"]) -> "Prompts":
        """Picks some of the prompts.

        Args:
          index: their numbers; one may stand there several times.

        Returns:
          These prompts, in this order.
        """
        return Prompts(self.tokens[index], self.valid[index])


class Drawn(NamedTuple):
    """What was sampled; the end token, where a row ended by itself, is among its tokens."""

    tokens: Int[np.ndarray, "R N"]
    """Token ids, int32; 0 behind the end of a sample."""
    counted: Float[np.ndarray, "R N"]
    """1 for a token of the sample, 0 behind its end."""
    texts: list[str]
    """Before the end token or the stop string."""
    finished: Bool[np.ndarray, "R"]
    """False: cut by max_new_tokens."""

    @property
    def lengths(self) -> Float[np.ndarray, "R"]:
        """Tokens of each sample."""
        return self.counted.sum(1)


def pad_prompts(prompts: Sequence[Sequence[int]]) -> Prompts:
    """Pads prompts of any lengths on the left to rows of one length.

    Args:
      prompts: token ids of each.

    Returns:
      The rows, on the host; T is the next of few lengths, so that few programs are compiled.

    Raises:
      ValueError: there is none, or one is empty.

    Example:
      >>> prompts = pad_prompts([[5, 6, 7], [9]])
      >>> prompts.tokens[:, -3:].tolist(), prompts.valid.sum(1).tolist()
      ([[5, 6, 7], [0, 0, 9]], [3, 1])
    """
    rows = [list(map(int, row)) for row in prompts]
    if not rows or not all(rows):
        raise ValueError("pad_prompts: give prompts of at least one token")
    return Prompts(*decode_loop.pad_left(rows, padded_length(max(map(len, rows)))))


def on_rows(tree: PyTree) -> PyTree:
    """Puts host arrays [B, ...] on the devices, their rows cut over the mesh that is set, if any and if it divides
    them."""
    mesh = jax.sharding.get_mesh()

    def one(leaf: np.ndarray) -> Array:
        if mesh.empty:
            return place(leaf, None)
        whole = leaf.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"])
        return place(leaf, NamedSharding(mesh, PartitionSpec()) if whole else row_sharding(mesh))

    return jax.tree.map(lambda leaf: one(np.asarray(leaf)), tree)


class Sampler:
    """Draws samples on one model.

    Args:
      lm: the model; its weights are held once more, in the layout for decoding, by all samplers together.
      max_new_tokens: tokens of a sample at most, its end token included.
      temperature: of the samples; 0 is greedy.
      stop: texts that end a sample.

    Raises:
      ValueError: no token, a temperature below 0, or an empty stop string.
    """

    def __init__(self, lm: LanguageModel, max_new_tokens: int, temperature: float = 1.0, stop: Sequence[str] = ()):
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, it must be at least 1")
        StopText(lm.tokenizer, stop)
        self.tokenizer, self.stop, self.size = lm.tokenizer, tuple(stop), max_new_tokens
        self.model, self.params = lm.for_decoding
        settings = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens)
        self.flags = SamplingFlags.of(settings)
        self.rules = Rules(
            SamplingArrays.of(settings),
            np.zeros(0, np.float32),
            decode_loop.pad_stops([]),
            np.asarray(lm.tokenizer.eos_id, np.int32),
            np.asarray(max_new_tokens, np.int32),
        )

    def draw(self, prompts: Prompts, state: State, keys: Key[Array, "R"], copies: int = 1) -> Drawn:
        """Draws `copies` samples of each prompt.

        Args:
          prompts: B of them.
          state: batched [L, B, ...]: row b starts from its own.
          keys: one a sample, R = B copies; those of prompt b stand together, r = b copies + k.
          copies: samples a prompt.

        Returns:
          The samples, on the host of every process.

        Raises:
          NonFiniteLogitsError: a `ValueError`; logits that are not finite.
        """
        made = sample(
            self.model, self.params, on_rows(prompts), state, keys, self.rules,
            flags=self.flags, size=self.size, copies=copies,
        )  # fmt: skip
        tokens, length, active, wrong = host(made)
        with cause_named(self.params, []):
            check_rows(np.asarray(wrong))
        return self._ended(np.array(tokens), np.array(length), ~np.asarray(active))

    def _ended(self, tokens: np.ndarray, length: np.ndarray, finished: np.ndarray) -> Drawn:
        texts = []
        for row, ids in enumerate(tokens):
            kept = ids[: length[row]].tolist()
            if self.stop:
                text, count, hit = cut_at_stop(self.tokenizer, kept, self.stop)
                length[row], finished[row] = count, finished[row] or hit
                ended = finished[row] and not hit
            else:
                text, ended = generated_text(self.tokenizer, kept, ()), finished[row]
            texts.append(text)
            if ended:
                tokens[row, length[row]] = self.tokenizer.eos_id
                length[row] += 1
        counted = np.arange(tokens.shape[1])[None] < length[:, None]
        return Drawn(np.where(counted, tokens, 0), counted.astype(np.float32), texts, finished)


def cut_at_stop(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str]) -> tuple[str, int, bool]:
    """Returns (text before the first stop string, tokens up to the one that completes it, whether there is one)."""
    found = StopText(tokenizer, stop)
    for count, token in enumerate(ids, 1):
        found.push([token])
        if found.hit:
            return found.text, count, True
    found.finish()
    return found.text, len(ids), found.hit


def row_keys(key: Key[Array, ""], rows: int, each: int = 1) -> Key[Array, "R"]:
    """Makes the keys of `Sampler.draw`.

    Args:
      key: a random key.
      rows: R, a multiple of `each`.
      each: rows in a row that get the same key.

    Returns:
      A key for each row [R].

    Example:
      >>> keys = jax.random.key_data(row_keys(jax.random.key(0), 4, each=2))
      >>> bool((keys[0] == keys[1]).all()), bool((keys[1] == keys[2]).all())
      (True, False)
    """
    return _row_keys(key, rows, each)


@partial(jax.jit, static_argnums=(1, 2))
def _row_keys(key: Key[Array, ""], rows: int, each: int) -> Key[Array, "R"]:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows) // each)


@partial(jax.jit, static_argnames=("model", "flags", "size", "copies"))
def sample(
    model: RWKV7,
    params: Params,
    prompts: Prompts,
    state: State,
    keys: Key[Array, "R"],
    rules: Rules,
    *,
    flags: SamplingFlags,
    size: int,
    copies: int,
) -> tuple[Int[Array, "R N"], Int[Array, "R"], Bool[Array, "R"], Int[Array, "R"]]:
    """Reads the prompts, copies the states after them, and decodes, in one program.

    Returns:
      (tokens, their numbers without the end token, rows that have not ended, `Decoding.wrong`).
    """
    start = decode_loop.prefill(
        model, params, jnp.asarray(prompts.tokens), jnp.asarray(prompts.valid), state, rules, penalised=False
    )
    if copies > 1:
        axis = 0 if isinstance(start.state, list) else 1
        more = jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=axis), start.state)
        rows = {
            name: jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=0), getattr(start, name))
            for name in ("logits", "active", "recent", "occurrences", "tokens", "length", "stop_length", "wrong")
        }
        start = start._replace(state=more, **rows)
    end = decode_loop.decode(model, params, start, keys, rules, flags=flags, size=size)
    return end.tokens, end.length, end.active, end.wrong
