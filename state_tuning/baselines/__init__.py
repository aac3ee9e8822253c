"""What state tuning is compared with, through the same `Method` and train step."""

from state_tuning.baselines import lora
from state_tuning.baselines.adapters import AdaptedRWKV7, Adapter
from state_tuning.baselines.lora import Lora
from state_tuning.baselines.methods import TRAINED, UNTRAINED, Baseline, Sizes, build, few_shot, soup

__all__ = [
    "TRAINED",
    "UNTRAINED",
    "AdaptedRWKV7",
    "Adapter",
    "Baseline",
    "Lora",
    "Sizes",
    "build",
    "few_shot",
    "lora",
    "soup",
]
