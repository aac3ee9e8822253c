"""The named states of a folder, each a model name; files that others put there are found at once."""

import collections
import pathlib
import threading
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from experiments.serve.errors import ApiError, invalid
from experiments.serve.names import checked_name, is_name
from experiments.serve.state_files import BASE, Model, plain
from rwkv7_jax.checkpoint.files import CheckpointError
from rwkv7_jax.checkpoint.states import TunedState, load_state, save_state
from rwkv7_jax.state import State, zero_state
from state_tuning.core import surgery

SUFFIXES = (".safetensors", ".st", ".pth")
NONE = "none"
"""The zero state, in mixtures."""
IN_MEMORY = 512 * 2**20
"""Bytes of states that are kept beside their files."""


class Stamp(NamedTuple):
    """What changes when a file does."""

    modified: int
    size: int


class StateFolder:
    """States by name. Its methods may be called from any thread; they read and write files."""

    def __init__(self, folder: pathlib.Path, model: Model, layout: str | None = None):
        self.model = model
        self._folder, self._layout, self._lock = folder, layout, threading.RLock()
        self._held: collections.OrderedDict[tuple[str, Stamp], TunedState] = collections.OrderedDict()
        self._refused: dict[tuple[str, Stamp], str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """All names, sorted; also of files that cannot be used."""
        return sorted(self._files())

    def usable(self) -> list[str]:
        """The names of states that can be used."""
        return [name for name in self.names() if not self.refusal(name)]

    def refusal(self, name: str) -> str:
        """Why a state cannot be used; empty if it can."""
        try:
            self.load(name)
        except ApiError as error:
            return str(error)
        return ""

    def load(self, name: str, field: str = "model") -> TunedState:
        """The state of a name.

        Raises:
          ApiError: there is none (404), or its file cannot be used with this model (400).
        """
        checked_name(field, name)
        with self._lock:
            path = self._files().get(name)
            stamp = None if path is None else _stamp(path)
            if path is None or stamp is None:
                raise ApiError(404, f"there is no state {name!r}", param=field, code="state_not_found")
            key = (name, stamp)
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            if key not in self._refused:
                try:
                    return self._hold(key, self._read(path))
                except (CheckpointError, FileNotFoundError) as error:
                    self._refused[key] = plain(error, path, f"the state {name!r}")
            raise ApiError(400, self._refused[key], param=field, code="state_not_usable")

    def save(self, name: str, loaded: TunedState, *, replace: bool = False) -> None:
        """Keeps a state under a name, on the disk.

        Raises:
          ApiError: the name is taken (409) or wrong (400), or the disk does not take it (507).
        """
        checked_name("name", name)
        with self._lock:
            taken = self._files().get(name)
            if taken is not None and not replace:
                raise ApiError(409, f"there is a state {name!r} already; send replace=true", param="name")
            try:
                save_state(self._folder / f"{name}.safetensors", loaded.state, metadata=loaded.metadata)
                if taken is not None and taken.suffix != ".safetensors":
                    taken.unlink(missing_ok=True)
            except CheckpointError as error:
                raise invalid("state", plain(error, self._folder / f"{name}.safetensors", "it")) from None
            except OSError as error:
                raise ApiError(507, f"the state cannot be written: {error.strerror or 'disk error'}") from None

    def delete(self, name: str) -> None:
        """Removes a state.

        Raises:
          ApiError: there is none (404), or the disk refuses (507).
        """
        checked_name("name", name)
        with self._lock:
            path = self._files().get(name)
            if path is None:
                raise ApiError(404, f"there is no state {name!r}", param="name", code="state_not_found")
            try:
                path.unlink()
            except OSError as error:
                raise ApiError(507, f"the state cannot be removed: {error.strerror or 'disk error'}") from None

    def mixed(self, weights: dict[str, float], field: str) -> TunedState:
        """The weighted sum of named states; `none` is the zero state.

        Raises:
          ApiError: a state is not there, or they cannot be mixed.
        """
        parts = [self.zero() if name == NONE else self.load(name, field) for name in weights]
        try:
            mixed = surgery.mix([part.state for part in parts], list(weights.values()))
        except ValueError as error:
            raise invalid(field, str(error)) from None
        return TunedState(_finite(mixed, field), {BASE: self.model.weights_hash, "method": "mix"})

    def scaled(self, loaded: TunedState, factor: float, field: str) -> TunedState:
        """A state times a number.

        Raises:
          ApiError: a 400; the result is not finite.
        """
        kept = {name: text for name, text in loaded.metadata.items() if name in (BASE, "method", "config")}
        return TunedState(_finite(surgery.scale(loaded.state, factor), field), kept)

    def zero(self) -> TunedState:
        """The state before any text."""
        return TunedState(
            jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), zero_state(self.model.config, None)),
            {BASE: self.model.weights_hash, "method": "zero"},
        )

    def _read(self, path: pathlib.Path) -> TunedState:
        try:
            loaded = load_state(path, config=self.model.config)
        except CheckpointError as error:
            if self._layout is None or "axis order" not in str(error):
                raise
            loaded = load_state(path, config=self.model.config, layout=self._layout)
        return self.model.adopted(loaded)

    def _hold(self, key: tuple[str, Stamp], loaded: TunedState) -> TunedState:
        for old in [one for one in self._held if one[0] == key[0]]:
            del self._held[old]
        loaded = TunedState(jax.tree.map(_fixed, loaded.state), loaded.metadata)
        self._held[key] = loaded
        while len(self._held) > 1 and sum(map(_bytes, self._held.values())) > IN_MEMORY:
            self._held.popitem(last=False)
        return loaded

    def _files(self) -> dict[str, pathlib.Path]:
        """The file of each name; .safetensors before .st before .pth."""
        found: dict[str, pathlib.Path] = {}
        files = [path for path in self._folder.iterdir() if path.suffix in SUFFIXES and is_name(path.stem)]
        for path in sorted(files, key=lambda path: SUFFIXES.index(path.suffix)):
            if path.is_file():
                found.setdefault(path.stem, path)
        return found


def _stamp(path: pathlib.Path) -> Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Stamp(found.st_mtime_ns, found.st_size)


def _fixed(leaf: ArrayLike) -> np.ndarray:
    """A host array that cannot be changed, of which the prefix cache computes the hash once."""
    array = np.array(leaf)
    array.flags.writeable = False
    return array


def _bytes(loaded: TunedState) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(loaded.state))


def _finite(state: State, field: str) -> State:
    found = jax.tree.map(np.asarray, state)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
        raise invalid(field, "the result is not finite; use smaller numbers")
    return found
