"""Settings that every training loop has in common."""

import dataclasses

from experiments.config.overrides import option


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How a training loop is kept, guarded and observed; no finite number depends on it."""

    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")
    checkpoint_every: int = option(50, "steps between checkpoints for resuming")
    keep: int = option(2, "newest checkpoints that are kept; two, because one may be damaged")
    keep_best: int = option(0, "checkpoints kept besides: those with the least best_metric")
    best_metric: str = option("loss", "what keep_best goes by: a name in the rows of metrics.jsonl")
    log_every: int = option(1, "steps between rows of metrics.jsonl")
    rollback_after: int = option(5, "non-finite updates in a row that send the run back to its last checkpoint")
    rollbacks: int = option(2, "how often, before the run is given up")
    profile_start: int = option(0, "first step of a profiler trace in the folder profile; 0: none")
    profile_steps: int = option(3, "steps of that trace")
    tensorboard: bool = option(False, "write scalars for TensorBoard too (needs tensorboardX or tensorboard)")

    def __post_init__(self) -> None:
        if min(self.checkpoint_every, self.log_every, self.rollback_after, self.profile_steps) < 1:
            raise ValueError("must be at least 1")
        if min(self.keep_best, self.rollbacks, self.profile_start) < 0:
            raise ValueError("must not be negative")
        if self.keep < 2:
            raise ValueError("must be at least 2, because the newest checkpoint may be damaged")
