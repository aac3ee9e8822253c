"""What a compiler says when a program needs more memory than a chip has."""

import re
from typing import NamedTuple

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AMOUNT = r"([\d.]+)\s*([KMGT]?)(?:iB|B)?(?:ytes|\s+bytes)?\b"
_USED = re.compile(rf"[Uu]sed {_AMOUNT} of {_AMOUNT} hbm")
_EXCEEDS = re.compile(rf"([\w \-]*)\({_AMOUNT}\) exceeds [\w \-]*\({_AMOUNT}\)")
_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OutOfMemory|HbmOom|[Oo]ut of memory")
_ON_CHIP = re.compile(r"\b[vs]mem\b|scoped|registers|shared memory", re.IGNORECASE)


class Refusal(NamedTuple):
    """Bytes on one chip, 0 for what the message does not say."""

    total: int = 0
    """All that the program would need."""
    temporaries: int = 0
    """What it would need beside its arguments."""
    available: int = 0
    """What the compiler gives to a program."""


def out_of_memory(message: str) -> Refusal | None:
    """Reads a compiler's message; None if something else is wrong than the memory of a chip."""
    if not _MEMORY.search(message):
        return None
    if found := _USED.search(message):
        return Refusal(total=_bytes(found[1], found[2]), available=_bytes(found[3], found[4]))
    if found := _EXCEEDS.search(message):
        needed, available = _bytes(found[2], found[3]), _bytes(found[4], found[5])
        if "temporar" in found[1] and "argument" not in found[1]:
            return Refusal(temporaries=needed, available=available)
        return Refusal(total=needed, available=available)
    return None if _ON_CHIP.search(message) else Refusal()


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])
