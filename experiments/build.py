"""From a checkpoint's name to a model that computes: weights, tokenizer, dtype and WKV implementation, chosen once."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.config.overrides import UsageError, suggest
from experiments.config.schema import ModelConfig, TuneConfig
from rwkv7_jax import RWKV7, checkpoint, sharding
from rwkv7_jax.tokenizer.tokenizers import Tokenizer, load_tokenizer
from state_tuning.core import train

ASSETS = Path(__file__).parent / "assets" / "pocket"
EMBEDDED = {f"pocket/{name}": ASSETS / f"{name}.safetensors" for name in ("student", "teacher")}


class Built(NamedTuple):
    """A frozen model, ready to be called."""

    model: RWKV7
    params: dict[str, Any]
    tokenizer: Tokenizer
    base_hash: str
    """SHA-256 of the weights as they are in the file."""
    path: Path
    tokenizer_name: str
    """As rwkv7_jax.tokenizer.tokenizers.load_tokenizer takes it."""
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
    loaded = checkpoint.load(path, lazy=True)
    dtype = config.dtype if config.dtype != "auto" else "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dimensions = dataclasses.replace(loaded.config, dtype=dtype, remat=config.remat, wkv_implementation=config.wkv)
    tokenizer_name = _tokenizer_name(config.tokenizer, path)
    tokenizer = load_tokenizer(tokenizer_name, dimensions.vocab_size)
    params = _placed(loaded.params, dtype)
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


def is_matrix(at: Any) -> bool:
    """Whether the weight at this path of the tree is a matrix of a linear layer or embedding."""
    names = [str(getattr(key, "key", key)) for key in at]
    return names[-1] == "weight" and not names[-2].startswith("ln")


def _placed(params: Any, dtype: str) -> Any:
    """Weights on the devices of the mesh that is set. To bfloat16 only matrices are cast: norms, decays and mixing
    vectors keep their dtype."""
    mesh = jax.sharding.get_mesh()
    spread = None if mesh.empty else sharding.shardings(params, mesh)

    def one(at: Any, leaf: Any, where: Any = None) -> jax.Array:
        return sharding.place(leaf, where, dtype if dtype == "float32" or is_matrix(at) else None)

    return jax.tree_util.tree_map_with_path(one, params, *([spread] if spread else []))
