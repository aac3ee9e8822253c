"""Token shift: what each token gets from the one before it, over rows with padding and resets, and over devices."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rwkv7_jax.sharding import TOKENS, token_partition


def token_shift(
    x: Float[Array, "B T D"],
    last: Float[Array, "B D"],
    valid: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """Returns (valid token before each token, last valid token of all).

    `last` stands before the first token; at a reset the token before is zero, even if the reset token is padding. On a
    mesh that cuts the tokens of a row each device gets what stands before its own from the devices before it.
    """
    tokens = token_partition(*x.shape[:2])
    if tokens is None:
        return shifted(x, last, valid, reset)
    rows = PartitionSpec(tokens[0])
    flags = {name: flag for name, flag in (("valid", valid), ("reset", reset)) if flag is not None}

    def local(x: Array, last: Array, flags: dict[str, Array]) -> tuple[Array, Array]:
        return _shifted_along(x, last, **flags)

    specs = (tokens, rows, dict.fromkeys(flags, tokens))
    return jax.shard_map(local, in_specs=specs, out_specs=(tokens, rows))(x, last, flags)


def _shifted_along(
    x: Float[Array, "B T D"],
    last: Float[Array, "B D"],
    valid: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """`token_shift` of one device's chunk of each row, inside `jax.shard_map`."""
    place, count = lax.axis_index(TOKENS), lax.axis_size(TOKENS)
    if valid is None:
        end = x[:, -1]
        arrived = lax.ppermute(end, TOKENS, [(i, i + 1) for i in range(count - 1)])
        before = jnp.where(place == 0, last, arrived)
    else:
        own, passes = _handed_on(x, valid, reset)
        before = _nearest(last, lax.all_gather(own, TOKENS), lax.all_gather(passes, TOKENS), place)
        end = jnp.where(passes[:, None], before, own)
    end = lax.psum(jnp.where(place == count - 1, end, jnp.zeros_like(end)), TOKENS)
    return shifted(x, before, valid, reset)[0], end


def _handed_on(
    x: Float[Array, "B T D"], valid: Bool[Array, "B T"], reset: Bool[Array, "B T"] | None
) -> tuple[Float[Array, "B D"], Bool[Array, "B"]]:
    """(what a chunk hands on to the next, whether that is what it got instead: it is all padding, without a reset)."""
    position = jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32)[None]
    newest = jnp.max(jnp.where(valid, position, 0), axis=1)
    start = jnp.zeros_like(newest) if reset is None else jnp.max(jnp.where(reset, position, 0), axis=1)
    own = jnp.take_along_axis(x, jnp.maximum(newest - 1, 0)[:, None, None], axis=1)[:, 0]
    held = (newest > 0) & (start <= newest)
    return jnp.where(held[:, None], own, jnp.zeros_like(own)), (newest == 0) & (start == 0)


def _nearest(
    last: Float[Array, "B D"], own: Float[Array, "n B D"], passes: Bool[Array, "n B"], place: Int[Array, ""]
) -> Float[Array, "B D"]:
    """What the nearest device before `place` that does not pass on what it got hands on; `last` if there is none."""
    device = jnp.arange(own.shape[0], dtype=jnp.int32)[:, None]
    source = jnp.max(jnp.where((device < place) & ~passes, device, -1), axis=0)
    chosen = (device == source[None])[:, :, None]
    found = jnp.sum(jnp.where(chosen, own, jnp.zeros_like(own)), axis=0, dtype=own.dtype)
    return jnp.where((source < 0)[:, None], last, found)


def shifted(
    x: Float[Array, "B T D"],
    last: Float[Array, "B D"],
    valid: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """Computes `token_shift` on one device."""
    extended = jnp.concatenate([last[:, None], x], axis=1)
    if valid is None:
        before = extended[:, :-1]
        return before if reset is None else jnp.where(reset[:, :, None], jnp.zeros_like(x), before), extended[:, -1]
    time = x.shape[1]
    position = jnp.arange(1, time + 1, dtype=jnp.int32)[None]
    pad = functools.partial(jnp.pad, pad_width=((0, 0), (1, 0)))
    before = pad(jax.lax.cummax(jnp.where(valid, position, 0), axis=1))
    after = jax.lax.cummin(jnp.where(valid, position - 1, time), axis=1, reverse=True)
    after = jnp.pad(after, ((0, 0), (0, 1)), constant_values=time)
    previous = take_previous(extended, before, after, pad(valid, constant_values=True))
    if reset is not None:
        start = jax.lax.cummax(jnp.where(reset, position, 0), axis=1)
        alive = jnp.concatenate([start, start[:, -1:]], axis=1) <= before
        previous = jnp.where(alive[:, :, None], previous, jnp.zeros_like(previous))
    return previous[:, :-1], previous[:, -1]


@jax.custom_vjp
def take_previous(
    extended: Float[Array, "B S D"], before: Int[Array, "B S"], after: Int[Array, "B S"], used: Bool[Array, "B S"]
) -> Float[Array, "B S D"]:
    """Returns extended[before]; its gradient is a gather too: row j gets that of its next reader `after[j]`, if `used`.

    Readers in between are padding and carry no gradient. The scatter that autodiff would make is slow everywhere.
    """
    return jnp.take_along_axis(extended, before[:, :, None], axis=1)


def _take_previous_forward(extended, before, after, used):
    return take_previous(extended, before, after, used), (after, used)


def _take_previous_backward(residuals, cotangent):
    after, used = residuals
    gathered = jnp.take_along_axis(cotangent, after[:, :, None], axis=1)
    return jnp.where(used[:, :, None], gathered, jnp.zeros_like(gathered)), None, None, None


take_previous.defvjp(_take_previous_forward, _take_previous_backward)
