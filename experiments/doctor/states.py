"""A state: whether it fits a model, and how large it is against the states that the model itself reaches."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from experiments.doctor.weights import PROSE, text_loss
from experiments.evaluation.state_scale import DOUBTFUL
from experiments.reporting.findings import Finding
from experiments.reporting.tables import text_table
from rwkv7_jax import State
from rwkv7_jax.checkpoint.states import TunedState
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.language_model import LanguageModel
from state_tuning.core import surgery

HALF = 65504.0
"""Largest number in float16, which some tools keep states in."""


@dataclasses.dataclass(frozen=True)
class Looked:
    """What was found at a state."""

    lines: list[str]
    findings: list[Finding]
    numbers: Mapping[str, object] = dataclasses.field(default_factory=dict)


def look(name: str, read: Callable[[], TunedState], model: LanguageModel | None, own: State | None) -> Looked:
    """Looks at a state.

    Args:
      name: as the user wrote it.
      read: reads it.
      model: the model that it should fit, if one is named and sound.
      own: the model's state after a text.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state, metadata = read()
    except (ValueError, OSError) as error:
        return Looked([], [_fault(f"{error}")])
    plain = state._replace(wkv=getattr(state.wkv, "s", state.wkv))
    measured = surgery.info(plain)
    layers, heads, size = plain.wkv.shape[:3]
    base = metadata.get("base_model_hash", "")
    said = ", ".join(f"{key} {metadata[key]}" for key in ("method", "task", "layout") if metadata.get(key))
    lines = [f"state: {name}, {layers} layers, {heads} heads of {size}, base {base[:16] or 'not said'}; {said}"]
    findings = [*_by_itself(name, plain, measured)]
    if model is not None:
        findings += _beside(name, plain, base, model)
    fits = model is not None and plain.wkv.shape == model.zero_state().wkv.shape
    beside = surgery.info(own)["wkv_norm"] if own is not None and fits else None
    if beside is not None:
        findings += _out_of_scale(name, measured["wkv_norm"], beside)
    if model is not None and fits and not any(one.fault for one in findings):
        findings += _effect(name, state, model)
    lines.append(_table(measured, beside))
    return Looked(lines, findings, {"base_model_hash": base, "layers": {k: v.tolist() for k, v in measured.items()}})


def _table(measured: dict[str, np.ndarray], own: np.ndarray | None) -> str:
    """Norms by layer."""
    head = ["layer", "norm", "largest", "stable rank", *(["model's own norm"] if own is not None else [])]
    columns = [measured["wkv_norm"], measured["wkv_max"], measured["wkv_rank"], *([own] if own is not None else [])]
    rows = zip(*columns, strict=True)
    return text_table([head, *([layer, *(f"{value:.4g}" for value in row)] for layer, row in enumerate(rows))])


def _by_itself(name: str, state: State, measured: dict[str, np.ndarray]) -> list[Finding]:
    """What is wrong whatever the model."""
    if not any(np.any(np.asarray(part)) for part in state):
        return [_fault(f"{name} is all zero and changes nothing; tune one: rwkv7 tune")]
    if (most := float(measured["wkv_max"].max())) > HALF:
        return [_fault(f"{name} has entries up to {most:.3g}, which float16 cannot hold; scale it: rwkv7 state scale")]
    empty = [str(layer) for layer, norm in enumerate(measured["wkv_norm"]) if not norm]
    if empty:
        text = f"{name} is zero in layer {', '.join(empty)}; if it was tuned, the file is not whole"
        return [Finding("state", text, fault=False)]
    return []


def _beside(name: str, state: State, base: str, model: LanguageModel) -> list[Finding]:
    """What does not fit the model."""
    wanted, have = model.zero_state().wkv.shape, state.wkv.shape
    if wanted != have:
        one, other = (f"{shape[0]} layers with {shape[1]} heads of {shape[2]}" for shape in (have, wanted))
        return [_fault(f"{name} is for {one}, the model has {other}; use a state made for this model")]
    if base and base != model.weights_hash:
        hashes = f"was tuned on the base model {base[:16]}, the checkpoint is {model.weights_hash[:16]}"
        return [_fault(f"{name} {hashes}; use the checkpoint that it was tuned on")]
    if not base:
        text = f"{name} does not say its base model; that it fits is known by its dimensions alone"
        return [Finding("state", text, fault=False)]
    return []


def _out_of_scale(name: str, norms: np.ndarray, own: np.ndarray) -> list[Finding]:
    """Layers that are many times larger than what the model reaches."""
    ratios = norms / np.maximum(own, np.finfo(np.float32).tiny)
    if (most := float(ratios.max())) <= DOUBTFUL:
        return []
    where = f"in layer {int(ratios.argmax())} it is {most:.3g} times as large as the model's own state after a text"
    return [_fault(f"{name}: {where}; tune with a lower tune.learning_rate, or scale it: rwkv7 state scale")]


def _effect(name: str, state: State, model: LanguageModel) -> list[Finding]:
    """Whether the model still predicts text from it."""
    guess = float(np.log(model.config.vocab_size))
    try:
        before, _ = text_loss(model, PROSE)
        after, _ = text_loss(model, PROSE, state)
    except NonFiniteLogitsError as error:
        return [_fault(f"{name}: {error}; tune it anew with a lower tune.learning_rate")]
    if after >= guess > before:
        told = f"the loss of a plain text is {after:.3f} with it and {before:.3f} without, guessing has {guess:.3f}"
        return [Finding("state", f"{name}: {told}; is its layout the right one?", fault=False)]
    return []


def _fault(text: str) -> Finding:
    return Finding("state", text)
