"""A checkpoint made usable: weights, dimensions and tokenizer in one value."""

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rwkv7_jax import checkpoint, functional, sharding
from rwkv7_jax.checkpoint.states import StateFile
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.functional import Params
from rwkv7_jax.generation import generate as generation
from rwkv7_jax.generation.generate import TextResult
from rwkv7_jax.generation.sampling import SamplingConfig
from rwkv7_jax.inference.encoding import Encoder
from rwkv7_jax.inference.scoring import Forker
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A frozen RWKV-7 with its tokenizer; every method is a function of its arguments.

    Example:
      >>> lm = LanguageModel.load(student)  # doctest: +SKIP
      >>> lm.generate("User: hi\\n\\nAssistant:", max_new_tokens=20)  # doctest: +SKIP
    """

    model: RWKV7
    params: Params
    tokenizer: Tokenizer
    weights_hash: str = ""
    """SHA-256 of the weights as they are in the file; state files name their base model by it."""
    path: Path | None = None
    tokenizer_name: str = "auto"
    """As `rwkv7_jax.tokenizer.load_tokenizer` takes it."""
    parameter_count: int = 0

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        tokenizer: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        remat: Literal["none", "dots", "block"] = "none",
        wkv: str | None = None,
    ) -> "LanguageModel":
        """Loads a checkpoint with its tokenizer; weights go to the devices of the mesh that is set, if any.

        Args:
          path: `.pth`, `.safetensors`, a Hugging Face folder, or rwkv.cpp's `.bin`.
          tokenizer: "auto" (the tokenizer.json beside the checkpoint, else by the vocabulary's size), "world", "byte",
            or the path of a tokenizer.json.
          dtype: compute dtype; "auto" is float32 on a CPU and bfloat16 elsewhere.
          remat: what the backward pass computes again, see `RWKV7Config.remat`.
          wkv: implementation of the WKV op; None picks by device.

        Returns:
          The model.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: one line, for a file that is not a sound RWKV-7 checkpoint, or a tokenizer that does not fit.
        """
        path = Path(path).expanduser()
        loaded = checkpoint.load(path, lazy=True)
        chosen = dtype if dtype != "auto" else "float32" if jax.default_backend() == "cpu" else "bfloat16"
        config = dataclasses.replace(loaded.config, dtype=chosen, remat=remat, wkv_implementation=wkv)
        name = _tokenizer_name(tokenizer, path)
        return cls(
            RWKV7(config),
            _placed(loaded.params, chosen),
            load_tokenizer(name, config.vocab_size),
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
        c = self.config
        return (
            f"{self.parameter_count / 1e6:.2f}M parameters, {c.n_layer} layers x {c.n_embd}, {c.n_head} heads, "
            f"vocabulary {c.vocab_size}, {c.dtype} on {jax.default_backend()}"
        )

    def replace(self, **fields: PyTree) -> "LanguageModel":
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **fields)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        state: State | StateFile | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> str | list[str]:
        """Continues one prompt or several.

        Args:
          prompt: a text, or a list of texts that are continued side by side.
          state: the initial state, unbatched; None is the zero state.
          seed: same seed, same text.
          stop: texts that end a continuation and are left out of it.
          **sampling: fields of `SamplingConfig`: temperature, top_p, top_k, max_new_tokens, and the penalties.

        Returns:
          The continuation, or a list of them if `prompt` is a list.

        Raises:
          ValueError: an unknown or wrong setting, or a state of another model.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        model, params = generation.for_decoding(self.model, self.params)
        texts = generation.generate_text(
            model, params, self.tokenizer, prompts, _plain(state), jax.random.key(seed), _sampling(sampling), stop=stop
        ).texts
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self,
        prompt: str,
        *,
        state: State | StateFile | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> Generator[str, None, TextResult]:
        """Yields the continuation of `generate` piece by piece; the generator returns the `TextResult`."""
        model, params = generation.for_decoding(self.model, self.params)
        key, settings = jax.random.key(seed), _sampling(sampling)
        return generation.stream(model, params, self.tokenizer, prompt, _plain(state), key, settings, stop=stop)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        state: State | StateFile | None = None,
        batch_size: int = 32,
    ) -> list[float]:
        """Computes log P(continuation | context) of each pair, tokens as lm-evaluation-harness splits them.

        Args:
          pairs: (context, continuation) each; equal beginnings are read once.
          state: the initial state, unbatched; None is the zero state.
          batch_size: sequences at once.

        Returns:
          Summed log-probabilities in nats.

        Raises:
          ValueError: a continuation without a token of its own.
        """
        encoder = Encoder(self.tokenizer)
        asked = [encoder.pair(context, continuation) for context, continuation in pairs]
        start = _plain(state) or zero_state(self.config, None)
        forker = Forker(self.model, self.params, batch_size)
        return [answer.log_likelihood for answer in forker.score(asked, [start])]

    def logits(
        self, text: str | Sequence[int], *, state: State | StateFile | None = None
    ) -> tuple[Float[Array, "T vocab"], State]:
        """Computes the logits after every token of a text.

        Args:
          text: a text, or token ids.
          state: the initial state, unbatched; None is the zero state.

        Returns:
          (logits [T, vocab] float32, the unbatched state after the last token).

        Raises:
          ValueError: the text has no token.
        """
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        if not ids:
            raise ValueError("logits: the text has no token; give at least one")
        start = _plain(state) or zero_state(self.config, None)
        batched = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], _in_compute_dtype(start, self.config))
        found, after = _forward(self.model, self.params, jnp.asarray([ids], jnp.int32), batched)
        return found[0], jax.tree.map(lambda leaf: leaf[:, 0], after)


_forward = jax.jit(functional.forward, static_argnums=0)


def _plain(state: State | StateFile | None) -> State | None:
    return state.state if isinstance(state, StateFile) else state


def _in_compute_dtype(state: State, config: RWKV7Config) -> State:
    shifts = {name: jnp.asarray(getattr(state, name)).astype(config.dtype) for name in ("att_shift", "ffn_shift")}
    return state._replace(**shifts)


def _sampling(settings: Mapping[str, float]) -> SamplingConfig:
    known = {field.name for field in dataclasses.fields(SamplingConfig)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"unknown sampling setting {unknown[0]!r}: choose among {', '.join(sorted(known))}")
    return SamplingConfig(**settings)  # pyright: ignore[reportArgumentType]


def _tokenizer_name(name: str, path: Path) -> str:
    """ "auto" is the tokenizer.json beside the checkpoint, if there is one."""
    beside = path.parent / "tokenizer.json" if path.is_file() else path / "tokenizer.json"
    return str(beside) if name == "auto" and beside.is_file() else name


def is_matrix(at: Sequence[PyTree]) -> bool:
    """Returns whether the weight at this path of the tree is a matrix of a linear layer or embedding."""
    names = [str(getattr(key, "key", key)) for key in at]
    return names[-1] == "weight" and not names[-2].startswith("ln")


def _placed(params: PyTree, dtype: str) -> PyTree:
    """Weights on the devices of the mesh that is set. To bfloat16 only matrices are cast: norms, decays and mixing
    vectors keep their dtype."""
    mesh = jax.sharding.get_mesh()
    spread = None if mesh.empty else sharding.shardings(params, mesh)

    def one(at: Sequence[PyTree], leaf: PyTree, where: PyTree = None) -> Array:
        return sharding.place(leaf, where, dtype if dtype == "float32" or is_matrix(at) else None)

    return jax.tree_util.tree_map_with_path(one, params, *([spread] if spread else []))
