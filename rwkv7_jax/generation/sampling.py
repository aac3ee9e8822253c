"""Sampling of one token a row from logits: penalties, top-k, top-p, temperature, in RWKV's order and convention.

As in the reference `sample_logits` of PyPI `rwkv`: penalties change the logits; top-k and top-p select on the
probabilities before temperature; temperature then reshapes what is left. Both look at the `LIKELIEST` tokens alone
where those hold all that is kept, and at the whole vocabulary where they do not; the distribution is the same.
"""

import dataclasses
import numbers
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rwkv7_jax.generation.thresholds import column, keep_top_k, keep_top_p

__all__ = ["Occurrences", "SamplingParams", "sample_logits"]

LIKELIEST = 256
"""Tokens among which the choice is made where all others are left out."""
LARGEST = 1e30
"""Of temperatures and penalties: all sums with them stay within float32."""
RANGES = {
    "temperature": (0, LARGEST),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "presence_penalty": (-LARGEST, LARGEST),
    "frequency_penalty": (-LARGEST, LARGEST),
    "penalty_decay": (0, 1),
    "max_new_tokens": (0, 2**31 - 1),
}
WHOLE = ("top_k", "max_new_tokens")
ROWS_AT_A_TIME = 8
"""Rows whose choice among all tokens a CPU makes at a time: their probabilities stay in its caches."""
BLOCK = 256
"""Tokens of a block, where a token is drawn in two steps: its block, then the token in the block."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    Raises:
      ValueError: a value is out of its range.

    Example:
      >>> SamplingParams(temperature=0.8, top_p=0.9).top_k
      0
    """

    temperature: float | int = 1.0
    """0 is greedy: the most likely token, ties to the lowest id; so is anything below 1e-6."""
    top_p: float | int = 1.0
    """Keep the most likely tokens that together reach this probability; 0 keeps the most likely one."""
    top_k: int = 0
    """Keep exactly this many of the most likely tokens; 0 keeps all."""
    presence_penalty: float | int = 0.0
    """Subtracted from the logit of every token generated before."""
    frequency_penalty: float | int = 0.0
    """Subtracted once per (decayed) earlier occurrence."""
    penalty_decay: float | int = 0.996
    """Factor on every occurrence count after each token."""
    max_new_tokens: int = 100
    """Tokens generated at most."""

    def __post_init__(self):
        for name in RANGES:
            check_setting(name, getattr(self, name))


def check_setting(name: str, value: object) -> None:
    """Checks one number of `SamplingParams`.

    Raises:
      ValueError: it is not a number, out of its range, or not whole where it counts something.
    """
    low, high = RANGES[name]
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    numeric = cast(float, value)
    if not number or not low <= numeric <= high:
        shown = f"{value:.4g}" if number and isinstance(value, float) else f"{value!r:.60}"
        raise ValueError(f"{name} must lie in {low:.10g}..{high:.10g} and be finite, got {shown}")
    if name in WHOLE and numeric != int(numeric):
        raise ValueError(f"{name} must be a whole number, got {value}")


class SamplingFlags(NamedTuple):
    """The parts of the choice that are compiled: the only static part of `SamplingParams`."""

    greedy: bool
    filtered: bool
    penalised: bool

    @classmethod
    def of(cls, config: SamplingParams) -> "SamplingFlags":
        """Reads the flags off the settings."""
        return cls(
            greedy=config.temperature < 1e-6,
            filtered=config.top_p < 1 or config.top_k > 0,
            penalised=config.presence_penalty != 0 or config.frequency_penalty != 0,
        )


class SamplingArrays(NamedTuple):
    """The numbers of `SamplingParams`, as arguments of a compiled function: one for all rows, or one a row."""

    temperature: Float[Array | np.ndarray, "*B"]
    top_p: Float[Array | np.ndarray, "*B"]
    top_k: Int[Array | np.ndarray, "*B"]
    presence: Float[Array | np.ndarray, "*B"]
    frequency: Float[Array | np.ndarray, "*B"]
    decay: Float[Array | np.ndarray, "*B"]

    @classmethod
    def of(cls, c: SamplingParams) -> "SamplingArrays":
        """Converts the settings to float32 and int32 arrays."""
        top_k = np.asarray(min(c.top_k, 2**31 - 1), np.int32)
        temperature, top_p, *penalties = (
            np.asarray(x, np.float32)
            for x in (c.temperature, c.top_p, c.presence_penalty, c.frequency_penalty, c.penalty_decay)
        )
        return cls(temperature, top_p, top_k, *penalties)


class Occurrences(NamedTuple):
    """Tokens generated so far, as the penalties count them."""

    seen: Bool[Array, "B vocab"]
    """Whether a token was generated."""
    count: Float[Array, "B vocab"]
    """Occurrences, decayed."""

    @classmethod
    def none(cls, batch_size: int, vocab_size: int) -> "Occurrences":
        """Returns the counts before the first token.

        Args:
          batch_size: number of rows.
          vocab_size: number of tokens.

        Returns:
          Nothing seen, all counts zero.
        """
        shape = (batch_size, vocab_size)
        return cls(jnp.zeros(shape, jnp.bool_), jnp.zeros(shape, jnp.float32))

    def add(
        self, tokens: Int[Array, "B"], weight: Float[Array, "vocab"], decay: Float[Array | np.ndarray, "*R"]
    ) -> "Occurrences":
        """Decays all counts, then counts one token a row.

        Args:
          tokens: token ids [B], int32.
          weight: how often each token counts [vocab]: 1, or 0 for those of `uncounted_ids`.
          decay: factor on earlier counts, a number or one a row.

        Returns:
          The new counts.
        """
        rows = jnp.arange(tokens.shape[0])
        return Occurrences(
            self.seen.at[rows, tokens].set(True), (self.count * column(decay)).at[rows, tokens].add(weight[tokens])
        )


def sample_logits(
    logits: Float[Array, "B vocab"],
    keys: Key[Array, "B"],
    config: SamplingParams,
    occurrences: Occurrences | None = None,
) -> Int[Array, "B"]:
    """Chooses one token a row; row i uses its own key alone, so it does not depend on the other rows.

    Args:
      logits: unnormalised log-probabilities [B, vocab].
      keys: one key a row.
      config: how to choose.
      occurrences: tokens generated before, for the penalties.

    Returns:
      Token ids [B], int32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> sample_logits(jnp.array([[0.0, 3.0, 1.0]]), keys, SamplingParams(temperature=0)).tolist()
      [1]
    """
    return choose(logits, keys, SamplingArrays.of(config), SamplingFlags.of(config), occurrences)


def choose(
    logits: Float[Array, "B vocab"],
    keys: Key[Array, "B"],
    arrays: SamplingArrays,
    flags: SamplingFlags,
    occurrences: Occurrences | None = None,
) -> Int[Array, "B"]:
    """Chooses as `sample_logits`, with the numbers as arguments and the flags static."""
    if flags.penalised and occurrences is not None:
        logits = penalise(logits, occurrences, arrays)
    if flags.greedy:
        return most_likely(logits)
    if not flags.filtered:
        return draw(keys, logits / column(arrays.temperature))
    if logits.shape[-1] <= LIKELIEST:
        return choose_among_all(logits, keys, arrays)
    found, covered = choose_among_likeliest(logits, keys, arrays)
    return choose_uncovered(found, covered, logits, keys, arrays)


def choose_among_all(logits: Float[Array, "B vocab"], keys: Key[Array, "B"], arrays: SamplingArrays) -> Int[Array, "B"]:
    """Chooses by top-k, top-p and temperature."""
    probs = jax.nn.softmax(logits, axis=-1)
    all_kept = jnp.ones(probs.shape, jnp.bool_)
    keep = jax.lax.cond(jnp.any(arrays.top_k > 0), lambda: keep_top_k(probs, arrays.top_k), lambda: all_kept)
    keep &= jax.lax.cond(jnp.any(arrays.top_p < 1), lambda: keep_top_p(probs, arrays.top_p), lambda: all_kept)
    return draw(keys, jnp.where(keep, logits, -jnp.inf) / column(arrays.temperature))


def choose_among_likeliest(
    logits: Float[Array, "B vocab"], keys: Key[Array, "B"], arrays: SamplingArrays
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """Chooses as `choose_among_all` from the `LIKELIEST` tokens, and tells for which rows they hold all kept ones."""
    top_p, top_k = column(arrays.top_p), column(arrays.top_k)
    # Without the barrier XLA takes slices of the values through to the operation, and sorts the whole row.
    top, ids = jax.lax.optimization_barrier(jax.lax.top_k(logits, LIKELIEST))
    largest = logits.max(-1, keepdims=True)
    probs = jnp.exp(top - largest) / jnp.exp(logits - largest).sum(-1, keepdims=True)
    mass = jnp.cumsum(probs, axis=-1)
    rank = jnp.arange(LIKELIEST, dtype=jnp.int32)[None]
    within = (rank == 0) | (mass - probs < top_p)
    cut = jnp.where(within, probs, jnp.inf).min(-1, keepdims=True)
    keep_p = (probs >= cut) | (top_p >= 1)
    keep_k = (rank < top_k) | (top_k <= 0)
    # The tokens that tie with the last one kept are kept too: none of them may lie beyond.
    reached = (arrays.top_p < 1) & (mass[:, -1] >= arrays.top_p) & (probs[:, -1] < cut[:, 0])
    covered = jnp.asarray(reached | ((arrays.top_k > 0) & (arrays.top_k <= LIKELIEST)))
    place = draw(keys, jnp.where(keep_p & keep_k, top, -jnp.inf) / column(arrays.temperature))
    return jnp.take_along_axis(ids, place[:, None], axis=1)[:, 0].astype(jnp.int32), covered


def choose_uncovered(
    found: Int[Array, "B"],
    covered: Bool[Array, "B"],
    logits: Float[Array, "B vocab"],
    keys: Key[Array, "B"],
    arrays: SamplingArrays,
) -> Int[Array, "B"]:
    """Returns `found`, and for rows that are not covered what `choose_among_all` chooses.

    A CPU looks at those rows alone, some at a time; other devices, if there is one, at all rows at once.
    """
    if jax.default_backend() != "cpu" or len(found) <= ROWS_AT_A_TIME:
        return jax.lax.cond(
            covered.all(),
            lambda: found,
            lambda: jnp.where(covered, found, choose_among_all(logits, keys, arrays)),
        )
    order = jnp.argsort(covered)  # those not covered come first

    def choose_some(at: Int[Array, ""], found: Int[Array, "B"]) -> Int[Array, "B"]:
        # Near the end the slice begins earlier: rows that were chosen already are chosen once more.
        rows = jax.lax.dynamic_slice_in_dim(order, at * ROWS_AT_A_TIME, ROWS_AT_A_TIME)
        own = jax.tree.map(lambda numbers: jnp.asarray(numbers)[rows] if numbers.ndim else numbers, arrays)
        chosen = choose_among_all(logits[rows], keys[rows], own)
        return found.at[rows].set(jnp.where(covered[rows], found[rows], chosen))

    uncovered = (~covered).sum(dtype=jnp.int32)
    return jax.lax.fori_loop(0, (uncovered + ROWS_AT_A_TIME - 1) // ROWS_AT_A_TIME, choose_some, found)


def most_likely(logits: Float[Array, "B vocab"]) -> Int[Array, "B"]:
    """Returns the most likely token of each row, ties to the lowest id.

    Maxima of blocks first, then the block: several times as fast on a CPU as `argmax` over a long row.
    """
    blocks = _blocks(logits)
    block = jnp.argmax(blocks.max(-1), axis=-1).astype(jnp.int32)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * blocks.shape[-1] + jnp.argmax(inside, axis=-1).astype(jnp.int32)


def draw(keys: Key[Array, "B"], logits: Float[Array, "B vocab"]) -> Int[Array, "B"]:
    """Draws a token a row with the probabilities softmax(logits); row i uses its own key alone.

    A block is drawn by its mass, then a token of it: two short rows of random numbers instead of a long one.
    """
    blocks = _blocks(logits)
    if blocks.shape[1] == 1:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    which, inner = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    largest = blocks.max((1, 2))[:, None, None]
    mass = jnp.log(jnp.exp(blocks - largest).sum(-1))
    block = jax.vmap(jax.random.categorical)(which, mass).astype(jnp.int32)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * blocks.shape[-1] + jax.vmap(jax.random.categorical)(inner, inside).astype(jnp.int32)


def _blocks(logits: Float[Array, "B vocab"]) -> Float[Array, "B N S"]:
    """Returns the rows cut into blocks, the last one filled up with -inf."""
    batch, vocab = logits.shape
    size = min(BLOCK, vocab)
    padded = jnp.pad(logits, ((0, 0), (0, -vocab % size)), constant_values=-jnp.inf)
    return padded.reshape(batch, -1, size)


def penalise(
    logits: Float[Array, "B vocab"], occurrences: Occurrences, arrays: SamplingArrays
) -> Float[Array, "B vocab"]:
    """Returns logit - (presence + frequency * count) for every token seen."""
    penalty = column(arrays.presence) + column(arrays.frequency) * occurrences.count
    return jnp.where(occurrences.seen, logits - penalty, logits)
