"""The observer: a smaller model that learns the state dynamics of a larger one; and prompts compiled to states."""

from state_tuning.observer import distill, observe, state_map
from state_tuning.observer.distill import compile_prompt, portable
from state_tuning.observer.observe import (
    Observer,
    ObserverConfig,
    Report,
    Trajectories,
    fit,
    make_refine_step,
    refinable,
    report,
    trajectories,
)
from state_tuning.observer.state_map import Maps, transfer

__all__ = [
    "Maps",
    "Observer",
    "ObserverConfig",
    "Report",
    "Trajectories",
    "compile_prompt",
    "distill",
    "fit",
    "make_refine_step",
    "observe",
    "portable",
    "refinable",
    "report",
    "state_map",
    "trajectories",
    "transfer",
]
