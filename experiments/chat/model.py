"""The model of a chat, in the form that decodes fastest, and its states."""

import dataclasses
from typing import NamedTuple

from experiments.build import checkpoint_path
from experiments.config.schema import ModelConfig
from rwkv7_jax import RWKV7, State, checkpoint
from rwkv7_jax.dtypes import compute_name, on_device, quantised
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.generate import for_decoding
from rwkv7_jax.inference.text_reader import TextReader
from rwkv7_jax.language_model import find_tokenizer
from rwkv7_jax.tokenizer import Tokenizer, load_tokenizer


class ChatModel(NamedTuple):
    """A frozen model with its tokenizer."""

    model: RWKV7
    params: Params
    tokenizer: Tokenizer
    weights_hash: str
    report: str
    """What is known of its file, and how it computes."""

    def reader(self, start: State | None) -> TextReader:
        """Returns a reader of a text that grows."""
        return TextReader(self.model, self.params, self.tokenizer, start)

    def load_state(self, path: str, layout: str | None = None) -> State:
        """Reads a state file.

        Raises:
          ValueError, OSError: in one line, for a damaged file or one for a model of other dimensions.
        """
        found = checkpoint.load_state(path, layout=layout, config=self.model.config, base_model_hash=self.weights_hash)
        return found.state


def load(config: ModelConfig) -> ChatModel:
    """Loads the model of a config.

    Raises:
      ValueError, OSError: in one line, for a wrong path, file, tokenizer or device choice.
    """
    path = checkpoint_path(config.checkpoint)
    loaded = checkpoint.load(path, lazy=True)
    tokenizer = load_tokenizer(find_tokenizer(config.tokenizer, path), loaded.config.vocab_size, path)
    dimensions = dataclasses.replace(on_device(loaded.config, config.dtype), wkv_implementation=config.wkv)
    params = quantised(loaded.params, config.quantize)
    report = f"{loaded.report}\ncomputes in {compute_name(dimensions, params)}"
    weights_hash = loaded.report.weights_hash
    del loaded
    return ChatModel(*for_decoding(RWKV7(dimensions), params, few_rows=True), tokenizer, weights_hash, report)
