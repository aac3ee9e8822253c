"""Which proposed tokens are kept: the law of speculative sampling, and its greedy case (arXiv 2211.17192).

A token x drawn from q is kept with probability min(1, p(x) / q(x)); where it is refused, a token is drawn from
max(p - q, 0), normalised. The outcome has the distribution p: p(x) = min(p, q)(x) + (1 - sum min(p, q)) rest(x).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rwkv7_jax.generation.decode_loop import Rules
from rwkv7_jax.generation.sampling import Occurrences, SamplingArrays, SamplingFlags, draw, most_likely, penalise
from rwkv7_jax.generation.thresholds import keep_top_k, keep_top_p


def log_probabilities(
    logits: Float[Array, "B n vocab"], arrays: SamplingArrays, flags: SamplingFlags
) -> Float[Array, "B n vocab"]:
    """Returns the logarithm of the distribution that `sampling.choose` draws from, penalties aside."""
    if flags.filtered:
        flat = jax.nn.softmax(logits, axis=-1).reshape(-1, logits.shape[-1])
        keep = keep_top_k(flat, arrays.top_k) & keep_top_p(flat, arrays.top_p)
        logits = jnp.where(keep.reshape(logits.shape), logits, -jnp.inf)
    return jax.nn.log_softmax(logits / arrays.temperature, axis=-1)


def check_greedy(
    logits: Float[Array, "B n vocab"], proposed: Int[Array, "B k"]
) -> tuple[Int[Array, "B n"], Int[Array, "B"]]:
    """Returns (the large model's choices, how many of the proposed tokens they begin with); n is k + 1."""
    best = most_likely(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape[:2])
    return best, _leading(best[:, :-1] == proposed)


def check_sampled(
    log_p: Float[Array, "B n vocab"],
    log_q: Float[Array, "B k vocab"],
    proposed: Int[Array, "B k"],
    keys: Key[Array, "B n 2"],
) -> tuple[Int[Array, "B n"], Int[Array, "B"]]:
    """Keeps proposed tokens by the law of the module, and draws the token after the kept ones.

    Args:
      log_p: of the large model, before and after each proposed token; n is k + 1.
      log_q: of the small model, that each proposed token was drawn from.
      proposed: the tokens.
      keys: two for each place: to keep or refuse, and to draw.

    Returns:
      (the kept tokens, the drawn one and meaningless others; how many are kept).
    """
    p, q = (jnp.exp(jnp.take_along_axis(x, proposed[..., None], axis=-1)[..., 0]) for x in (log_p[:, :-1], log_q))
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys[:, :-1, 0])
    kept = _leading((uniform * q < p) & (q > 0))
    at = kept[:, None, None]
    target = jnp.exp(jnp.take_along_axis(log_p, at, axis=1)[:, 0])
    other = jnp.exp(jnp.pad(log_q, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf))
    rest = jnp.maximum(target - jnp.take_along_axis(other, at, axis=1)[:, 0], 0.0)
    rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, target)
    drawn = draw(jax.vmap(lambda key, i: key[i])(keys[:, :, 1], kept), jnp.log(rest))
    place = jnp.arange(log_p.shape[1], dtype=jnp.int32)[None]
    return jnp.where(place < kept[:, None], jnp.pad(proposed, ((0, 0), (0, 1))), drawn[:, None]), kept


def _leading(right: Bool[Array, "B k"]) -> Int[Array, "B"]:
    """How many of the first are all true."""
    return jnp.cumprod(right.astype(jnp.int32), axis=1).sum(1, dtype=jnp.int32)


def penalised_places(
    logits: Float[Array, "B n vocab"], proposed: Int[Array, "B k"], seen: Occurrences, rules: Rules
) -> Float[Array, "B n vocab"]:
    """Returns logits with the penalties of each place, the proposed tokens before it counted."""
    found = []
    for place in range(logits.shape[1]):
        found.append(penalise(logits[:, place], seen, rules.arrays))
        if place < proposed.shape[1]:
            seen = seen.add(proposed[:, place], jnp.asarray(rules.weight), rules.arrays.decay)
    return jnp.stack(found, axis=1)


def counted(seen: Occurrences, chosen: Int[Array, "B n"], kept: Int[Array, "B"], rules: Rules) -> Occurrences:
    """Returns the counts after the kept tokens."""
    for place in range(chosen.shape[1]):
        more = seen.add(chosen[:, place], jnp.asarray(rules.weight), rules.arrays.decay)
        seen = jax.tree.map(lambda new, old, place=place: jnp.where((place < kept)[:, None], new, old), more, seen)
    return seen
