"""The settings of training from scratch, in parts; `experiments.config.schema.PretrainConfig` is all of them."""

import dataclasses
from typing import Literal

from experiments.config.overrides import option


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """How the weights move."""

    steps: int = option(2000, "optimiser steps")
    optimizer: Literal["muon", "adam"] = option("muon", "of the blocks' matrices; adam sends less over a large mesh")
    muon_rate: float = option(0.02, "peak learning rate of the blocks' matrices, by Muon")
    learning_rate: float = option(3e-3, "peak learning rate of all else, by Adam")
    final_rate: float = option(0.02, "last learning rates as a part of the peak")
    warmup: int = option(100, "steps of linear warm-up")
    weight_decay: float = option(0.02, "decoupled weight decay of the blocks' matrices")
    beta2: float = option(0.99, "second-moment decay of Adam")
    accumulate: int = option(1, "micro-batches a step; must divide batch_size")
    loss_chunk: int = option(0, "tokens a row whose logits are held at a time; 0: all")


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """How text becomes batches."""

    batch_size: int = option(16, "rows a step")
    length: int = option(128, "tokens a row")
    streams: int = option(1, "packings a batch is made of; with as many as processes, each packs its own rows only")


@dataclasses.dataclass(frozen=True)
class DimensionsConfig:
    """The model, and how it computes."""

    n_layer: int = option(4, "layers")
    n_embd: int = option(128, "width")
    head_size: int = option(64, "size of a head")
    lora: int = option(16, "rank of the decay, in-context-learning-rate and value LoRAs")
    gate_lora: int = option(32, "rank of the gate LoRA")
    dtype: Literal["float32", "bfloat16"] = option("float32", "compute type of activations; state and norms: float32")
    remat: Literal["none", "dots", "block"] = option("none", "recompute in the backward pass, as model.remat of a run")
