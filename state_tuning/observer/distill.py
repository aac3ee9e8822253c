"""Context distillation: compile a prompt into a state.

RWKV-7's state after a prompt *is* the compiled prompt: a text read from it gives the logits that it gives after the
prompt. What is left to fit is what a state file of other tools drops of it, the token-shift states, and a lower rank of
its matrices: S_0 then minimises `E_t KL(p(. | prompt, x_<=t) | p(. | x_<=t, S_0))` over texts x, from the exact state
without what was dropped.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.generation.generate import SamplingConfig, generate
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from state_tuning.core import surgery, train
from state_tuning.core.divergence import apply_gradients, kl_sums
from state_tuning.core.objective import Batch, Example, collate, mean
from state_tuning.core.train import Method, TuneConfig, TuneState

SEGMENT = 1024
"""Prompt tokens read at once."""

DistillStep = Callable[[PyTree, State, TuneState, Batch], tuple[TuneState, dict[str, Array]]]
DivergenceStep = Callable[[PyTree, State, State, Batch], tuple[Array, Array]]


def compile_prompt(model: RWKV7, params: PyTree, tokens: Sequence[int], state: State | None = None) -> State:
    """The unbatched float32 state after `tokens`, read from `state` (unbatched; None: the zero state).

    Raises: ValueError for an empty prompt.
    """
    if not tokens:
        raise ValueError("compile_prompt: the prompt has no token; give a text")
    start = surgery.broadcast(zero_state(model.config, None) if state is None else state, 1)
    now = _like_compute(start, model)
    for begin in range(0, len(tokens), SEGMENT):
        part = tokens[begin : begin + SEGMENT]
        padded = np.zeros((1, SEGMENT if len(tokens) > SEGMENT else padded_prompt_length(len(part))), np.int32)
        padded[0, : len(part)] = part
        now = _read(model, params, padded, np.arange(padded.shape[1])[None] < len(part), now)
    return jax.tree.map(lambda leaf: leaf[:, 0].astype(jnp.float32), now)


def portable(state: State, rank: int | None = None) -> State:
    """What other tools' state files hold of a state: no token-shift states, and matrices of the nearest lower rank.

    Raises: ValueError for a rank that the heads do not have.
    """
    wkv = state.wkv if rank is None else surgery.expand(surgery.truncate_rank(state, rank)).wkv
    return State(jnp.zeros_like(state.att_shift), jnp.zeros_like(state.ffn_shift), wkv)


def sample_texts(
    model: RWKV7,
    params: PyTree,
    prompt: Sequence[int],
    key: Key[Array, ""],
    count: int,
    length: int,
    eos_id: int | None = 0,
) -> list[list[int]]:
    """Texts that the model writes after the prompt at temperature 1, of at most `length` tokens each; no empty ones.

    eos_id: ends a text; None: none does.
    """
    before = compile_prompt(model, params, prompt[:-1]) if len(prompt) > 1 else None
    settings = SamplingConfig(max_new_tokens=length)
    rows = generate(model, params, [list(prompt[-1:])] * count, before, key, settings, eos_id=eos_id).tokens
    return [row for row in rows if row]


def text_batch(texts: Sequence[Sequence[int]], length: int, batch_size: int | None = None) -> Batch:
    """Texts as rows whose every token counts: the logits after each of them are compared.

    Raises: ValueError for a text longer than `length` tokens.
    """
    examples = [Example(np.asarray([*text, 0], np.int32), 1, 0) for text in texts]
    return collate(examples, length, batch_size)


def method(model: RWKV7, start: State, tune: TuneConfig, rank: int | None = None) -> Method:
    """Trains S_0 (and the token-shift states with `tune.tune_shifts`) from the unbatched state `start`.

    rank: train the two factors of each matrix instead, so that every matrix stays of that rank; shifts are then zero.
    Raises: ValueError if `tune.alpha` is 0.
    """
    if not tune.alpha:
        raise ValueError("distill: alpha is 0, from which no prompt's state can be reached; give another value")
    base = train.standard(model.config, tune)
    start = surgery.scale(start, 1.0 / tune.alpha)
    if rank is None:
        where = State._fields if tune.tune_shifts else ("wkv",)
        return base._replace(init=lambda: surgery.split(start, where)[0])
    factored = surgery.truncate_rank(start, rank)
    trainable = {"u": factored.u, "w": factored.w}
    none: Any = None

    def matrices(tree: dict[str, Array]) -> State:
        return State(none, none, jnp.einsum("lhvr,lhrk->lhvk", tree["u"], tree["w"], precision="highest"))

    def full(tree: dict[str, Array]) -> State:
        return train.full_state(model.config, matrices(tree), tune)

    return Method(lambda: trainable, lambda tree, batch_size: base.graft(matrices(tree), batch_size), full)


def make_step(model: RWKV7, optimizer: optax.GradientTransformation, tune: TuneConfig, method: Method) -> DistillStep:
    """A jitted `step(params, wanted, tuned, batch) -> (tuned, metrics)`; `tuned` (see `train.init`) is donated.

    wanted: the unbatched state whose logits are to be met. The loss is the mean KL in nats over `batch["loss_mask"]`;
    metrics as in `divergence.apply_gradients`.
    """

    def step(params: PyTree, wanted: State, tuned: TuneState, batch: Batch) -> tuple[TuneState, dict[str, Array]]:
        def loss(trainable: PyTree) -> Array:
            state = method.graft(trainable, batch["tokens"].shape[0])
            kl, count = _divergence(model, params, wanted, state, batch, tune.loss_chunk)
            return mean(kl.sum(), count.sum())

        return apply_gradients(optimizer, tuned, *jax.value_and_grad(loss)(tuned.trainable))

    return jax.jit(step, donate_argnums=2)


def make_divergence(model: RWKV7, chunk: int = 128) -> DivergenceStep:
    """A jitted `(params, wanted, state, batch) -> (KL sum [B], tokens [B])` of two unbatched states."""

    def divergence(params: PyTree, wanted: State, state: State, batch: Batch) -> tuple[Array, Array]:
        rows = _like_compute(surgery.broadcast(state, batch["tokens"].shape[0]), model)
        return _divergence(model, params, wanted, rows, batch, chunk)

    return jax.jit(divergence)


def _divergence(
    model: RWKV7, params: PyTree, wanted: State, state: State, batch: Batch, chunk: int
) -> tuple[Array, Array]:
    """KL(from `wanted`, unbatched | from `state`, batched) summed over each row's masked tokens, and their number."""
    apply: Callable[..., Any] = model.apply
    variables = {"params": params}
    tokens, mask, valid = (jnp.asarray(batch[name]) for name in ("tokens", "loss_mask", "valid"))
    target = _like_compute(surgery.broadcast(wanted, tokens.shape[0]), model)
    meant, _ = apply(variables, tokens, jax.lax.stop_gradient(target), valid=valid, method="hidden")
    hidden, _ = apply(variables, tokens, state, valid=valid, method="hidden")

    def head(x: Array) -> Array:
        return apply(variables, x, method="logits")

    return kl_sums(jax.lax.stop_gradient(meant), head, hidden, head, mask, chunk=chunk), mask.sum(-1)


def _like_compute(state: State, model: RWKV7) -> State:
    """The state with its token-shift states in the model's compute dtype."""
    dtype = jnp.dtype(model.config.dtype)
    return state._replace(att_shift=state.att_shift.astype(dtype), ffn_shift=state.ffn_shift.astype(dtype))


@partial(jax.jit, static_argnums=0)
def _read(model: RWKV7, params: PyTree, tokens: Any, valid: Any, state: State) -> State:
    apply: Callable[..., Any] = model.apply
    return apply({"params": params}, tokens, state, valid=valid, method="hidden")[1]
