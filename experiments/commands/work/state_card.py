"""The card of a state file: what it belongs to, how it was made, what was measured, how it is used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.commands.work import state_elsewhere
from experiments.commands.work.state import load_state, norms
from experiments.commands.work.state_elsewhere import Effect
from experiments.config.schema import ModelConfig
from experiments.reporting.tables import markdown_table
from rwkv7_jax.checkpoint import LAYOUTS, CheckpointError
from rwkv7_jax.checkpoint.files import one_line, write_text
from rwkv7_jax.checkpoint.states import TunedState

CARD = """---
library_name: rwkv7-jax
tags:
- rwkv
- rwkv7
- state-tuning
---

# {name}

An initial state for an RWKV-7 with {layers} layers and {heads} heads of {size}. The model's weights stay as they are.

{table}

## Measured

{measured}

## Elsewhere

{elsewhere}

## Use

```
rwkv7 chat --model.checkpoint model.pth --state {file}
rwkv7 state convert {file} --to rwkv-runner --output state.pth
```

Layouts of other tools: {layouts}.

## Norms

```
{norms}
```
"""
SETTINGS = {
    "data": "data.train", "tasks": "data.tasks", "base model": "model.checkpoint", "steps": "tune.steps",
    "learning rate": "tune.learning_rate", "batch size": "data.batch_size", "seed": "seed",
}  # fmt: skip
"""Rows of the table, and the settings that fill them."""


NOT_MEASURED = """Not measured. The model's loss on other texts, without the state and with it, comes from

```
rwkv7 state card {file} --model.checkpoint model.pth --held_out text.txt
```"""
MEASURED = """Mean loss in nats a token; each window of at most 512 tokens begins at the state. 95 % intervals.

{table}"""


def write(file: str, layout: str | None, output: str, model: ModelConfig, held_out: Sequence[str] = ()) -> int:
    """Writes the card of a state file.

    Args:
      file: of the state.
      layout: its axis order, if it does not say it.
      output: Markdown file.
      model: the state's model, which is loaded where something is measured.
      held_out: files of texts on which the state is measured.

    Raises:
      ValueError, OSError: in one line, for a damaged or missing file, or a model of another state.
    """
    loaded = load_state(file, layout)
    effects = _effects(loaded, file, model, held_out) if held_out else []
    matrix = np.asarray(getattr(loaded.state.wkv, "s", loaded.state.wkv))
    config, metrics = (_object(loaded.metadata.get(name, "")) for name in ("config", "metrics"))
    made = {"method": loaded.metadata.get("method"), "task": loaded.metadata.get("task")}
    made |= {name: _at(config, key) for name, key in SETTINGS.items()}
    made |= {"hash of the base model's weights": loaded.metadata.get("base_model_hash")}
    made |= {"hash of the state": loaded.metadata.get("state_hash"), "made by": loaded.metadata.get("made_by")}
    name = one_line(Path(file).name, 100)
    text = CARD.format(
        name=one_line(Path(file).stem, 100),
        file=name,
        layers=matrix.shape[0],
        heads=matrix.shape[1],
        size=matrix.shape[2],
        table=_table(made),
        measured=_table(metrics) if metrics else "Nothing is noted in the file.",
        elsewhere=_elsewhere(effects) if effects else NOT_MEASURED.format(file=name),
        layouts=", ".join(f"`{layout}`" for layout in LAYOUTS),
        norms=norms(loaded.state),
    )
    write_text(output, text)
    print(f"wrote {output}")
    return 0


def _effects(loaded: TunedState, file: str, model: ModelConfig, held_out: Sequence[str]) -> list[Effect]:
    """What the state changes on texts, by its own model.

    Raises:
      CheckpointError: the state was tuned on another model, or has other dimensions.
    """
    lm = state_elsewhere.model(model)
    base = loaded.metadata.get("base_model_hash", "")
    if base not in ("", lm.weights_hash):
        raise CheckpointError(
            f"{file}: was tuned on the base model {base[:16]}, and {model.checkpoint} is {lm.weights_hash[:16]}; give "
            "its own with --model.checkpoint"
        )
    shape, needed = np.shape(getattr(loaded.state.wkv, "s", loaded.state.wkv)), lm.zero_state().wkv.shape
    if shape != needed:
        raise CheckpointError(f"{file}: has the shape {shape}, and {model.checkpoint} needs {needed}")
    return state_elsewhere.measure(lm, loaded.state, held_out)


def _elsewhere(effects: Sequence[Effect]) -> str:
    """The table of what changes on other texts."""
    lines = [["text", "tokens", "without", "with the state", "change"]]
    for name, tokens, without, with_state, (change, low, high) in effects:
        told = f"{change:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append([_cell(name), f"{tokens:,}", f"{without:.4f}", f"{with_state:.4f}", told])
    return MEASURED.format(table=markdown_table(lines))


def _object(text: str) -> Mapping[str, object]:
    """The JSON object in a field; empty if there is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _at(config: Mapping[str, object], key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str) and Path(found).is_absolute():
        return Path(found).name  # where it lay is of no use to others
    return found


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "", [])]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: object) -> str:
    """A value as text of a table; intervals as they are written elsewhere."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 3:
        middle, low, high = map(_number, value)
        return f"{middle} [{low}, {high}]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_number, value))
    return _number(value)


def _number(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return one_line(text, 200).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
