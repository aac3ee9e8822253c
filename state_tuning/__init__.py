"""State tuning of RWKV-7: pure functions on states, and the step that trains them with every weight frozen.

    import state_tuning as st

    result = st.tune(lm, examples, steps=200)                      # standard state tuning in one call
    result = st.tune(lm, examples, optimizer=st.decorrelated(optax.adam(1e-2)))
    method = st.upscale.method(st.upscale.fit(...), ...)           # a method for st.tune or st.make_train_step

Names are imported when first used, so that `import state_tuning` loads neither JAX nor flax.
"""

import importlib
from typing import TYPE_CHECKING

from rwkv7_jax import __version__

if TYPE_CHECKING:
    from state_tuning import baselines, core, dbp, observer, reinforcement, test_time_scaling, upscale
    from state_tuning.core import non_finite, objective, surgery
    from state_tuning.core.non_finite import NonFiniteError
    from state_tuning.core.train import (
        Method,
        TuneConfig,
        TuneState,
        make_eval_step,
        make_optimizer,
        make_train_step,
        standard,
    )
    from state_tuning.dbp.correlations import make_correlate
    from state_tuning.dbp.transform import decorrelated, whitened
    from state_tuning.observer import distill
    from state_tuning.test_time_scaling.adaptation import adapt
    from state_tuning.tuning import TuneResult, tune

__all__ = [
    "Method",
    "NonFiniteError",
    "TuneConfig",
    "TuneResult",
    "TuneState",
    "__version__",
    "adapt",
    "baselines",
    "core",
    "dbp",
    "decorrelated",
    "distill",
    "make_correlate",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
    "non_finite",
    "objective",
    "observer",
    "reinforcement",
    "standard",
    "surgery",
    "test_time_scaling",
    "tune",
    "upscale",
    "whitened",
]

_MODULES = {
    "baselines": "baselines", "core": "core", "dbp": "dbp", "observer": "observer", "upscale": "upscale",
    "reinforcement": "reinforcement", "test_time_scaling": "test_time_scaling", "distill": "observer.distill",
    "non_finite": "core.non_finite", "objective": "core.objective", "surgery": "core.surgery",
}  # fmt: skip
_HOME = {
    "NonFiniteError": "core.non_finite", "Method": "core.train", "TuneConfig": "core.train", "TuneState": "core.train",
    "make_eval_step": "core.train", "make_optimizer": "core.train", "make_train_step": "core.train",
    "standard": "core.train", "make_correlate": "dbp.correlations", "decorrelated": "dbp.transform",
    "whitened": "dbp.transform", "adapt": "test_time_scaling.adaptation", "TuneResult": "tuning", "tune": "tuning",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
