"""The card of a state file: what it belongs to, how it was made, what was measured, how it is used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.commands.work.state import load_state, norms
from rwkv7_jax.checkpoint import LAYOUTS
from rwkv7_jax.checkpoint.files import one_line, write_text

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


def write(file: str, layout: str | None, output: str) -> int:
    """Writes the card of a state file.

    Raises:
      ValueError, OSError: in one line, for a damaged or missing file.
    """
    loaded = load_state(file, layout)
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
        layouts=", ".join(f"`{layout}`" for layout in LAYOUTS),
        norms=norms(loaded.state),
    )
    write_text(output, text)
    print(f"wrote {output}")
    return 0


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
