"""What the sections of a config stand for: the model, and the settings as the library takes them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config.methods import STATE_RATE
from experiments.config.overrides import UsageError, suggest
from experiments.config.schema import OUTSIDE, ModelConfig, TuneConfig
from rwkv7_jax.checkpoint import remote
from rwkv7_jax.language_model import LanguageModel

if TYPE_CHECKING:
    from state_tuning.core import train

ASSETS = Path(__file__).parent / "assets" / "pocket"
EMBEDDED = {f"pocket/{name}": ASSETS / f"{name}.safetensors" for name in ("student", "teacher")}


def checkpoint_path(name: str, key: str = "model.checkpoint") -> Path:
    """Returns the file behind the name of an embedded model, a path or an address, which is downloaded.

    Args:
      name: as the user wrote it.
      key: the setting, for the message.

    Raises:
      UsageError: no such file.
      CheckpointError: an address from which there is nothing to be had.
    """
    if remote.is_address(name):
        return remote.fetched(name)
    path = EMBEDDED.get(name, Path(name).expanduser())
    if path.exists():
        return path
    raise UsageError(f"{key}: no file {path}{suggest(name, list(EMBEDDED))}")


def load_model(config: ModelConfig) -> LanguageModel:
    """Loads the model of a config.

    Raises:
      UsageError, ValueError, FileNotFoundError: in one line, for a wrong path, file, tokenizer or device choice.
    """
    return LanguageModel.load(
        checkpoint_path(config.checkpoint),
        tokenizer=config.tokenizer,
        dtype=config.dtype,
        remat=config.remat,
        wkv=config.wkv,
        quantise=config.quantize,
    )


def tune_config(config: TuneConfig) -> "train.TuneConfig":
    """Returns the settings as state_tuning takes them; without a learning rate, that of state tuning.

    Raises:
      UsageError: the rate is still to be chosen.
    """
    if isinstance(config.learning_rate, str):
        raise UsageError("tune.learning_rate auto goes with rwkv7 tune; give a number here")
    from state_tuning.core import train  # with optax, which a server does not need

    rate = STATE_RATE if config.learning_rate is None else config.learning_rate
    plain = {name: value for name, value in dataclasses.asdict(config).items() if name not in OUTSIDE}
    return train.TuneConfig(**{**plain, "learning_rate": rate})
