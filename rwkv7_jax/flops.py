"""Model FLOPs from dimensions, and what a device can do at most: the two sides of MFU (PaLM, arXiv 2204.02311)."""

import re
from collections.abc import Collection
from typing import Protocol, runtime_checkable

from rwkv7_jax.config import RWKV7Config

__all__ = ["PEAK_FLOPS", "forward", "mfu", "peak", "training", "tuning"]

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 FLOP/s of a chip by the first words of its `device_kind`, the longest that fit; sources: the makers'
data sheets (the SXM form where no other is named)."""


@runtime_checkable
class Device(Protocol):
    """A `jax.Device`, or anything that names its kind."""

    @property
    def device_kind(self) -> str:
        """The maker's name of the chip."""
        ...


def forward(config: RWKV7Config) -> int:
    """Returns the FLOPs of one token's forward pass; a multiply-add counts 2.

    With width D, feed-forward width F, head size K, vocabulary N, LoRA ranks r and L layers, each layer has

        2 (4 D^2 + 2 D F + 2 D (r_w + r_a + r_v + r_g))     products with weights; r_v from the second layer on
        9 D K                                               the state, for each of its D K entries:

    decay 1, read by kk 2, take out 2, put in 2, read by r 2. The head has 2 D N, the embedding none. Element-wise work
    of order D is left out.

    Args:
      config: the model's dimensions.

    Returns:
      FLOPs a token.
    """
    return _weights(config) + _recurrence(config)


def training(config: RWKV7Config) -> int:
    """Returns the FLOPs of one token in a training step: three times the forward pass.

    Gradients of inputs and of weights each cost as much as the forward pass.
    Recomputation that saves memory is not counted.

    Args:
      config: the model's dimensions.

    Returns:
      FLOPs a token.
    """
    return 3 * forward(config)


def tuning(config: RWKV7Config) -> int:
    """Returns the FLOPs of one token in a state-tuning step.

    Frozen weights get no gradient, so their products count twice, not three times.

    Args:
      config: the model's dimensions.

    Returns:
      FLOPs a token.
    """
    return 2 * _weights(config) + 3 * _recurrence(config)


def _weights(c: RWKV7Config) -> int:
    lora = c.n_layer * (c.decay_lora + c.aaa_lora + c.gate_lora) + (c.n_layer - 1) * c.mv_lora
    layers = c.n_layer * (4 * c.n_embd**2 + 2 * c.n_embd * c.dim_ffn) + 2 * c.n_embd * lora
    return 2 * (layers + c.n_embd * c.vocab_size)


def _recurrence(c: RWKV7Config) -> int:
    return c.n_layer * 9 * c.n_embd * c.head_size


def peak(device: Device) -> float | None:
    """Returns what a device can compute at most.

    Args:
      device: a `jax.Device`, or anything with its `device_kind`.

    Returns:
      Dense bfloat16 FLOP/s, from `PEAK_FLOPS`; None for CPUs and unknown devices.
    """
    names = [name for name in PEAK_FLOPS if re.match(rf"{name}\b", device.device_kind)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def mfu(tokens_per_second: float, flops_per_token: int | float, devices: Collection[Device]) -> float | None:
    """Returns the model FLOPs utilisation: the part of the devices' peak that the model's own arithmetic takes.

    Args:
      tokens_per_second: of all `devices` together.
      flops_per_token: what `forward`, `training` or `tuning` returns.
      devices: the devices that share the work.

    Returns:
      The utilisation, 0..1; None if the peak of a device is unknown.
    """
    peaks = [peak(device) for device in devices]
    if not peaks or None in peaks:
        return None
    return tokens_per_second * flops_per_token / sum(value for value in peaks if value)
