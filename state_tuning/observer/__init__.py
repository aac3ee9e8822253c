"""The observer: a smaller model that learns the state dynamics of a larger one; and prompts compiled to states."""

from state_tuning.observer import distill, learn, observe, observer_file, state_map
from state_tuning.observer.distill import compile_prompt, portable
from state_tuning.observer.learn import LearnConfig, by_part, learnable, learnt, make_learn_step
from state_tuning.observer.observe import (
    Observer,
    ObserverConfig,
    Report,
    Trajectories,
    fit,
    fit_maps,
    make_refine_step,
    refinable,
    report,
    trajectories,
)
from state_tuning.observer.observer_file import StoredObserver, load_observer, save_observer
from state_tuning.observer.state_map import Maps, transfer

__all__ = [
    "LearnConfig",
    "Maps",
    "Observer",
    "ObserverConfig",
    "Report",
    "StoredObserver",
    "Trajectories",
    "by_part",
    "compile_prompt",
    "distill",
    "fit",
    "fit_maps",
    "learn",
    "learnable",
    "learnt",
    "load_observer",
    "make_learn_step",
    "make_refine_step",
    "observe",
    "observer_file",
    "portable",
    "refinable",
    "report",
    "save_observer",
    "state_map",
    "trajectories",
    "transfer",
]
