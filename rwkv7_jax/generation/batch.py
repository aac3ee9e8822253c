"""The arguments of one generation, checked and as arrays."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from rwkv7_jax import bucketing
from rwkv7_jax.finite import check_rows
from rwkv7_jax.functional import Params
from rwkv7_jax.generation import decode_loop
from rwkv7_jax.generation.decode_loop import Decoding, Rules
from rwkv7_jax.generation.sampling import Occurrences, SamplingArrays, SamplingFlags, SamplingParams
from rwkv7_jax.generation.speculative import Drafted
from rwkv7_jax.model import RWKV7, split_layers
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.wkv_state import WKVState

Compile = Callable[[str | None, Callable[..., PyTree], tuple[PyTree, ...]], Callable[..., PyTree]]
"""(what tells a function from others of the same arguments, the function, arguments or their shapes) -> the program,
which raises TypeError for arguments of other shapes."""


class Programs(NamedTuple):
    """What a batch calls, compiled before it is called."""

    prefill: Callable[..., Decoding]
    decode: Callable[..., Decoding]
    made_for: tuple[RWKV7, SamplingFlags, int]
    """The model, the flags, and the most tokens of a call of `decode`."""


class Arguments(NamedTuple):
    """Those of `generate`, but the draft."""

    model: RWKV7
    params: Params
    prompts: Sequence[Sequence[int]]
    state: State | None
    key: Key[Array, "*B"]
    config: SamplingParams = SamplingParams()
    stop: Sequence[Sequence[int]] = ()
    eos_id: int | None = None
    uncounted: Sequence[int] = ()


class GenerationBatch:
    """Checked arguments of one generation, as arrays."""

    def __init__(self, given: Arguments):
        model, self.params, prompts, state, key, config, stop, eos_id, uncounted = given
        self.model, self.flags = model, SamplingFlags.of(config)
        self.programs: Programs | None = None
        self.start = state
        vocab = model.config.vocab_size
        rows = [_checked_ids(row, vocab, f"prompt {i}") for i, row in enumerate(prompts)]
        if not rows:
            raise ValueError("generate: no prompts")
        stops = [_checked_ids(row, vocab, f"stop sequence {i}") for i, row in enumerate(stop)]
        self.prompt = jax.device_put(decode_loop.pad_left(rows, bucketing.padded_prompt_length(max(map(len, rows)))))
        self.state = fit_state(model, state, len(rows))
        self.keys = _row_keys(key, len(rows))
        weight = np.ones(vocab if self.flags.penalised else 0, np.float32)
        weight[list(uncounted) if self.flags.penalised else []] = 0
        self.limit = config.max_new_tokens
        eos = decode_loop.NO_TOKEN if eos_id is None else eos_id
        self._rules = jax.device_put(
            Rules(
                SamplingArrays.of(config),
                weight,
                decode_loop.pad_stops(stops),
                np.asarray(eos, np.int32),
                np.asarray(0, np.int32),
            )
        )

    def rules(self, size: int) -> Rules:
        """Returns the rules for a call that generates at most `size` tokens."""
        return self._rules._replace(limit=jax.device_put(np.asarray(min(size, self.limit), np.int32)))

    def compiled(self, compiler: Compile, size: int) -> Programs:
        """Compiles what `prefill` and `decode` call for up to `size` tokens; arrays may be given as shapes."""
        name = f"of {self.model!r} with {self.flags}" if type(self.model) is RWKV7 else None
        start = jax.eval_shape(partial(_started, self.model, self.flags), self.state, self.rules(0))
        reading = (self.params, *self.prompt, self.state, self.rules(0))
        writing = (self.params, start, self.keys, self.rules(1))
        with ThreadPoolExecutor(2) as pool:
            tasks = (
                pool.submit(compiler, name and f"prefill {name}", self._prefill, reading),
                pool.submit(compiler, name and f"decode {size} {name}", partial(self._decode, size), writing),
            )
            prefill, decode = (task.result() for task in tasks)
        return Programs(prefill, decode, (self.model, self.flags, size))

    def _prefill(self, *args: PyTree) -> Decoding:
        return decode_loop.prefill(self.model, *args, penalised=self.flags.penalised)

    def _decode(self, size: int, *args: PyTree) -> Decoding:
        return decode_loop.decode(self.model, *args, flags=self.flags, size=size)

    def prefill(self) -> Decoding:
        """Reads the prompts."""
        args = (self.params, *self.prompt, self.state, self.rules(0))
        return self._run(self.programs and self.programs.prefill, self._prefill, args)

    def _run(self, ready: Callable[..., Decoding] | None, otherwise: Callable[..., Decoding], args: tuple) -> Decoding:
        """Calls what is ready, if it takes such arguments."""
        if ready:
            try:
                return ready(*args)
            except TypeError:  # it was compiled for a state or a prompt of other shapes
                self.programs = None
        return otherwise(*args)

    def decode(self, now: Decoding, limit: int, size: int) -> Decoding:
        """Generates `limit` <= size tokens in every row that does not end before."""
        args = (self.params, now, self.keys, self.rules(limit))
        return self._run(self.programs and self.programs.decode, partial(self._decode, size), args)

    def run(self) -> tuple[Decoding, Decoding]:
        """Returns the batch after the prompts, and after all tokens, in one program."""
        size = bucketing.padded_prompt_length(self.limit)
        return decode_loop.prefill_and_decode(
            self.model, self.params, *self.prompt, self.state, self.keys, self.rules(size),
            flags=self.flags, size=size,
        )  # fmt: skip

    def drafted(self, end: Decoding) -> Drafted | None:
        """Returns what speculation did; None: there is no draft."""
        return None

    def check(self, wrong: Int[np.ndarray, "B"]) -> None:
        """Checks `Decoding.wrong`.

        Raises:
          NonFiniteLogitsError: a row has logits that are not finite; names the first, the token and the cause.
        """
        with cause_named(self.params, [] if self.start is None else [self.start]):
            check_rows(wrong)

    def settle(
        self, start: Decoding, end: Decoding, kept: list[list[int]], cut: Bool[np.ndarray, "B"]
    ) -> tuple[Float[Array, "B vocab"], State]:
        """Returns (logits, state) after the kept tokens; rows that were `cut` are read again.

        Raises:
          NonFiniteLogitsError: a row has logits that are not finite.
        """
        if not cut.any():
            self.check(jax.device_get(end.wrong))
            return end.logits, decode_loop.join(end.state)
        rows = [ids if again else [] for ids, again in zip(kept, cut, strict=True)]
        padded = decode_loop.pad_left(rows, bucketing.padded_prompt_length(max(map(len, rows))))
        tokens, valid, again = jax.device_put((*padded, np.asarray(cut)))
        logits, state, wrong = decode_loop.replay(self.model, self.params, start, end, tokens, valid, again)
        self.check(jax.device_get(wrong))
        return logits, state


def _started(model: RWKV7, flags: SamplingFlags, state: State, rules: Rules) -> Decoding:
    """Returns arrays like those that `decode_loop.prefill` returns."""
    rows, vocab = state.att_shift.shape[1], model.config.vocab_size
    counts = jnp.zeros(rows, jnp.int32)
    return Decoding(
        logits=jnp.zeros((rows, vocab), jnp.float32),
        state=state if model.config.scan_layers else split_layers(state),
        active=jnp.zeros(rows, jnp.bool_),
        recent=jnp.zeros((rows, rules.stops.shape[1]), jnp.int32),
        occurrences=Occurrences.none(rows, vocab if flags.penalised else 0),
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((rows, 0), jnp.int32),
        length=counts,
        stop_length=counts,
        wrong=counts,
    )


def _checked_ids(ids: Sequence[int], vocab_size: int, what: str) -> list[int]:
    ids = [int(i) for i in ids]
    if not ids:
        raise ValueError(f"generate: {what} is empty; give at least one token (the end token starts a text)")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise ValueError(
            f"generate: {what} has ids {min(ids)}..{max(ids)}, the model's vocabulary is 0..{vocab_size - 1}"
        )
    return ids


def _row_keys(key: Key[Array, "*B"], batch_size: int) -> Key[Array, "B"]:
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(batch_size, dtype=np.uint32))
    if key.shape != (batch_size,):
        raise ValueError(f"generate: give one key, or one for each of the {batch_size} prompts; got shape {key.shape}")
    return key


def fit_state(model: RWKV7, state: State | None, batch_size: int) -> State:
    """Returns the start of every row: batched, wkv in float32, shifts in the compute dtype.

    Raises:
      ValueError: its shapes do not fit.
    """
    zero = zero_state(model.config, batch_size)
    if state is None:
        return zero

    def fit(leaf: ArrayLike, like: Array | jax.ShapeDtypeStruct) -> Array:
        leaf = jnp.asarray(leaf)
        if leaf.shape == like.shape[:1] + like.shape[2:]:
            leaf = jnp.broadcast_to(leaf[:, None], like.shape)
        if leaf.shape != like.shape:
            raise ValueError(f"generate: a state leaf has shape {leaf.shape}, model and batch need {like.shape}")
        return leaf.astype(like.dtype)

    state = State(*state)
    if not isinstance(state.wkv, WKVState):
        return jax.tree.map(fit, state, zero)
    inner = 2 if jnp.ndim(state.wkv.s) == zero.wkv.ndim else 1

    def like(leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*zero.wkv.shape[:2], *jnp.shape(leaf)[inner:]), jnp.float32)

    wkv = jax.tree.map(lambda leaf: fit(leaf, like(leaf)), state.wkv)
    fit(wkv.s, zero.wkv)
    return State(fit(state.att_shift, zero.att_shift), fit(state.ffn_shift, zero.ffn_shift), wkv)
