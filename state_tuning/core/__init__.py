"""What every method shares: the algebra of states, the loss, and the step that trains them.

Names are imported when first used: data pipelines need `objective` without the model.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from state_tuning.core import non_finite, objective, surgery, train
    from state_tuning.core.non_finite import NonFiniteError, check_finite, keep_if_finite
    from state_tuning.core.objective import (
        Batch,
        Example,
        chunked_sums,
        collate,
        completion_loss,
        encode_example,
        encode_text,
    )
    from state_tuning.core.train import (
        Method,
        TuneConfig,
        TuneState,
        guarded_update,
        make_eval_step,
        make_optimizer,
        make_train_step,
        standard,
    )

__all__ = [
    "Batch",
    "Example",
    "Method",
    "NonFiniteError",
    "TuneConfig",
    "TuneState",
    "check_finite",
    "chunked_sums",
    "collate",
    "completion_loss",
    "encode_example",
    "encode_text",
    "guarded_update",
    "keep_if_finite",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
    "non_finite",
    "objective",
    "standard",
    "surgery",
    "train",
]

_HOME = {
    "Batch": "objective", "Example": "objective", "chunked_sums": "objective", "collate": "objective",
    "completion_loss": "objective", "encode_example": "objective", "encode_text": "objective",
    "NonFiniteError": "non_finite", "check_finite": "non_finite", "keep_if_finite": "non_finite",
    "Method": "train", "TuneConfig": "train", "TuneState": "train", "guarded_update": "train",
    "make_eval_step": "train", "make_optimizer": "train", "make_train_step": "train", "standard": "train",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module: ModuleType = importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
    return getattr(module, name) if name in _HOME else module


def __dir__() -> list[str]:
    return __all__
