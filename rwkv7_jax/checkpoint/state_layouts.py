"""How the tools around RWKV-7 store a layer's state."""

from typing import NamedTuple

import numpy as np

from rwkv7_jax.checkpoint.files import CheckpointError


class Layout(NamedTuple):
    """How a tool stores one layer's state."""

    key_first: bool
    """True for [H, K, V]: the last two axes are swapped against our [H, V, K]."""
    batch_axis: bool
    dtype: type
    tools: str


LAYOUTS = {
    "value_key": Layout(
        False, False, np.float32, "reference, PyPI rwkv, RWKV-PEFT, Albatross, rwkv.cpp, rwkv-rs; ours"
    ),
    "rwkv-runner": Layout(False, False, np.float32, "RWKV-Runner: exactly one tensor a layer and nothing else"),
    "rlhf": Layout(True, False, np.float32, "OpenMOSE/RWKV-LM-RLHF"),
    "fla": Layout(True, True, np.float32, "flash-linear-attention, Hugging Face"),
    "web-rwkv": Layout(True, False, np.float16, "web-rwkv, Ai00 (.st)"),
}


def find_layout(name: str | None) -> Layout:
    """Returns the layout of this name.

    Raises:
      CheckpointError: there is no name, or an unknown one.
    """
    if name in LAYOUTS:
        return LAYOUTS[name]
    choices = "; ".join(f"{key} ({layout.tools.removesuffix('; ours')})" for key, layout in LAYOUTS.items())
    if name is None:
        raise CheckpointError(
            f"the axis order cannot be seen from the file; give layout= (--state_layout or --layout): {choices}"
        )
    raise CheckpointError(f"unknown layout {name}; one of {choices}")
