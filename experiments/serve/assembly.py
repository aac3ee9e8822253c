"""Puts the parts of a server together: the engine, the folders, the model's name."""

import contextlib
import pathlib
from collections.abc import Iterator

from experiments.config.serve import EngineConfig, LimitsConfig, ServedConfig
from experiments.serve.conversations import Conversations
from experiments.serve.dates import now
from experiments.serve.names import model_name
from experiments.serve.scores import Speller
from experiments.serve.service import Service
from experiments.serve.state_files import Model
from experiments.serve.states import StateFolder
from rwkv7_jax.checkpoint import remote
from rwkv7_jax.inference.engine import Engine
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import Tokenizer


@contextlib.contextmanager
def assembled(
    served: ServedConfig, engine: EngineConfig, limits: LimitsConfig, lm: LanguageModel, folder: pathlib.Path
) -> Iterator[Service]:
    """A service that is ready to answer; programs for long prompts follow in a thread. Its engine ends with `with`.

    Args:
      served: settings.
      engine: settings.
      limits: settings.
      lm: the model.
      folder: of states; sessions and responses lie in folders in it.
    """
    model = Model(lm.config, lm.weights_hash)
    states = StateFolder(folder, model, served.state_layout)
    sessions = Conversations(folder / "sessions", model, served.max_sessions, "session")
    responses = Conversations(folder / "responses", model, served.max_responses, "response")
    path, named = lm.path or pathlib.Path("model"), served.model.checkpoint
    stem = path.name if path.is_dir() else path.stem
    name = model_name(remote.short_name(named) if remote.is_address(named) else stem)
    made = Engine(
        lm,
        slots=engine.slots,
        queue=engine.queue,
        prefill_chunk=engine.prefill_chunk,
        cache_bytes=engine.prefix_cache * 2**20,
    )
    try:
        made.warm_up(wait=False)
        yield Service(
            lm, name, now(), made, states, sessions, responses, limits, _longest(lm.tokenizer), Speller(lm.tokenizer)
        )
    finally:
        made.close(finish=False)


def _longest(tokenizer: Tokenizer) -> int:
    """Bytes of the longest token."""
    return max(1, *(len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab_size)))
