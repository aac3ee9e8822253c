"""A checkpoint made usable: weights, dimensions and tokenizer in one value."""

import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rwkv7_jax import checkpoint, functional
from rwkv7_jax.checkpoint import remote
from rwkv7_jax.checkpoint.states import TunedState, state_metadata
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.dtypes import Quantise, compute_name, on_device, placed, quantised, quantised_bits
from rwkv7_jax.finite import NonFiniteLogitsError, not_finite
from rwkv7_jax.functional import Params
from rwkv7_jax.generation import forced
from rwkv7_jax.generation import generate as generation
from rwkv7_jax.generation.arguments import random_key, sampling_params, text_list, token_ids
from rwkv7_jax.generation.generate import Draft, TextResult
from rwkv7_jax.generation.weights import few
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.scoring import PrefixScorer
from rwkv7_jax.model import RWKV7, repeated_layers
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.tokenizer import Tokenizer, load_tokenizer
from rwkv7_jax.tokenizer.loading import find_tokenizer
from rwkv7_jax.wkv_state import WKVState


@dataclasses.dataclass(frozen=True, repr=False)
class LanguageModel:
    """A frozen RWKV-7 with its tokenizer; its methods change nothing.

    States are unbatched: a `State`, or a `TunedState` as `load_state` returns it.

    Example:
      >>> from rwkv7_jax import LanguageModel, RWKV7, RWKV7Config, load_tokenizer
      >>> from rwkv7_jax.model import init_params
      >>> model = RWKV7(RWKV7Config(vocab_size=256, n_layer=1, n_embd=8, head_size=4))
      >>> params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
      >>> lm = LanguageModel(model, params, load_tokenizer("byte"))
      >>> logits, state = lm.logits("Hello")
      >>> logits.shape
      (5, 256)
    """

    model: RWKV7
    """The model's description."""
    params: Params
    """Its weights, on the device."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    weights_hash: str = ""
    """SHA-256 of the weights as they are in the file; state files name their base model by it."""
    path: Path | None = None
    """The file or folder it was loaded from."""
    tokenizer_name: str = "auto"
    """As `rwkv7_jax.tokenizer.load_tokenizer` takes it."""
    parameter_count: int = 0
    """Numbers in the weights."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        tokenizer: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        remat: Literal["none", "dots", "block"] = "none",
        wkv: str | None = None,
        quantise: Quantise = "auto",
    ) -> "LanguageModel":
        """Loads a checkpoint with its tokenizer; weights go to the devices of the mesh that is set, if any.

        Args:
          path: `.pth`, `.safetensors`, a Hugging Face folder, or rwkv.cpp's `.bin`; or an address,
            `hf://OWNER/NAME[/FILE]` or `https://...`, which is downloaded (`rwkv7_jax.checkpoint.remote`).
          tokenizer: "auto" (the tokenizer.json beside the checkpoint, else by the vocabulary's size), "world", "byte",
            or the path of a tokenizer.json.
          dtype: compute dtype; "auto": float32 on a CPU, bfloat16 elsewhere. On a CPU bfloat16 is for matrices alone.
          remat: what the backward pass computes again, see `RWKV7Config.remat`.
          wkv: implementation of the WKV op; None picks by device.
          quantise: "int8" or "int4" matrices, see `rwkv7_jax.quantisation`; "auto" as the file holds them; "none".

        Returns:
          The model.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: one line, for a file that is not a sound RWKV-7 checkpoint, or a tokenizer that does not fit.
        """
        path = remote.fetched(str(path)) if remote.is_address(str(path)) else Path(path).expanduser()
        loaded = checkpoint.load(path, lazy=True)
        config = dataclasses.replace(on_device(loaded.config, dtype), remat=remat, wkv_implementation=wkv)
        name = find_tokenizer(tokenizer, path)
        return cls(
            RWKV7(config),
            placed(quantised(loaded.params, quantise), config.dtype),
            load_tokenizer(name, config.vocab_size, path),
            loaded.report.weights_hash,
            path,
            name,
            loaded.report.parameter_count,
        )

    @property
    def config(self) -> RWKV7Config:
        """Dimensions and compute options."""
        return self.model.config

    @property
    def summary(self) -> str:
        """One line: size, dimensions, dtype and device."""
        c, count = self.config, f"{self.parameter_count / 1e6:.2f}M parameters"
        dimensions = f"{c.n_layer} layers x {c.n_embd}, {c.n_head} heads, vocabulary {c.vocab_size}"
        return f"{count}, {dimensions}, {compute_name(c, self.params)}"

    @functools.cached_property
    def identity(self) -> str:
        """What identifies results: `weights_hash`, and the bits of quantised weights."""
        return f"{self.weights_hash} {quantised_bits(self.params)}".rstrip()

    def replace(self, **fields: PyTree) -> "LanguageModel":
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **fields)

    def __repr__(self) -> str:
        return f"LanguageModel({str(self.path or 'in memory')!r}: {self.summary})"

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        return self.tokenizer.decode(ids)

    def zero_state(self, batch_size: int | None = None) -> State:
        """Returns the state before any text, see `rwkv7_jax.zero_state`."""
        return zero_state(self.config, batch_size)

    @functools.cached_property
    def for_decoding(self) -> tuple[RWKV7, Params]:
        """(model, weights) with the layers one by one, as decoding is fastest; the copy of the weights is kept."""
        return generation.for_decoding(*self.__dict__.get("for_few_rows", (self.model, self.params)))

    @functools.cached_property
    def for_few_rows(self) -> tuple[RWKV7, Params]:
        """The same for few sequences, see `rwkv7_jax.generation.weights.few`; what lies alike in both is one array."""
        return generation.for_decoding(*self.__dict__.get("for_decoding", (self.model, self.params)), few_rows=True)

    def for_rows(self, rows: int) -> tuple[RWKV7, Params]:
        """(model, weights) as so many sequences side by side are decoded fastest."""
        return self.for_few_rows if few(rows) else self.for_decoding

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        state: State | TunedState | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        draft: Draft | None = None,
        **sampling: float | int,
    ) -> str | list[str]:
        """Continues one prompt or several.

        Args:
          prompt: a text, or a list of texts that are continued side by side.
          state: the initial state, unbatched; None is the zero state.
          seed: same seed, same text.
          stop: texts that end a continuation and are left out of it.
          draft: a smaller model that proposes tokens, `Draft(*small.for_few_rows)`; see there.
          **sampling: fields of `SamplingParams`: temperature, top_p, top_k, max_new_tokens, and the penalties.

        Returns:
          The continuation, or a list of them if `prompt` is a list.

        Raises:
          ValueError: an unknown or wrong setting, a state of another model, or logits that are not finite.
        """
        prompts = text_list("prompt", prompt)
        key, settings = random_key(seed), sampling_params(sampling)
        stops, given = text_list("stop", stop), (self.tokenizer, prompts, _plain(state), key, settings)
        texts = generation.generate_text(*self.for_rows(len(prompts)), *given, stop=stops, draft=draft).texts
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self,
        prompt: str,
        *,
        state: State | TunedState | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        draft: Draft | None = None,
        **sampling: float | int,
    ) -> Generator[str, None, TextResult]:
        """Continues one prompt piece by piece.

        Args:
          prompt: a text.
          state: the initial state, unbatched; None is the zero state.
          seed: same seed, same text.
          stop: texts that end the continuation and are left out of it.
          draft: as for `generate`.
          **sampling: fields of `SamplingParams`.

        Returns:
          A generator of pieces of text, which join to the text of `generate`; it returns the `TextResult`.

        Raises:
          ValueError: an unknown or wrong setting, a state of another model, or logits that are not finite.
        """
        (text,), stops = text_list("prompt", prompt), text_list("stop", stop)
        given = (self.tokenizer, text, _plain(state), random_key(seed), sampling_params(sampling))
        return generation.stream(*self.for_few_rows, *given, stop=stops, draft=draft)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        state: State | TunedState | None = None,
        batch_size: int = 32,
        as_decoded: bool = False,
    ) -> list[float]:
        """Computes log P(continuation | context) of each pair, tokens as lm-evaluation-harness splits them.

        Args:
          pairs: (context, continuation) each; equal beginnings are read once.
          state: the initial state, unbatched; None is the zero state.
          batch_size: sequences at once.
          as_decoded: read them as `generate` does so many prompts, token by token: slow, and the same bits on a CPU.

        Returns:
          Summed log-probabilities in nats.

        Raises:
          ValueError: a continuation without a token of its own, or a state of another model.
          TypeError: no pairs.
        """
        if isinstance(pairs, str) or any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
            raise TypeError("score: give a list of (context, continuation) pairs")
        encoder = Encoder(self.tokenizer)
        sequences = [encoder.pair(context, continuation) for context, continuation in pairs]
        if as_decoded:
            parts = [(one.tokens[: one.start], one.tokens[one.start :]) for one in sequences]
            return forced.scores(*self.for_rows(batch_size), parts, self._initial(state), batch_size)
        scorer = PrefixScorer(self.model, self.params, batch_size)
        return [answer.log_likelihood for answer in scorer.score(sequences, [self._initial(state)])]

    def logits(
        self, text: str | Sequence[int], *, state: State | TunedState | None = None
    ) -> tuple[Float[Array, "T vocab"], State]:
        """Computes the logits after every token of a text.

        Args:
          text: a text, or token ids.
          state: the initial state, unbatched; None is the zero state.

        Returns:
          (logits [T, vocab] float32, unbatched state after the last token).

        Raises:
          ValueError: no token, one outside the vocabulary, a state of another model, or logits that are not finite.
        """
        found = self.encode(text) if isinstance(text, str) else text
        ids = token_ids("logits", found, self.config.vocab_size)
        batched = jax.tree.map(lambda leaf: leaf[:, None], self._initial(state))
        found, after = _forward(self.model, self.params, jnp.asarray([ids], jnp.int32), batched)
        if (wrong := np.flatnonzero(jax.device_get(not_finite(found[0])))).size:
            with cause_named(self.params, [] if state is None else [_plain(state)]):
                raise NonFiniteLogitsError(f"the logits after token {wrong[0] + 1} of the text are not finite")
        return found[0], jax.tree.map(lambda leaf: leaf[:, 0], after)

    def step(
        self, tokens: int | Sequence[int], state: State | TunedState | list[State] | None = None
    ) -> tuple[Float[Array, "*B vocab"], list[State]]:
        """Feeds one token, or one a row, for decoding with a choice of one's own.

        Args:
          tokens: a token id, or one for each row of a batch.
          state: unbatched, where all rows start; or what an earlier step returned, whose memory is written over.

        Returns:
          (float32 logits [vocab], or [B, vocab] of several rows; the state after the tokens, for the next step).
          Logits are not checked for being finite: nothing waits for the device.

        Raises:
          ValueError: a token outside the vocabulary, or a state of another model.
        """
        rows = np.asarray(tokens, np.int32)
        if rows.ndim > 1 or rows.size == 0 or rows.min() < 0 or rows.max() >= self.config.vocab_size:
            raise ValueError(f"step: give a token, or one a row, in 0..{self.config.vocab_size - 1}")
        before = state if isinstance(state, list) else repeated_layers(self._initial(state), rows.size)
        if len(batch := before[0].att_shift) != rows.size:
            raise ValueError(f"step: {rows.size} tokens for a state of {len(batch)} rows")
        logits, after = _step(*self.for_rows(rows.size), jnp.asarray(rows.reshape(-1, 1)), before)
        return (logits if rows.ndim else logits[0]), after

    def tuned_state(
        self,
        state: State,
        method: str,
        *,
        task: str | None = None,
        config: Mapping[str, object] | None = None,
        metrics: Mapping[str, object] | None = None,
    ) -> TunedState:
        """Joins a state with what its file says about it: this model's hash, the method, its settings and results.

        Args:
          state: an unbatched state.
          method: name of the method that made it.
          task: what it was tuned for.
          config: settings of the method.
          metrics: what was measured.

        Returns:
          The state with its metadata; `save(path)` writes both.
        """
        metadata = state_metadata(self.weights_hash, method, task=task, config=config, metrics=metrics)
        return TunedState(state, metadata)

    def _initial(self, state: State | TunedState | None) -> State:
        """Returns an unbatched state on the device, its shifts in the compute dtype."""
        zero, start = self.zero_state(), _plain(state)
        if start is None:
            return zero
        wkv = start.wkv.s if isinstance(start.wkv, WKVState) else start.wkv
        for leaf, like in zip((start.att_shift, start.ffn_shift, wkv), zero, strict=True):
            if jnp.shape(leaf) != like.shape:
                raise ValueError(f"a state leaf has shape {jnp.shape(leaf)}, the model needs {like.shape}")
        start, dtype = jax.tree.map(jnp.asarray, start), self.config.activation_dtype
        return start._replace(att_shift=start.att_shift.astype(dtype), ffn_shift=start.ffn_shift.astype(dtype))


_forward = jax.jit(functional.forward, static_argnums=0)
_step = jax.jit(functional.step, static_argnums=0, donate_argnums=3)


def _plain(state: State | TunedState | None) -> State | None:
    if not isinstance(state, State | TunedState | None):
        raise TypeError(f"state: give a State, or what load_state returns, not {type(state).__name__}")
    return state.state if isinstance(state, TunedState) else state
