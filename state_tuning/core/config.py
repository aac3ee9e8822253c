"""The settings that every way to tune a state has in common."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Hyper-parameters of a tuning run."""

    learning_rate: float = 1e-2
    """Peak step size of Adam, so about the change of each state entry per step."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay after the warm-up, to `final_fraction` of the peak at `steps`."""
    warmup: int = 10
    """Steps of linear warm-up."""
    steps: int = 200
    """Updates, over which the schedule runs."""
    final_fraction: float = 0.1
    """Part of the peak that is left at the end of the decay."""
    b1: float = 0.9
    """Adam's decay of the mean gradient."""
    b2: float = 0.99
    """Adam's decay of the mean squared gradient."""
    eps: float = 1e-8
    """Adam's constant in the denominator."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 turns clipping off."""
    alpha: float = 1.0
    """The initial state is alpha * S_0 (S0 Tuning, arXiv 2604.01168)."""
    l2: float = 0.0
    """Adds l2 * |S_0|^2 to the loss: the sum of squares over all leaves of the trainable tree.

    For literal DBP these are S~ (not the S~ R that is read) and R, whose squares are in `penalty` and `grad_norm` but
    move nothing, as no gradient moves R."""
    tune_shifts: bool = False
    """Train the token-shift states of both mixes too; otherwise they stay zero."""
    accumulate: int = 1
    """Micro-batches per step: memory of B / accumulate sequences, the same update."""
    loss_chunk: int = 128
    """Tokens of each sequence whose logits exist at a time."""
    segment: int = 0
    """Tokens of each sequence whose activations exist at a time (see `segments`); 0: all."""
    exact_segments: int = 0
    """Segments from the start that the gradient runs through; 0: all of them, the exact gradient."""

    def __post_init__(self):
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} is unknown: choose constant, linear or cosine")
        for name in ("steps", "accumulate", "loss_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("learning_rate", "warmup", "clip_norm", "l2", "segment", "exact_segments"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be finite and not negative")
