"""RWKV-7 as a pure function: `apply({"params": p}, tokens, state) -> (logits, state)`."""

from collections.abc import Callable
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rwkv7_jax import init
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.layers import ChannelMix, LayerNorm, Linear, TimeMix
from rwkv7_jax.sharding import by_tokens, gathered, missing_tokens
from rwkv7_jax.state import State, zero_state

__all__ = ["RWKV7", "init_params", "join_layers", "split_layers", "unstack_blocks"]


class Block(nn.Module):
    """x += att(ln1 x); x += ffn(ln2 x), with one layer's slice of the state."""

    config: RWKV7Config
    layer_id: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: State,
        v_first: Float[Array, "B T D"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], State, Float[Array, "B T D"]]:
        c = self.config
        dtype = c.activation_dtype
        depth = {"layer_id": self.layer_id, "n_layer": c.n_layer, "dtype": dtype, "product_dtype": c.dtype}
        time_mix = TimeMix(
            c.head_size, c.decay_lora, c.aaa_lora, c.mv_lora, c.gate_lora,
            wkv_implementation=c.wkv_implementation, name="att", **depth,
        )  # fmt: skip
        channel_mix = ChannelMix(c.dim_ffn, name="ffn", **depth)
        with jax.named_scope("time_mix"):
            out, att_shift, wkv, v_first = time_mix(
                LayerNorm(dtype=dtype, name="ln1")(x), state.att_shift, state.wkv, v_first, valid=valid, reset=reset
            )
        x = by_tokens(x + out)
        with jax.named_scope("channel_mix"):
            out, ffn_shift = channel_mix(
                LayerNorm(dtype=dtype, name="ln2")(x), state.ffn_shift, valid=valid, reset=reset
            )
        return by_tokens(x + out), state._replace(att_shift=att_shift, ffn_shift=ffn_shift, wkv=wkv), v_first


class RWKV7(nn.Module):
    """The released language model. Weights are arguments and keep their own dtype; compute runs in those of `config`.

    Block 0 stands apart (it makes `v_first`); blocks 1.. are scanned over stacked weights, see `RWKV7Config`.
    """

    config: RWKV7Config
    """Dimensions and compute options."""

    def setup(self) -> None:
        """Declares weights and layers."""
        c = self.config
        self.emb = self.param("emb", lambda key: {"weight": init.uniform(1e-4)(key, (c.vocab_size, c.n_embd))})
        self.ln0 = LayerNorm(dtype=c.activation_dtype)
        self.block_0 = Block(c, 0)
        if c.scan_layers and c.n_layer > 1:
            # Flax compares what it is given with fresh weights, and knows neither quantised nor further ones.
            given = self.has_variable("params", "blocks")
            self.blocks = self.get_variable("params", "blocks") if given else self.param("blocks", self.init_stacked)
        elif c.n_layer > 1:
            self.later = [Block(c, i, name=f"block_{i}") for i in range(1, c.n_layer)]
        self.ln_out = LayerNorm(dtype=c.activation_dtype)
        gain = 0.5 * max(1.0, (c.vocab_size / c.n_embd) ** 0.5)
        self.head = Linear(c.vocab_size, jax.nn.initializers.orthogonal(gain), c.dtype)

    def init_stacked(self, key) -> dict:
        """Draws the parameters of blocks 1.., each in its own layer's initialisation, stacked along a leading axis."""
        c = self.config
        x, one = jnp.zeros((1, 1, c.n_embd), c.activation_dtype), layer_of(zero_state(c, 1), 0)
        keys = jax.random.split(key, c.n_layer - 1)
        blocks = [Block(c, i, parent=None).init(keys[i - 1], x, one, x)["params"] for i in range(1, c.n_layer)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        state: State,
        *,
        valid: Bool[Array, "B T"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], State]:
        """Returns (final normalised activations in the compute dtype, state after the last valid token)."""
        length = tokens.shape[1]
        if extra := missing_tokens(length):
            tokens, valid, reset = padded(tokens, valid, reset, extra)
        x, state = self.padded_hidden(tokens, state, valid, reset)
        return (x[:, :length] if extra else x), state

    def padded_hidden(
        self,
        tokens: Int[Array, "B T"],
        state: State,
        valid: Bool[Array, "B T"] | None,
        reset: Bool[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T D"], State]:
        """Computes `hidden` of rows that the mesh divides."""
        c = self.config
        if not c.scan_layers or c.n_layer == 1:
            x, layers = self.one_by_one(tokens, split_layers(state), valid, reset)
            return x, join_layers(layers)
        x, first, v_first = self.block_0(self.embedded(tokens), layer_of(state, 0), None, valid, reset)
        apply = cast(Callable[..., tuple[Array, State, Array]], Block(c, 1, parent=None).apply)

        def body(x, layer):
            params, before = layer
            x, after, _ = apply({"params": params}, x, before, v_first, valid, reset)
            return x, after

        rest = jax.tree.map(lambda leaf: leaf[1:], state)
        x, rest = jax.lax.scan(rematerialised(body, c.remat), x, (self.blocks, rest))
        return self.ln_out(x), jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

    def embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns the normalised embeddings of tokens."""
        table = gathered({"emb": self.emb})["emb"]["weight"]
        return self.ln0(by_tokens(jnp.take(table, tokens, axis=0).astype(self.config.activation_dtype)))

    def one_by_one(
        self,
        tokens: Int[Array, "B T"],
        layers: list[State],
        valid: Bool[Array, "B T"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], list[State]]:
        """Returns what `hidden` does, from and to one state a layer; the layer's function is traced once."""
        x, v_first, after = self.embedded(tokens), None, []
        blocks = [self.block_0, *(self.later if self.config.n_layer > 1 else [])]
        for block, before in zip(blocks, layers, strict=True):
            if self.is_initializing():
                x, state, v_first = block(x, before, v_first, valid, reset)
            else:
                params = block.variables["params"]
                x, state, v_first = _block(type(self), self.config, params, x, before, v_first, valid, reset)
            after.append(state)
        return self.ln_out(x), after

    def logits(self, x: Float[Array, "*B D"]) -> Float[Array, "*B vocab"]:
        """Returns the unnormalised log-probabilities (float32) of `hidden`'s activations."""
        return self.head(x).astype(jnp.float32)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: State,
        *,
        valid: Bool[Array, "B T"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
        last_only: bool = False,
    ) -> tuple[Float[Array, "B _ vocab"], State]:
        """Computes the logits of every token, and the state after the last valid one.

        Args:
          tokens: token ids [B, T].
          state: the recurrent state before the first token, [L, B, ...].
          valid: False marks padding, anywhere in a row: it changes nothing (its own logits mean nothing).
          reset: True starts afresh from the zero state at that token, for several texts in one row.
          last_only: compute the logits of each row's last valid token alone, [B, 1, vocab].

        Returns:
          (logits [B, T, vocab] float32, state [L, B, ...]).
        """
        x, state = self.hidden(tokens, state, valid=valid, reset=reset)
        return self.logits(last_valid(x, valid) if last_only else x), state

    def step(
        self, tokens: Int[Array, "B T"], layers: list[State], *, valid: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B vocab"], list[State]]:
        """Returns (logits after each row's last valid token, one state a layer); needs `scan_layers` False."""
        x, after = self.one_by_one(tokens, layers, valid)
        return self.logits(last_valid(x, valid))[:, 0], after


@partial(jax.jit, static_argnums=(0, 1))
def _block(
    kind: type,
    config: RWKV7Config,
    params: PyTree,
    x: Float[Array, "B T D"],
    state: State,
    v_first: Float[Array, "B T D"] | None,
    valid: Bool[Array, "B T"] | None,
    reset: Bool[Array, "B T"] | None,
) -> tuple[Float[Array, "B T D"], State, Float[Array, "B T D"]]:
    """Applies a block; layers of the same shapes share one trace. kind: the model's class, which may change layers."""
    apply = cast(Callable[..., tuple[Array, State, Array]], Block(config, int(v_first is not None), parent=None).apply)
    return apply({"params": params}, x, state, v_first, valid, reset)


def padded(
    tokens: Int[Array, "B T"], valid: Bool[Array, "B T"] | None, reset: Bool[Array, "B T"] | None, extra: int
) -> tuple[Int[Array, "B S"], Bool[Array, "B S"], Bool[Array, "B S"] | None]:
    """Returns tokens, `valid` and `reset` with tokens of padding at the end."""
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid
    longer = partial(jnp.pad, pad_width=((0, 0), (0, extra)))
    return longer(tokens), longer(valid), None if reset is None else longer(reset)


def last_valid(x: Float[Array, "B T D"], valid: Bool[Array, "B T"] | None) -> Float[Array, "B 1 D"]:
    """Returns the activations of each row's last valid token; of the last token in rows that have none."""
    last = x.shape[1] - 1 - (jnp.argmax(valid[:, ::-1], axis=1) if valid is not None else 0)
    last = jnp.broadcast_to(jnp.asarray(last, jnp.int32), x.shape[:1])
    return jnp.take_along_axis(x, last[:, None, None], axis=1)


def init_params(model: RWKV7, key: Array) -> dict[str, PyTree]:
    """Draws fresh parameters in the official initialisation.

    Args:
      model: the model's description; a static argument under `jax.jit`, which makes this many times faster.
      key: a random key.

    Returns:
      The parameter tree {"emb", "ln0", "block_0", "blocks" (or "block_1", ...), "ln_out", "head"}, float32.
    """
    return dict(model.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(model.config, 1))["params"])


def rematerialised(body: Callable, policy: str) -> Callable:
    """Returns the body of a scan over blocks with its activations stored as `RWKV7Config.remat` says.

    What crosses from device to device along the tokens is always stored: it is small, and dear to compute again.
    """
    if policy == "none":
        return body
    from pallas_kernels.sequence import BOUNDARY

    policies = jax.checkpoint_policies
    kept = policies.save_only_these_names(BOUNDARY)
    if policy == "dots":
        kept = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, kept)
    return jax.checkpoint(body, policy=kept)


def layer_of(state: State, index: int) -> State:
    """Returns one layer's slice of a state."""
    return jax.tree.map(lambda leaf: leaf[index], state)


def split_layers(state: State) -> list[State]:
    """Returns a state as one state a layer, which is how `functional.step` takes it.

    Args:
      state: a state [L, ...], batched or not.

    Returns:
      L states without the layer axis.
    """
    return [layer_of(state, index) for index in range(jax.tree.leaves(state)[0].shape[0])]


def join_layers(layers: list[State]) -> State:
    """Returns one state a layer as one state: the inverse of `split_layers`.

    Args:
      layers: L states without a layer axis.

    Returns:
      The state [L, ...].
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def unstack_blocks(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """Returns the parameter tree for `scan_layers=False`: {"blocks": stacked} becomes {"block_1": ..., "block_2": ...}.

    Args:
      params: a parameter tree, its blocks stacked or not.

    Returns:
      The tree with one entry a block; weights are copied.

    Example:
      >>> from rwkv7_jax import unstack_blocks
      >>> sorted(unstack_blocks({"block_0": {}, "blocks": {"ffn": {"x_k": jnp.zeros((2, 8))}}}))
      ['block_0', 'block_1', 'block_2']
    """
    rest = {name: value for name, value in params.items() if name != "blocks"}
    if "blocks" not in params:
        return rest
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    return rest | {f"block_{i + 1}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}


@partial(jax.jit, static_argnums=1)
def repeated_layers(state: State, rows: int) -> list[State]:
    """Returns an unbatched state as that of each of many rows, one a layer."""
    return split_layers(jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], rows, axis=1), state))
