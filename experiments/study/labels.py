"""The names of methods in tables and pictures, in their order there."""

from collections.abc import Iterable

LABELS = {
    "vanilla": "vanilla (zero state)",
    "standard": "standard state tuning",
    "upscale": "kernel upscaling (residual)",
    "upscale_median": "kernel upscaling, bandwidth 1",
    "dbp": "DBP",
    "upscale_dbp": "kernel upscaling + DBP",
    "test_time": "standard + test-time scaling",
    "observer": "observer: larger model's state, mapped",
    "whitened": "exact whitening (control of DBP)",
    "whitened_full": "exact whitening, C of whole batches",
    "dbp_seconds": "DBP, seconds of standard",
    "whitened_seconds": "exact whitening, seconds of standard",
    "few_shot": "few-shot prompt",
    "state_offset": "state offset",
    "prefix": "prefix (soft prompt)",
    "lora": "LoRA (changes weights)",
    "soup": "soup: mean over seeds",
    "soup_tasks": "soup: mean over benchmarks",
    "larger_vanilla": "larger model, vanilla",
    "larger_standard": "larger model, standard",
    "larger_observer": "larger model, student's state mapped",
}
FOUR = ("standard", "upscale", "dbp", "upscale_dbp")
"""The methods that the claims are about."""


def in_order(names: Iterable[str]) -> list[str]:
    """Returns known methods in the order of LABELS, then others."""
    known = list(LABELS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))
