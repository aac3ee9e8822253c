"""The hash that a state file carries of its tensors."""

import hashlib
from collections.abc import Mapping

import numpy as np

from rwkv7_jax.checkpoint.files import CheckpointError, raw_bytes


def state_hash(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(raw_bytes(array))
    return digest.hexdigest()


def check_hash(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Checks tensors against the hash in their file's metadata.

    Raises:
      CheckpointError: it is another.
    """
    if metadata.get("state_hash", "") != state_hash(tensors):
        raise CheckpointError("the state does not match the hash stored with it: damaged; copy the file again")
