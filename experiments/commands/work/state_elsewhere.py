"""What a state changes where it was not tuned: the model's loss on held-out texts, without the state and with it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.build import load_model
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, ModelConfig
from experiments.data.batching import encode_pairs
from experiments.data.jsonl import Pair, read_lines, to_pair, user_path
from experiments.data.text_file import read_text
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.pocket.text import documents
from experiments.reporting.statistics import Interval, bootstrap
from rwkv7_jax.checkpoint.files import one_line
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.state import State

POCKET, DOCUMENTS, SEED = "pocket", 100, 777
"""Name of texts of the invented world, how many are read, and their seed, which no embedded model was trained on."""
RECORDS = (".jsonl", ".json", ".gz")
BATCH = 8


class Effect(NamedTuple):
    """Mean loss of one file's tokens in nats; each window of 512 tokens, or record, begins at the state."""

    name: str
    tokens: int
    without: float
    """From the zero state."""
    with_state: float
    change: Interval
    """95 % bootstrap interval over windows or records."""


def model(config: ModelConfig) -> LanguageModel:
    """Loads the model that a state is for."""
    use_compilation_cache()
    return load_model(config)


def measure(lm: LanguageModel, state: State, files: Sequence[str]) -> list[Effect]:
    """Measures a state on files.

    Args:
      lm: the model.
      state: unbatched, plain or upscaled.
      files: paths of texts, or of records (.jsonl), of which the completions are measured; or `POCKET`.

    Raises:
      UsageError: in one line, what is wrong with a file.
      NonFiniteLogitsError: a loss is not finite.
    """
    evaluator = Evaluator(lm, make_scorer(lm.model), BATCH)
    state = jax.tree.map(jax.numpy.asarray, state)
    return [_effect(evaluator, state, name) for name in files]


def _effect(evaluator: Evaluator, state: State, name: str) -> Effect:
    pairs = texts(name)
    examples = encode_pairs(evaluator.lm.tokenizer, pairs, DataConfig())
    before, tokens = evaluator.losses(evaluator.lm.zero_state(), examples)
    after, _ = evaluator.losses(state, examples)
    if not tokens.sum():
        raise UsageError(f"held_out: {name}: there is no token to measure")
    change = bootstrap([((after - before)[tokens > 0] / tokens[tokens > 0]).tolist()], 0, [tokens[tokens > 0].tolist()])
    without, with_state = (float(np.sum(losses) / tokens.sum()) for losses in (before, after))
    told = "texts of the invented world" if name == POCKET else one_line(Path(name).name, 100)
    return Effect(told, int(tokens.sum()), without, with_state, change)


def texts(name: str) -> list[Pair]:
    """Returns what is read of a file: one text, or its records.

    Raises:
      UsageError: in one line, what is wrong with it.
    """
    if name == POCKET:
        return [Pair("", text) for text in itertools.islice(documents(SEED), DOCUMENTS)]
    path = user_path(name)
    if path.suffix.lower() in RECORDS:
        return [to_pair(line) for line in read_lines(path)]
    text = read_text(path)
    if not text.strip():
        raise UsageError(f"held_out: {path} is empty")
    return [Pair("", text)]
