"""Products of few rows of activations on a CPU, bound by how fast it reads the weights.

Pallas has no compiler for CPUs, and XLA multiplies few rows by bfloat16 or int8 matrices at a fraction of that speed.
These kernels are LLVM IR that `llvmlite` compiles for the machine (`pip install "rwkv7-jax[cpu]"`). XLA calls them as
it calls its own, and they run on its threads.
"""

from pallas_kernels.cpu.product import Kind, available, few_rows, fits, prepare

__all__ = ["Kind", "available", "few_rows", "fits", "prepare"]
