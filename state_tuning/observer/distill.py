"""Context distillation: compile a prompt into a state.

RWKV-7's state after a prompt is the compiled prompt: a text read from it gives the logits that it gives after the
prompt. What is left to fit is what a state file of other tools drops of it, the token-shift states, and a lower rank of
its matrices: S_0 then minimises `E_t KL(p(. | prompt, x_<=t) | p(. | x_<=t, S_0))` over texts x, from the exact state
without what was dropped.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from rwkv7_jax import functional
from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.generate import SamplingParams, generate
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from state_tuning.core import surgery, train
from state_tuning.core.divergence import kl_sums
from state_tuning.core.objective import Batch, Example, collate, mean
from state_tuning.core.train import Method, Metrics, TuneConfig, TuneState, guarded_update

__all__ = [
    "compile_prompt",
    "make_divergence",
    "make_step",
    "method",
    "portable",
    "sample_texts",
    "text_batch",
]

SEGMENT = 1024
"""Prompt tokens read at once."""

DistillStep = Callable[[Params, State, TuneState, Batch], tuple[TuneState, Metrics]]
DivergenceStep = Callable[[Params, State, State, Batch], tuple[Array, Array]]


def compile_prompt(model: RWKV7, params: Params, tokens: Sequence[int], state: State | None = None) -> State:
    """Reads a prompt and returns the state after it.

    Args:
      model: the model's description.
      params: its weights.
      tokens: token ids of the prompt.
      state: the unbatched state to read from; None is the zero state.

    Returns:
      The unbatched float32 state.

    Raises:
      ValueError: the prompt is empty.
    """
    if not tokens:
        raise ValueError("compile_prompt: the prompt has no token; give a text")
    start = surgery.broadcast(zero_state(model.config, None) if state is None else state, 1)
    now = _like_compute(start, model)
    for begin in range(0, len(tokens), SEGMENT):
        part = tokens[begin : begin + SEGMENT]
        padded = np.zeros((1, SEGMENT if len(tokens) > SEGMENT else padded_prompt_length(len(part))), np.int32)
        padded[0, : len(part)] = part
        valid = np.arange(padded.shape[1])[None] < len(part)
        now = _read(model, params, jnp.asarray(padded), jnp.asarray(valid), now)
    return jax.tree.map(lambda leaf: leaf[:, 0].astype(jnp.float32), now)


def portable(state: State, rank: int | None = None) -> State:
    """Returns what other tools' state files hold of a state.

    Args:
      state: unbatched.
      rank: of each matrix of the result; None: the matrices stay.

    Returns:
      The state without token-shift states, its matrices the nearest of that rank.

    Raises:
      ValueError: the heads do not have that rank.
    """
    wkv = state.wkv if rank is None else surgery.expand(surgery.truncate_rank(state, rank)).wkv
    return State(jnp.zeros_like(state.att_shift), jnp.zeros_like(state.ffn_shift), wkv)


def sample_texts(
    model: RWKV7,
    params: Params,
    prompt: Sequence[int],
    key: Key[Array, ""],
    count: int,
    length: int,
    eos_id: int | None = 0,
) -> list[list[int]]:
    """Samples texts that the model writes after the prompt at temperature 1.

    Args:
      model: the model's description.
      params: its weights.
      prompt: token ids.
      key: of the samples.
      count: number of texts.
      length: tokens of each at most.
      eos_id: ends a text; None: none does.

    Returns:
      Token ids of each text; empty ones are left out.
    """
    before = compile_prompt(model, params, prompt[:-1]) if len(prompt) > 1 else None
    settings = SamplingParams(max_new_tokens=length)
    rows = generate(model, params, [list(prompt[-1:])] * count, before, key, settings, eos_id=eos_id).tokens
    return [row for row in rows if row]


def text_batch(texts: Sequence[Sequence[int]], length: int, batch_size: int | None = None) -> Batch:
    """Collates texts to sequences whose every token counts: the logits after each of them are compared.

    Args:
      texts: token ids of each, as `sample_texts` returns them.
      length: T, positions of each sequence.
      batch_size: B; sequences that are all padding fill it up. None: the number of texts.

    Returns:
      The batch [B, T], for the step of `make_step`.

    Raises:
      ValueError: a text is longer than `length` tokens.
    """
    examples = [Example(np.asarray([*text, 0], np.int32), 1, 0) for text in texts]
    return collate(examples, length, batch_size)


def method(model: RWKV7, start: State, tune: TuneConfig, rank: int | None = None) -> Method:
    """Returns the method that trains S_0 from the unbatched state `start`.

    Args:
      model: the model's description.
      start: the state after the prompt, or what is kept of it.
      tune: with `tune_shifts` the token-shift states are trained too.
      rank: train the two factors of each matrix instead, so that every matrix stays of that rank; shifts are then zero.

    Returns:
      The method.

    Raises:
      ValueError: `tune.alpha` is 0.
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

    def matrices(tree: dict[str, Array]) -> State:
        s = jnp.einsum("lhvr,lhrk->lhvk", tree["u"], tree["w"], precision="highest")
        return State(None, None, s)  # pyright: ignore[reportArgumentType]

    def full(tree: dict[str, Array]) -> State:
        return train.full_state(model.config, matrices(tree), tune)

    return Method(lambda: trainable, lambda tree, batch_size: base.graft(matrices(tree), batch_size), full)


def make_step(model: RWKV7, optimizer: optax.GradientTransformation, tune: TuneConfig, method: Method) -> DistillStep:
    """Returns a jitted `step(params, wanted, tuned, batch) -> (tuned, metrics)`; `tuned` (see `train.init`) is donated.

    The loss is the mean KL in nats over `batch["loss_mask"]`; metrics as in `train.guarded_update`. `wanted` is the
    unbatched state whose logits are to be met.

    Args:
      model: the model's description.
      optimizer: any optax transform.
      tune: settings, of which `loss_chunk` is used.
      method: what is trained, see `distill.method`.

    Returns:
      The step.
    """

    def step(params: Params, wanted: State, tuned: TuneState, batch: Batch) -> tuple[TuneState, Metrics]:
        def loss(trainable: PyTree) -> Array:
            state = method.graft(trainable, batch["tokens"].shape[0])
            kl, count = _divergence(model, params, wanted, state, batch, tune.loss_chunk)
            return mean(kl.sum(), count.sum())

        return guarded_update(optimizer, tuned, *jax.value_and_grad(loss)(tuned.trainable))

    return jax.jit(step, donate_argnums=2)


def make_divergence(model: RWKV7, chunk: int = 128) -> DivergenceStep:
    """Returns a jitted `divergence(params, wanted, state, batch)` of two unbatched states, for held-out texts.

    Args:
      model: the model's description.
      chunk: tokens of each sequence whose logits exist at a time.

    Returns:
      The function. It returns (KL(from wanted | from state) summed over each text's tokens [B], nats; tokens [B]).
    """

    def divergence(params: Params, wanted: State, state: State, batch: Batch) -> tuple[Array, Array]:
        rows = _like_compute(surgery.broadcast(state, batch["tokens"].shape[0]), model)
        return _divergence(model, params, wanted, rows, batch, chunk)

    return jax.jit(divergence)


def _divergence(
    model: RWKV7, params: Params, wanted: State, state: State, batch: Batch, chunk: int
) -> tuple[Array, Array]:
    """KL(from `wanted`, unbatched | from `state`, batched) summed over each sequence's tokens, and their count."""
    tokens, mask, valid = (jnp.asarray(batch[name]) for name in ("tokens", "loss_mask", "valid"))
    target = _like_compute(surgery.broadcast(wanted, tokens.shape[0]), model)
    meant, _ = functional.hidden(model, params, tokens, jax.lax.stop_gradient(target), valid=valid)
    hidden, _ = functional.hidden(model, params, tokens, state, valid=valid)

    def head(x: Array) -> Array:
        return functional.logits(model, params, x)

    return kl_sums(jax.lax.stop_gradient(meant), head, hidden, head, mask, chunk=chunk), mask.sum(-1)


def _like_compute(state: State, model: RWKV7) -> State:
    """The state with its token-shift states in the model's compute dtype."""
    dtype = jnp.dtype(model.config.activation_dtype)
    return state._replace(att_shift=state.att_shift.astype(dtype), ffn_shift=state.ffn_shift.astype(dtype))


@partial(jax.jit, static_argnums=0)
def _read(model: RWKV7, params: Params, tokens: Array, valid: Array, state: State) -> State:
    return functional.hidden(model, params, tokens, state, valid=valid)[1]
