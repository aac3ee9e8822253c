"""Text from a checkpoint and a state, piece by piece."""

import dataclasses
import sys
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jaxtyping import Array, Key

from experiments.build import checkpoint_path
from experiments.config.commands import Generate
from experiments.config.observe import DraftConfig
from experiments.config.overrides import UsageError
from experiments.config.schema import ModelConfig
from rwkv7_jax import RWKV7, checkpoint
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.dtypes import compute_name, on_device, quantised
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.batch import Programs
from rwkv7_jax.generation.generate import Draft, compile_stream, for_decoding, stream
from rwkv7_jax.generation.sampling import SamplingParams
from rwkv7_jax.generation.weights import decoding_shapes, decoding_weights, one_by_one
from rwkv7_jax.inference import program_store
from rwkv7_jax.language_model import find_tokenizer
from rwkv7_jax.state import State
from rwkv7_jax.terminal import standard_input, typed
from rwkv7_jax.tokenizer import Tokenizer, load_tokenizer

SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingParams))


def show(config: Generate) -> int:
    """Prints the text as it is generated; Ctrl-C ends its line."""
    try:
        for piece in pieces(config):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print()
        raise
    print()
    return 0


def pieces(config: Generate) -> Generator[str, None, None]:
    """Text as it is generated.

    Raises:
      ValueError, OSError: wrong files or settings.
    """
    sampling = SamplingParams(**{name: getattr(config, name) for name in SAMPLING})
    use_compilation_cache(config.system.compilation_cache)
    prompt, stop = _prompt(config.prompt), [typed("--stop", text) for text in config.stop]
    path = checkpoint_path(config.model.checkpoint)
    with ThreadPoolExecutor(2) as pool:
        drawing = pool.submit(jax.random.key, config.seed)
        opened = checkpoint.opened(path, lazy=True)
        wanted = on_device(opened.config, config.model.dtype)
        dimensions = dataclasses.replace(wanted, wkv_implementation=config.model.wkv)
        name = find_tokenizer(config.model.tokenizer, path)
        tokenizing = pool.submit(load_tokenizer, name, dimensions.vocab_size, path)
        model, params = one_by_one(RWKV7(dimensions), quantised(opened.params, config.model.quantize))
        compiling, key = None, drawing.result()
        if config.draft.checkpoint is None:
            compiling = pool.submit(_compile, model, params, tokenizing, prompt, key, sampling)
        loaded = opened.checked()
        state = _state(config.state, config.state_layout, loaded)
        if not config.quiet:
            print(f"{loaded.report}\ncomputes in {compute_name(dimensions, params)}", file=sys.stderr)
        del opened, loaded
        tokenizer, draft = tokenizing.result(), load_draft(config.draft, config.model)
        params = decoding_weights(model.config, params, few_rows=True)
        programs = compiling.result() if compiling else None
    given = (tokenizer, prompt, state, key, sampling)
    result = yield from stream(model, params, *given, stop=stop, draft=draft, programs=programs)
    if result.drafted and draft and not config.quiet:
        (passes,), (kept,) = result.drafted
        proposed = f"{kept} of {passes * draft.tokens} proposed tokens kept"
        print(f"\ndraft: {len(result.tokens[0])} tokens in {passes} passes of the model, {proposed}", file=sys.stderr)


def _compile(
    model: RWKV7,
    params: Params,
    tokenizing: Future[Tokenizer],
    prompt: str,
    key: Key[Array, ""],
    sampling: SamplingParams,
) -> Programs:
    """Compiles what the text needs, or reads what was compiled before, while the weights are checked and cast."""
    shapes = decoding_shapes(model.config, params, few_rows=True)
    return compile_stream(model, shapes, tokenizing.result(), prompt, None, key, sampling, program_store.compiled)


def _state(path: str | None, layout: str | None, loaded: checkpoint.Checkpoint) -> State | None:
    """Reads the initial state; None: the zero state.

    Raises:
      ValueError, OSError: a file that is wrong or of another model.
    """
    if not path:
        return None
    base = loaded.report.weights_hash
    return checkpoint.load_state(path, layout=layout, config=loaded.config, base_model_hash=base).state


def load_draft(config: DraftConfig, model: ModelConfig) -> Draft | None:
    """Reads the model that proposes tokens; None: there is none.

    Args:
      config: which one.
      model: how the large model computes, as this one does.

    Raises:
      ValueError, OSError: wrong files or settings, in one line.
    """
    if config.checkpoint is None:
        if config.state:
            raise UsageError("draft.state needs draft.checkpoint")
        return None
    loaded = checkpoint.load(checkpoint_path(config.checkpoint, "draft.checkpoint"), lazy=True)
    dimensions = dataclasses.replace(on_device(loaded.config, model.dtype), wkv_implementation=model.wkv)
    state = _state(config.state, None, loaded)
    return Draft(*for_decoding(RWKV7(dimensions), loaded.params, few_rows=True), config.tokens, state)


def _prompt(text: str) -> str:
    """The text, that of standard input for "-".

    Raises:
      ValueError: it is not UTF-8.
    """
    return standard_input("--prompt") if text == "-" else typed("--prompt", text)
