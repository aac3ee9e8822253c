"""States as bytes: read from what a client sends, written as what it downloads. No path of the server is ever told."""

import pathlib
import tempfile

from experiments.serve.errors import ApiError, invalid
from rwkv7_jax.checkpoint.files import CheckpointError
from rwkv7_jax.checkpoint.state_layouts import LAYOUTS
from rwkv7_jax.checkpoint.states import TunedState, export_state, load_state, save_state
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.wkv_state import WKVState

BASE = "base_model_hash"
OWN = "own"
"""The layout of `save_state`: with token-shift states, upscaled states and metadata."""
SUFFIXES = {OWN: ".safetensors", "rwkv-runner": ".pth", "value_key": ".pth", "rlhf": ".pth", "fla": ".safetensors"}


class Model:
    """What a state has to fit: dimensions and the hash of the weights."""

    def __init__(self, config: RWKV7Config, weights_hash: str):
        self.config, self.weights_hash = config, weights_hash

    def adopted(self, loaded: TunedState, *, override: bool = False) -> TunedState:
        """The state with this model as its base.

        Raises:
          CheckpointError: its file names another base, and `override` is not given; or it is upscaled.
        """
        if isinstance(loaded.state.wkv, WKVState):
            kind = type(loaded.state.wkv).__name__.lower()
            raise CheckpointError(
                f"is upscaled ({kind}); a server takes states of plain matrices, rwkv7 chat and rwkv7 generate take it"
            )
        base = loaded.metadata.get(BASE, "")
        if base in ("", self.weights_hash):
            return TunedState(loaded.state, {**loaded.metadata, BASE: self.weights_hash})
        if not override:
            raise CheckpointError(
                f"was tuned on the base model {base[:16]}, not {self.weights_hash[:16]}: send override=true if they "
                "differ in dtype alone"
            )
        return TunedState(loaded.state, {**loaded.metadata, BASE: self.weights_hash, "tuned_on": base})


def plain(error: Exception, path: pathlib.Path, name: str) -> str:
    """The message of an error with a name where the path stood."""
    return str(error).replace(f"{path}: ", f"{name}: ").replace(str(path), name)


def from_bytes(
    data: bytes, field: str, model: Model, *, layout: str | None = None, override: bool = False
) -> TunedState:
    """Reads a state file of any tool.

    Args:
      data: the file.
      field: of the request, for messages.
      model: what it has to fit.
      layout: a name in `LAYOUTS`; files of this project name their own.
      override: take a state that was tuned on another base.

    Raises:
      ApiError: a 400; the file is damaged, of another model, or of a layout that is not named.
    """
    if layout is not None and layout not in LAYOUTS:
        raise invalid("layout", f"must be one of {', '.join(LAYOUTS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "state")
        path.write_bytes(data)
        try:
            return model.adopted(load_state(path, layout=layout, config=model.config), override=override)
        except CheckpointError as error:
            told = plain(error, path, "the file").replace("layout= (--state_layout or --layout)", "layout")
            raise invalid(field, told) from None


def to_bytes(loaded: TunedState, layout: str = OWN, suffix: str | None = None) -> bytes:
    """Writes a state file.

    Args:
      loaded: the state.
      layout: OWN, or a name in `LAYOUTS`.
      suffix: ".pth" for torch's format, ".safetensors" or ".st"; None: what the layout's tools read.

    Raises:
      ApiError: a 400; the layout cannot hold the state, or its tools read no such file.
    """
    if layout not in (OWN, *LAYOUTS):
        raise invalid("layout", f"must be one of {', '.join((OWN, *LAYOUTS))}")
    if layout in (OWN, "web-rwkv") and suffix == ".pth":
        raise invalid("format", f"the layout {layout} is written as safetensors alone")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"state{suffix or SUFFIXES.get(layout, '.st')}")
        try:
            if layout == OWN:
                save_state(path, loaded.state, metadata=loaded.metadata)
            else:
                export_state(path, loaded.state, layout=layout, drop_shifts=True)
        except CheckpointError as error:
            raise ApiError(400, plain(error, path, "the state"), param="layout") from None
        return path.read_bytes()
