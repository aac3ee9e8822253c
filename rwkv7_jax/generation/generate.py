"""Generation of tokens and of text: batches with one state a row, stop sequences, and streaming."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rwkv7_jax import bucketing
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.batch import Arguments, Compile, GenerationBatch, Programs
from rwkv7_jax.generation.draft import Draft, make_batch
from rwkv7_jax.generation.sampling import SamplingFlags, SamplingParams, sample_logits
from rwkv7_jax.generation.speculative import Drafted
from rwkv7_jax.generation.stop_strings import StopText, cut_tokens
from rwkv7_jax.generation.weights import for_decoding
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer import Tokenizer

__all__ = [
    "Draft", "Drafted", "GenerateResult", "SamplingParams", "TextResult",
    "for_decoding", "generate", "generate_text", "sample_logits", "stream", "uncounted_ids",
]  # fmt: skip


class GenerateResult(NamedTuple):
    """What was generated, row by row, and what is needed to go on."""

    tokens: list[list[int]]
    """Without the end token or the stop sequence."""
    state: State
    """After the row's prompt and `tokens`, no more and no less; [L, B, ...]."""
    finished: list[bool]
    """True: ended by itself (end token, stop). False: cut by max_new_tokens."""
    logits: Float[Array, "B vocab"]
    """For the token after `tokens`, float32."""
    drafted: Drafted | None = None
    """What the draft did, if there is one."""


class TextResult(NamedTuple):
    """A `GenerateResult` with the text of each row."""

    texts: list[str]
    """What the tokens of each row decode to."""
    tokens: list[list[int]]
    """Without the end token or the stop string."""
    state: State
    """After the row's prompt and `tokens`; [L, B, ...]."""
    finished: list[bool]
    """True: ended by itself (end token, stop). False: cut by max_new_tokens."""
    logits: Float[Array, "B vocab"]
    """For the token after `tokens`, float32."""
    drafted: Drafted | None = None
    """What the draft did, if there is one."""
    stopped: Sequence[bool] = ()
    """Whether a stop string ended each row."""


def generate(
    model: RWKV7,
    params: Params,
    prompts: Sequence[Sequence[int]],
    state: State | None,
    key: Key[Array, "*B"],
    config: SamplingParams,
    *,
    stop: Sequence[Sequence[int]] = (),
    eos_id: int | None = 0,
    uncounted: Sequence[int] = (),
    draft: Draft | None = None,
) -> GenerateResult:
    """Continues every prompt, in one compiled program of prefill and decoding.

    A row depends on its own prompt, state and key only.

    Args:
      model: the model; fastest as `for_decoding` returns it.
      params: its weights.
      prompts: token ids, rows of any lengths >= 1.
      state: row i starts from row i; an unbatched state is every row's start; None is the zero state. Not changed.
      key: one key (row i then uses `fold_in(key, i)`), or one a row.
      config: how tokens are chosen, and how many at most.
      stop: token sequences that end a row, in generated tokens alone, and are left out of the result.
      eos_id: ends a row likewise; None: no such token.
      uncounted: tokens whose repetition the frequency penalty ignores (RWKV: white space and digits, `uncounted_ids`).
      draft: a smaller model that proposes tokens, which changes speed alone: greedy tokens are the same, sampled ones
        have the same distribution, from other random numbers.

    Returns:
      Tokens, states, logits, and whether a row ended by itself.

    Raises:
      ValueError: an empty prompt or stop sequence, an id outside the vocabulary, or a misfitting state or key.
      NonFiniteLogitsError: a `ValueError`; logits that are not finite, with the row and the token after which.

    Example:
      >>> from rwkv7_jax import RWKV7, RWKV7Config, SamplingParams, generate
      >>> from rwkv7_jax.model import init_params
      >>> model = RWKV7(RWKV7Config(vocab_size=16, n_layer=1, n_embd=8, head_size=4))
      >>> params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
      >>> settings = SamplingParams(max_new_tokens=5)
      >>> result = generate(model, params, [[1, 2]], None, jax.random.key(1), settings, eos_id=None)
      >>> len(result.tokens[0])
      5
    """
    batch = make_batch(draft, Arguments(model, params, prompts, state, key, config, stop, eos_id, uncounted))
    start, end = batch.run()
    tokens, length, stopped, active = jax.device_get((end.tokens, end.length, end.stop_length, end.active))
    kept = [row[: n - s].tolist() for row, n, s in zip(tokens, length, stopped, strict=True)]
    logits, after = batch.settle(start, end, kept, stopped > 1)
    return GenerateResult(kept, after, (~active).tolist(), logits, batch.drafted(end))


def generate_text(
    model: RWKV7,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    state: State | None,
    key: Key[Array, "*B"],
    config: SamplingParams,
    *,
    stop: Sequence[str] = (),
    chunk: int = 32,
    draft: Draft | None = None,
) -> TextResult:
    """Continues every text, as `generate` does tokens.

    A row ends before the stop string that is complete first, even if that starts or ends inside a token; what it leaves
    of a token is encoded anew, so that `tokens` and `state` match the text. An empty prompt stands for the end token,
    which separates texts in training.

    Args:
      model: the model; fastest as `for_decoding` returns it.
      params: its weights.
      tokenizer: its tokenizer.
      prompts: texts.
      state: row i starts from row i; an unbatched state is every row's start; None is the zero state.
      key: one key (row i then uses `fold_in(key, i)`), or one a row.
      config: how tokens are chosen, and how many at most.
      stop: texts that end a row and are left out of the result.
      chunk: tokens between two searches for stop strings.
      draft: as for `generate`.

    Returns:
      Texts, their tokens, states, logits, and whether a row ended by itself.

    Raises:
      ValueError: no prompts, an empty stop string, or a misfitting state or key.
      NonFiniteLogitsError: as `generate`.
    """
    return _drain(_text_pieces(model, params, tokenizer, prompts, state, key, config, stop, chunk, draft))


def stream(
    model: RWKV7,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str,
    state: State | None,
    key: Key[Array, ""],
    config: SamplingParams,
    *,
    stop: Sequence[str] = (),
    chunk: int = 8,
    draft: Draft | None = None,
    programs: Programs | None = None,
) -> Generator[str, None, TextResult]:
    """Yields the continuation of one prompt in pieces, which join to the text of `generate_text` with the same key.

    Pieces are whole characters without anything that may still become a stop string.

    Args:
      model: the model; fastest as `for_decoding` returns it.
      params: its weights.
      tokenizer: its tokenizer.
      prompt: a text.
      state: the initial state, unbatched or of one row; None is the zero state.
      key: a random key.
      config: how tokens are chosen, and how many at most.
      stop: texts that end the continuation and are left out of it.
      chunk: tokens of a piece at most, and those of a round more; the first piece is of one token.
      draft: as for `generate`.
      programs: what `compile_stream` returned for a model, prompt and settings like these; others do no harm.

    Yields:
      Pieces of text. The generator returns the `TextResult`.

    Raises:
      NonFiniteLogitsError: as `generate`.

    Example:
      >>> from rwkv7_jax import RWKV7, RWKV7Config, SamplingParams, load_tokenizer, stream
      >>> from rwkv7_jax.model import init_params
      >>> model = RWKV7(RWKV7Config(vocab_size=256, n_layer=1, n_embd=8, head_size=4))
      >>> params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
      >>> settings = SamplingParams(max_new_tokens=4)
      >>> pieces = stream(model, params, load_tokenizer("byte"), "a", None, jax.random.key(1), settings)
      >>> len("".join(pieces)) <= 4
      True
    """
    pieces = _text_pieces(model, params, tokenizer, [prompt], state, key, config, stop, chunk, draft, programs, first=1)
    while True:
        try:
            (piece,) = next(pieces)
        except StopIteration as end:
            return end.value
        if piece:
            yield piece


def compile_stream(
    model: RWKV7,
    shapes: Params,
    tokenizer: Tokenizer,
    prompt: str,
    state: State | None,
    key: Key[Array, ""],
    config: SamplingParams,
    compiler: Compile,
    *,
    chunk: int = 8,
) -> Programs:
    """Compiles what `stream` calls without a draft, so that this goes on while weights are read.

    Args:
      model: as `for_decoding` returns it.
      shapes: of its weights, see `weights.decoding_shapes`.
      tokenizer: as for `stream`, and so are the others.
      prompt: a text.
      state: the initial state.
      key: a random key.
      config: how tokens are chosen.
      compiler: compiles a function, see `rwkv7_jax.inference.program_store.compiled`.
      chunk: tokens of a piece at most.

    Returns:
      The programs, for `stream`.

    Raises:
      ValueError: as `stream`.
    """
    batch = _batch(model, shapes, tokenizer, [prompt], state, key, config)
    return batch.compiled(compiler, bucketing.padded_prompt_length(chunk))


def uncounted_ids(tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens whose repetition RWKV's frequency penalty does not count: runs of " \\t0123456789".

    Args:
      tokenizer: the model's tokenizer.

    Returns:
      Token ids, ascending: what `generate` takes as `uncounted`.
    """
    symbols = " \t0123456789"
    runs = {symbols[i:j] for i in range(len(symbols)) for j in range(i + 1, len(symbols) + 1)}
    encoded = [tokenizer.encode(run) for run in runs]
    return sorted({ids[0] for ids in encoded if len(ids) == 1})


def _batch(
    model: RWKV7,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    state: State | None,
    key: Key[Array, "*B"],
    config: SamplingParams,
    draft: Draft | None = None,
) -> GenerationBatch:
    """Returns the arguments of the programs for some texts.

    Raises:
      ValueError: as `generate_text`.
    """
    if isinstance(prompts, str):
        raise ValueError("generate: prompts is one text; give a list of texts")
    encoded = [tokenizer.encode(prompt) or [tokenizer.eos_id] for prompt in prompts]
    uncounted = uncounted_ids(tokenizer) if SamplingFlags.of(config).penalised else ()
    return make_batch(draft, Arguments(model, params, encoded, state, key, config, (), tokenizer.eos_id, uncounted))


def _text_pieces(
    model: RWKV7,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    state: State | None,
    key: Key[Array, "*B"],
    config: SamplingParams,
    stop: Sequence[str],
    chunk: int,
    draft: Draft | None,
    programs: Programs | None = None,
    *,
    first: int | None = None,
) -> Generator[list[str], None, TextResult]:
    """Yields the new text of each row, chunk after chunk, the first of `first` tokens; returns the result."""
    batch = _batch(model, params, tokenizer, prompts, state, key, config, draft)
    left, size = config.max_new_tokens, bucketing.padded_prompt_length(chunk)
    if programs and programs.made_for == (model, batch.flags, size):
        batch.programs = programs
    rows = [StopText(tokenizer, stop) for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    start = end = batch.prefill()
    active, now = np.ones(len(rows), bool), first or chunk
    while left > 0:
        end = batch.decode(end, min(now, left), size)
        new, length, active, wrong = jax.device_get((end.tokens, end.length, end.active, end.wrong))
        batch.check(wrong)
        for ids, row_new, n in zip(tokens, new, length, strict=True):
            ids += row_new[:n].tolist()
        yield [row.push(ids[:n].tolist()) for row, ids, n in zip(rows, new, length, strict=True)]
        active = active & ~np.array([row.hit for row in rows])
        unfinished = (len(ids) for ids, more in zip(tokens, active, strict=True) if more)
        left = config.max_new_tokens - min(unfinished, default=config.max_new_tokens)
        end, now = end._replace(active=jnp.asarray(active), tokens=start.tokens), chunk
    yield [row.finish() for row in rows]
    cut = np.array([row.hit for row in rows])
    kept = [cut_tokens(tokenizer, ids, r.text) if r.hit else ids for ids, r in zip(tokens, rows, strict=True)]
    logits, after = batch.settle(start, end, kept, cut)
    texts, finished = [row.text for row in rows], (~active | cut).tolist()
    return TextResult(texts, kept, after, finished, logits, batch.drafted(end), cut.tolist())


def _drain(pieces: Generator[list[str], None, TextResult]) -> TextResult:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value
