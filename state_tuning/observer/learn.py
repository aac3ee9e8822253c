"""An observer that learns: the weights of the small model are trained, the observed model is frozen.

The loss is the whole `sum_l |P_l S^_t - S_t|^2 / |S_t|^2 + KL(large | small)`: the small model learns states from which
those of the large one can be read, and to predict what the large one predicts. With a gain it is trained in the
corrective form (Luenberger): after each comparison the innovation is fed back, and the next one judges a forecast.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from rwkv7_jax.functional import Params
from rwkv7_jax.model import RWKV7
from rwkv7_jax.sharding import pin, whole
from rwkv7_jax.state import zero_state
from state_tuning.core.objective import Batch, cut, mean
from state_tuning.core.train import Metrics, TuneState, guarded_update
from state_tuning.observer import state_map
from state_tuning.observer.observe import Observer, relative_error, run_both

__all__ = ["LearnConfig", "by_part", "learnable", "learnt", "make_learn_step"]

LearnStep = Callable[[Params, TuneState, Batch], tuple[TuneState, Metrics]]
"""(weights of the large model, tuned, batch) -> (tuned, metrics)"""


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """What is learnt, and when the states are compared."""

    every: int = 16
    """Tokens between two comparisons of the states, and between two corrections."""
    gain: float = 0.0
    """Of the corrections while learning; 0 for none."""
    state: float = 1.0
    """Weight of `sum_l |P_l S^ - S|^2 / |S|^2`."""
    kl: float = 1.0
    """Weight of KL(large | small), nats per token."""

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every is {self.every}, it must be at least 1")
        if not all(0 <= x < math.inf for x in (self.gain, self.state, self.kl)) or self.state + self.kl == 0:
            raise ValueError("gain, state and kl must be finite and not negative, and one of state and kl above 0")


def learnable(params: Params, observer: Observer, config: LearnConfig) -> dict[str, PyTree]:
    """Returns what `make_learn_step` trains.

    Args:
      params: the small model's weights.
      observer: maps to start from.
      config: with a gain the maps `down`, which corrections alone use, are trained too.

    Returns:
      {"small": weights, "up": factors of the maps} and, with a gain, "down".
    """
    tree = {"small": params, "up": state_map.factors(observer.up)}
    return tree | ({"down": state_map.factors(observer.down)} if config.gain else {})


def learnt(tree: dict[str, PyTree], observer: Observer) -> Observer:
    """Puts trained maps into an observer.

    Args:
      tree: as `learnable` returns it, after training.
      observer: the maps that training started from.

    Returns:
      The observer with the trained factors; all else is that of `observer`.
    """
    return Observer(*(maps._replace(**tree.get(name, {})) for name, maps in observer._asdict().items()))


def make_learn_step(
    small: RWKV7, large: RWKV7, observer: Observer, optimizer: optax.GradientTransformation, config: LearnConfig
) -> LearnStep:
    """Returns a jitted `step(large params, tuned, batch) -> (tuned, metrics)`; `tuned` is donated.

    The large model's weights are never differentiated. An update that is not finite leaves everything as it was.

    Args:
      small: the observer's model.
      large: the model that is observed.
      observer: maps to start from; their source layers and scales stay.
      optimizer: any optax transform of a tree as `learnable` returns it.
      config: the loss.

    Returns:
      The step. `tuned` comes from `train.init(optimizer, learnable(small params, observer, config))`. Its metrics
      beside those of `train.guarded_update`: state_error (the first term) and kl.
    """
    gain = jnp.float32(config.gain) if config.gain else None

    def step(large_params: Params, tuned: TuneState, batch: Batch) -> tuple[TuneState, Metrics]:
        data = {name: cut(batch[name], config.every) for name in ("tokens", "valid")}

        def loss(tree: dict[str, PyTree]) -> tuple[Array, tuple[Array, Array]]:
            start = zero_state(small.config, None)
            seen = run_both(
                small, large, tree["small"], large_params, learnt(tree, observer), start, data, gain, judged=False
            )
            assert seen.predicted is not None
            error = relative_error(seen.predicted, seen.large, seen.valid).sum()
            divergence = mean(seen.kl_logits.sum(), seen.tokens.sum())
            return config.state * error + config.kl * divergence, (error, divergence)

        (value, (error, divergence)), grads = jax.value_and_grad(loss, has_aux=True)(tuned.trainable)
        tuned, metrics = guarded_update(optimizer, tuned, value, grads)
        metrics |= {"state_error": error, "kl": divergence}
        return pin(tuned), whole(metrics)

    return jax.jit(step, donate_argnums=1)


def by_part(weights: optax.GradientTransformation, maps: optax.GradientTransformation) -> optax.GradientTransformation:
    """Joins two optimisers to one of a tree as `learnable` returns it.

    Args:
      weights: moves the small model's weights.
      maps: moves the factors of the maps.

    Returns:
      The transform, whose state is {"weights", "maps"}.
    """

    def init(tree: dict[str, PyTree]) -> dict[str, optax.OptState]:
        return {"weights": weights.init(tree["small"]), "maps": maps.init(_maps(tree))}

    def update(
        grads: dict[str, PyTree], state: dict[str, optax.OptState], tree: dict[str, PyTree] | None = None
    ) -> tuple[dict[str, PyTree], dict[str, optax.OptState]]:
        own = (None, None) if tree is None else (tree["small"], _maps(tree))
        moved, first = weights.update(grads["small"], state["weights"], own[0])
        others, second = maps.update(_maps(grads), state["maps"], own[1])
        return {"small": moved} | cast(dict[str, PyTree], others), {"weights": first, "maps": second}

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _maps(tree: dict[str, PyTree]) -> dict[str, PyTree]:
    return {name: part for name, part in tree.items() if name != "small"}
