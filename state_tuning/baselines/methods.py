"""What a table needs beside state tuning, through the same `Method` and the same train step.

`TRAINED` is a table of names: each entry makes a `Baseline`. Those without training are states: `zero`, `few_shot`,
`soup`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rwkv7_jax import functional
from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.wkv_state import Offset
from state_tuning.baselines import lora
from state_tuning.baselines.adapters import AdaptedRWKV7
from state_tuning.baselines.lora import Lora
from state_tuning.core import surgery, train
from state_tuning.core.train import Method, TuneConfig
from state_tuning.observer.distill import compile_prompt

UNTRAINED = ("zero", "few_shot", "soup")
"""Names of the baselines that are states, without training."""


class Baseline(NamedTuple):
    """How to train, and what comes out."""

    model: RWKV7
    """For `train.make_train_step` and `train.make_eval_step`."""
    method: Method
    """What is trained, from where, and how it becomes the start of a batch."""
    finish: Callable[[Params, PyTree], tuple[Params, State]]
    """(frozen weights, trained tree) -> (weights, unbatched state) for the plain model: to generate and to score."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of what is trained beside a state."""

    prefix: int = 32
    """Soft tokens."""
    lora: Lora = dataclasses.field(default_factory=Lora)
    """Of LoRA; its rank is that of `low_rank_state` too."""


class Prefix(NamedTuple):
    """An `Adapter`: soft tokens that are read once, from the zero state, and whose state every sequence starts from."""

    soft: Float[Array, "P D"]
    rows: int

    def adapt(self, model: RWKV7, params: Params) -> tuple[Params, State]:
        """Returns the weights as they are, and the state after the soft tokens."""
        return params, surgery.broadcast(prefix_state(model, params, self.soft), self.rows)


def prefix_state(model: RWKV7, params: Params, soft: Float[Array, "P D"]) -> State:
    """Returns the unbatched state after soft tokens (read instead of the embedding's rows, before the first norm)."""
    count = soft.shape[0]
    reader = RWKV7(dataclasses.replace(model.config, vocab_size=count))
    weights = {**params, "emb": {"weight": soft}}
    tokens = jnp.arange(count, dtype=jnp.int32)[None]
    _, state = functional.hidden(reader, weights, tokens, zero_state(model.config, 1))
    return jax.tree.map(lambda leaf: leaf[:, 0], state)


def state_tuning(model: RWKV7, params: Params, tune: TuneConfig, sizes: Sizes, key: Key[Array, ""]) -> Baseline:
    """Returns S_0 with the scale `tune.alpha` and the penalty `tune.l2` (S0 Tuning, arXiv 2604.01168)."""
    method = train.standard(model.config, tune)
    return Baseline(model, method, lambda params, tree: (params, train.full_state(model.config, tree, tune)))


def state_offset(model: RWKV7, params: Params, tune: TuneConfig, sizes: Sizes, key: Key[Array, ""]) -> Baseline:
    """Returns an offset added to the state wherever it is read; S_0 stays zero."""
    zero = zero_state(model.config, None)
    start = zero._replace(wkv=Offset(zero.wkv, jnp.zeros_like(zero.wkv)))  # pyright: ignore[reportArgumentType]

    def full(trainable: State) -> State:
        return surgery.graft(surgery.scale(trainable, tune.alpha), start)

    method = Method(
        lambda: surgery.split(start, "wkv/offset")[0],
        lambda trainable, batch_size: surgery.broadcast(full(trainable), batch_size),
        full,
    )
    return Baseline(model, method, lambda params, tree: (params, full(tree)))


def s0_offset(model: RWKV7, params: Params, tune: TuneConfig, sizes: Sizes, key: Key[Array, ""]) -> Baseline:
    """Returns S_0 and an offset at every read: what kernel upscaling trains, with the identity for its features."""
    zero = zero_state(model.config, None)
    start = zero._replace(wkv=Offset(zero.wkv, jnp.zeros_like(zero.wkv)))  # pyright: ignore[reportArgumentType]

    def full(trainable: State) -> State:
        return surgery.graft(surgery.scale(trainable, tune.alpha), start)

    method = Method(
        lambda: surgery.split(start, ("wkv/s", "wkv/offset"))[0],
        lambda trainable, batch_size: surgery.broadcast(full(trainable), batch_size),
        full,
    )
    return Baseline(model, method, lambda params, tree: (params, full(tree)))


class Factors(NamedTuple):
    """S_0 as a product of thin matrices, S_0 = left right^T."""

    left: Float[Array, "L H V R"]
    right: Float[Array, "L H K R"]


def low_rank_state(model: RWKV7, params: Params, tune: TuneConfig, sizes: Sizes, key: Key[Array, ""]) -> Baseline:
    """Returns S_0 of a low rank (that of `sizes.lora`): left is zero at start, right random with variance 1 / rank."""
    zero = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), zero_state(model.config, None))
    rank, shape = sizes.lora.rank, zero.wkv.shape
    right = jax.random.normal(key, (*shape[:-2], shape[-1], rank), jnp.float32) / math.sqrt(rank)
    left = jnp.zeros((*shape[:-1], rank), jnp.float32)

    def full(factors: Factors) -> State:
        product = tune.alpha * jnp.einsum("lhvr,lhkr->lhvk", factors.left, factors.right)
        return zero._replace(wkv=product)

    def graft(factors: Factors, batch_size: int) -> State:
        like = jax.eval_shape(lambda: zero_state(model.config, None))
        state = jax.tree.map(lambda leaf, shaped: leaf.astype(shaped.dtype), full(factors), like)
        return surgery.broadcast(state, batch_size)

    return Baseline(model, Method(lambda: Factors(left, right), graft, full), lambda params, tree: (params, full(tree)))


def prefix(model: RWKV7, params: Params, tune: TuneConfig, sizes: Sizes, key: Key[Array, ""]) -> Baseline:
    """Returns a soft prompt compiled to a state; it starts from the embeddings of random tokens (arXiv 2104.08691)."""
    config = model.config
    tokens = jax.random.randint(key, (sizes.prefix,), 0, config.vocab_size)
    start = jnp.asarray(params["emb"]["weight"])[tokens].astype(jnp.float32)

    def finish(params: Params, soft: Array) -> tuple[Params, State]:
        state = jax.jit(lambda params, soft: prefix_state(model, params, soft))(params, soft)
        return params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state)

    return Baseline(AdaptedRWKV7(config), Method(lambda: start, Prefix), finish)  # pyright: ignore[reportArgumentType]


def low_rank(model: RWKV7, params: Params, tune: TuneConfig, sizes: Sizes, key: Key[Array, ""]) -> Baseline:
    """Returns LoRA on the projections, the state zero."""
    method = lora.method(model.config, sizes.lora, key)
    zero = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), zero_state(model.config, None))
    return Baseline(
        AdaptedRWKV7(model.config), method, lambda params, pairs: (lora.merge(params, pairs, sizes.lora), zero)
    )


TRAINED: dict[str, Callable[[RWKV7, Params, TuneConfig, Sizes, Key[Array, ""]], Baseline]] = {
    "s0": state_tuning,
    "state_offset": state_offset,
    "s0_offset": s0_offset,
    "low_rank_state": low_rank_state,
    "prefix": prefix,
    "lora": low_rank,
}
"""What makes each trained baseline, by its name; see `build`."""


def build(
    name: str, model: RWKV7, params: Params, tune: TuneConfig, key: Key[Array, ""], sizes: Sizes | None = None
) -> Baseline:
    """Returns the trained baseline of this name.

    Args:
      name: a name in `TRAINED`.
      model: the model's description.
      params: its weights, which give a prefix its start; they are not kept.
      tune: settings of the method.
      key: of a random start.
      sizes: sizes of what is trained beside a state.

    Returns:
      The baseline, for `make_train_step(baseline.model, ..., baseline.method)`.

    Raises:
      ValueError: an unknown name.
    """
    if name not in TRAINED:
        raise ValueError(f"baseline {name!r} is not trained or unknown: choose {', '.join(TRAINED)}")
    return TRAINED[name](model, params, tune, sizes or Sizes(), key)


def few_shot(model: RWKV7, params: Params, tokens: Sequence[int]) -> State:
    """Reads solved examples: what a few-shot prompt is to a recurrent model.

    Args:
      model: the model's description.
      params: its weights.
      tokens: token ids of the examples, at least one.

    Returns:
      The unbatched float32 state after them.

    Raises:
      ValueError: there is no token.
    """
    return compile_prompt(model, params, tokens)


def soup(states: Sequence[State], loss: Callable[[State], float] | None = None) -> State:
    """Returns the average of tuned states (State Soup, arXiv 2406.08423).

    Args:
      states: unbatched, of the same shapes.
      loss: a state's loss on held-out text. With it the soup is greedy: states in order of their own loss, each kept
        if the average with it is at least as good (arXiv 2203.05482).

    Returns:
      The average.

    Raises:
      ValueError: there is no state, or none with a finite loss.
    """
    if loss is None or len(states) == 1:
        return surgery.mix(states, [1.0 / len(states)] * len(states)) if states else surgery.mix([], [])
    losses = [float(loss(state)) for state in states]
    order = sorted((i for i, value in enumerate(losses) if math.isfinite(value)), key=losses.__getitem__)
    if not order:
        raise ValueError(f"none of {len(states)} states has a finite loss: {losses[:4]}")
    chosen, best = [states[order[0]]], losses[order[0]]
    for state in (states[i] for i in order[1:]):
        value = loss(soup([*chosen, state]))
        if value <= best:
            chosen, best = [*chosen, state], value
    return soup(chosen)
