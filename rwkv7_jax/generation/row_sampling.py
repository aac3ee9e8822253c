"""Sampling where each row has settings of its own: the choices of `rwkv7_jax.generation.sampling`, row by row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rwkv7_jax.generation.sampling import (
    LIKELIEST,
    Occurrences,
    SamplingArrays,
    choose_among_likeliest,
    choose_uncovered,
    most_likely,
    penalise,
)
from rwkv7_jax.generation.thresholds import column


class RowFlags(NamedTuple):
    """`SamplingFlags` of each row, as arguments of a compiled function."""

    greedy: Bool[Array | np.ndarray, "B"]
    filtered: Bool[Array | np.ndarray, "B"]
    penalised: Bool[Array | np.ndarray, "B"]


def choose_by_row(
    logits: Float[Array, "B vocab"],
    keys: Key[Array, "B"],
    arrays: SamplingArrays,
    flags: RowFlags,
    wanted: Bool[Array, "B"],
    occurrences: Occurrences,
) -> Int[Array, "B"]:
    """Chooses for each row by its own settings what `choose` would; what no wanted row needs is skipped.

    Args:
      logits: unnormalised log-probabilities [B, vocab].
      keys: one key a row.
      arrays: the numbers of each row.
      flags: those of each row's settings.
      wanted: rows whose token is used; that of the others means nothing.
      occurrences: tokens generated before, for the rows with penalties.

    Returns:
      Token ids [B], int32.
    """
    penalised = wanted & flags.penalised
    logits = jax.lax.cond(penalised.any(), lambda: penalise(logits, occurrences, arrays), lambda: logits)
    random = jnp.asarray(wanted & ~flags.greedy)
    arrays = arrays._replace(temperature=jnp.where(flags.greedy, jnp.float32(1), arrays.temperature))
    none, rest = jnp.zeros(len(logits), jnp.int32), random
    chosen = jax.lax.cond((wanted & flags.greedy).any(), lambda: most_likely(logits), lambda: none)
    if logits.shape[-1] > LIKELIEST:
        filtered = random & flags.filtered
        found, covered = jax.lax.cond(
            filtered.any(),
            lambda: choose_among_likeliest(logits, keys, arrays),
            lambda: (none, jnp.zeros_like(filtered)),
        )
        chosen, rest = jnp.where(filtered & covered, found, chosen), random & ~(filtered & covered)
    # A row that needs no threshold asks for none.
    arrays = arrays._replace(top_p=jnp.where(rest, arrays.top_p, 1), top_k=jnp.where(rest, arrays.top_k, 0))
    return choose_uncovered(chosen, ~rest, logits, keys, arrays)


def count_by_row(
    occurrences: Occurrences,
    tokens: Int[Array, "B"],
    weight: Float[Array | np.ndarray, "vocab"],
    arrays: SamplingArrays,
    wanted: Bool[Array, "B"],
) -> Occurrences:
    """Counts the token of each wanted row as `Occurrences.add` does, and nothing in the others."""

    def add() -> Occurrences:
        rows = jnp.where(wanted, jnp.arange(len(tokens)), len(tokens))
        decayed = occurrences.count * column(arrays.decay)
        return Occurrences(
            occurrences.seen.at[rows, tokens].set(True, mode="drop"),
            decayed.at[rows, tokens].add(jnp.asarray(weight)[tokens], mode="drop"),
        )

    return jax.lax.cond(wanted.any(), add, lambda: occurrences)
