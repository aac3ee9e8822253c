"""Names of states, sessions and responses: each is a file of that name in one folder, and nothing else."""

import re

from experiments.serve.errors import invalid, shown

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows."""


def is_name(text: str) -> bool:
    """Whether a text is safe as the name of a file."""
    return bool(NAME.fullmatch(text)) and not RESERVED.fullmatch(text) and not text.endswith(".")


def checked_name(field: str, text: str) -> str:
    """The same name.

    Raises:
      ApiError: a 400; it is not one, or reaches outside of its folder.
    """
    if not is_name(text):
        raise invalid(field, f"{shown(text)} is not a name: letters, digits, '.', '_' and '-', 100 at most")
    return text


def model_name(stem: str) -> str:
    """The name of a checkpoint as clients write it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-") or "model"
