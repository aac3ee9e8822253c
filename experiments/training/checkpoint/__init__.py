"""Checkpoints for resuming: Orbax for the arrays, SHA-256 of every file so that a flipped bit is found.

    FOLDER/step_00000040/{tree/ (Orbax), meta.json, MANIFEST.json}

A checkpoint is written beside its place and renamed into it, so a folder of that name is complete. Orbax alone restores
most single-bit flips silently (measured: 396 of 400), hence the manifest.

With several processes (`jax.distributed`) the folder lies on a file system that all of them see. All take part in
writing and reading arrays; process 0 alone writes everything else and decides which step is restored.
"""

from experiments.training.checkpoint.files import MANIFEST, Keep, Meta, damage, steps
from experiments.training.checkpoint.reader import Found, Resumed, abstract, check_identity, find, read, restore
from experiments.training.checkpoint.writer import Writer, save

__all__ = [
    "MANIFEST",
    "Found",
    "Keep",
    "Meta",
    "Resumed",
    "Writer",
    "abstract",
    "check_identity",
    "damage",
    "find",
    "read",
    "restore",
    "save",
    "steps",
]
