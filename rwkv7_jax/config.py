"""Dimensions and compute options of an RWKV-7 model."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RWKV7Config:
    """Frozen description of a model. The dimensions come from a checkpoint's tensor shapes
    (`rwkv7_jax.checkpoint.infer_config`).

    Raises:
      ValueError: the head size does not divide the width, or there is no layer.

    Example:
      >>> RWKV7Config(vocab_size=65536, n_layer=12, n_embd=768).n_head
      12
    """

    vocab_size: int
    """Rows of the embedding and of the head."""
    n_layer: int
    """Number of layers L, at least 1."""
    n_embd: int
    """Model width D."""
    head_size: int = 64
    """Width of a head, K = V, which divides `n_embd`."""
    dim_ffn: int = 0
    """Width of the channel mix; 0 means 4 * n_embd, as released."""
    decay_lora: int = 64
    """Rank of the matrices that make the decay."""
    aaa_lora: int = 64
    """Rank of those that make the in-context learning rate."""
    mv_lora: int = 32
    """Rank of those that mix a layer's values with the first layer's."""
    gate_lora: int = 128
    """Rank of those that make the output gate."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of activations; norms, decays and the recurrent state stay float32."""
    activations: Literal["float32", "bfloat16"] | None = None
    """Dtype of the activations alone; None: `dtype`, which is then that of the products' factors. float32 activations
    beside bfloat16 products are fastest on a CPU, see `rwkv7_jax.dtypes.on_device`."""
    remat: Literal["none", "dots", "block"] = "none"
    """What the backward pass finds stored of each block: everything, the products with weights, its input alone; the
    rest is computed again, which takes less memory and more time."""
    scan_layers: bool = True
    """Blocks 1.. as one `lax.scan` over stacked weights (fast to compile). False: one by one, over unstacked weights
    (see `unstack_blocks`), which spares a copy of every weight per call: the form for decoding."""
    wkv_implementation: str | None = None
    """Name handed to `pallas_kernels.wkv7`; None picks by device."""

    def __post_init__(self):
        if self.dim_ffn == 0:
            object.__setattr__(self, "dim_ffn", 4 * self.n_embd)
        if self.n_embd % self.head_size:
            raise ValueError(
                f"n_embd {self.n_embd} is not a multiple of head_size {self.head_size}; change one of them"
            )
        if self.n_layer < 1:
            raise ValueError(f"n_layer must be at least 1, got {self.n_layer}")

    @property
    def activation_dtype(self) -> Literal["float32", "bfloat16"]:
        """Dtype of activations and of the token-shift states."""
        return self.activations or self.dtype

    @property
    def n_head(self) -> int:
        """Number of heads."""
        return self.n_embd // self.head_size
