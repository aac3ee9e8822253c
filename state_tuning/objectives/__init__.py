"""Objectives beside the likelihood of completions: a teacher's distributions, and preferences between completions."""

from state_tuning.objectives import distillation, divergences, preference
from state_tuning.objectives.distillation import exact_target, make_distillation_step
from state_tuning.objectives.divergences import Exact, Listed, divergence, divergence_sums
from state_tuning.objectives.preference import Pair, make_preference_step

__all__ = [
    "Exact",
    "Listed",
    "Pair",
    "distillation",
    "divergence",
    "divergence_sums",
    "divergences",
    "exact_target",
    "make_distillation_step",
    "make_preference_step",
    "preference",
]
