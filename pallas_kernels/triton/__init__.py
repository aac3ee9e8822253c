"""WKV-7 through Triton itself and jax-triton, for NVIDIA GPUs."""

from pallas_kernels.triton.launch import wkv7_triton

__all__ = ["wkv7_triton"]
