"""The two forms of the mathematics of a chunk, by the decays that they stand."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array
from jaxtyping import PyTree

from pallas_kernels.chunked import levels, math
from pallas_kernels.chunked.math import ChunkInputs, Terms


class Form(NamedTuple):
    """make_terms: the terms of a chunk, and what `gradients` needs of its pairs of tokens beside them."""

    make_terms: Callable[[ChunkInputs], tuple[Terms, PyTree]]
    gradients: Callable[..., tuple[tuple[Array, ...], Array]]


MIDDLE = Form(math.make_terms, math.gradients)
"""For log_w down to -5."""
LEVELS = Form(levels.make_terms, levels.gradients)
"""For any log_w, with more products: each level has scores of its own."""
