"""From a checkpoint's name to a model that computes: weights, tokenizer, dtype and WKV implementation, chosen once."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.config import ModelConfig, TuneConfig
from experiments.overrides import UsageError, suggest
from rwkv7_jax import RWKV7, checkpoint
from rwkv7_jax.tokenizer import Tokenizer, load_tokenizer
from state_tuning import train

ASSETS = Path(__file__).parent / "assets" / "pocket"
EMBEDDED = {"pocket/student": ASSETS / "student.safetensors"}


class Built(NamedTuple):
    """A frozen model, ready to be called."""

    model: RWKV7
    params: dict[str, Any]
    tokenizer: Tokenizer
    base_hash: str
    """SHA-256 of the weights as they are in the file."""
    path: Path
    tokenizer_name: str
    """As rwkv7_jax.tokenizer.load_tokenizer takes it."""
    summary: str
    """One line: what was built."""


def checkpoint_path(name: str) -> Path:
    """The file behind the name of an embedded model or a path.

    Raises:
      UsageError: no such file.
    """
    path = EMBEDDED.get(name, Path(name).expanduser())
    if path.exists():
        return path
    raise UsageError(f"model.checkpoint: no file {path}{suggest(name, list(EMBEDDED))}")


def build(config: ModelConfig) -> Built:
    """Read the checkpoint and make the model.

    Raises:
      UsageError, ValueError, FileNotFoundError: in one line, for a wrong path, file, tokenizer or device choice.
    """
    path = checkpoint_path(config.checkpoint)
    loaded = checkpoint.load(path)
    dtype = config.dtype if config.dtype != "auto" else "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dimensions = dataclasses.replace(loaded.config, dtype=dtype, remat=config.remat, wkv_implementation=config.wkv)
    tokenizer_name = _tokenizer_name(config.tokenizer, path)
    tokenizer = load_tokenizer(tokenizer_name, dimensions.vocab_size)
    params = jax.tree_util.tree_map_with_path(lambda at, leaf: _cast(at, leaf, dtype), loaded.params)
    summary = (
        f"{config.checkpoint}: {loaded.report.parameter_count / 1e6:.2f}M parameters, {dimensions.n_layer} layers x "
        f"{dimensions.n_embd}, {dimensions.n_head} heads, vocabulary {dimensions.vocab_size}, "
        f"{dtype} on {jax.default_backend()}"
    )
    return Built(RWKV7(dimensions), params, tokenizer, loaded.report.weights_hash, path, tokenizer_name, summary)


def tune_config(config: TuneConfig) -> train.TuneConfig:
    """The settings as state_tuning takes them."""
    return train.TuneConfig(**dataclasses.asdict(config))


def _tokenizer_name(name: str, path: Path) -> str:
    """ "auto" is the tokenizer.json beside the checkpoint, if there is one."""
    beside = path.parent / "tokenizer.json" if path.is_file() else path / "tokenizer.json"
    return str(beside) if name == "auto" and beside.is_file() else name


def _cast(at: Any, leaf: Any, dtype: str) -> jax.Array:
    """A weight on the device. To bfloat16 only matrices are cast: norms, decays and mixing vectors keep their dtype."""
    names = [str(getattr(key, "key", key)) for key in at]
    matrix = names[-1] == "weight" and not names[-2].startswith("ln")
    return jnp.asarray(leaf, dtype if dtype == "float32" or matrix else None)
