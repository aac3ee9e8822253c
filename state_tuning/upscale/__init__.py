"""Kernel upscaling of the state: more key dimensions, which a Gaussian feature map makes out of the model's own."""

from state_tuning.upscale import feature_map, fitting, stability
from state_tuning.upscale.fitting import TRAINED, Fitted, Upscale, fit, lift, method, pad, sample_tokens

__all__ = [
    "TRAINED",
    "Fitted",
    "Upscale",
    "feature_map",
    "fit",
    "fitting",
    "lift",
    "method",
    "pad",
    "sample_tokens",
    "stability",
]
