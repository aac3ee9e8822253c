"""Pre-training to the end, with a line for each validation."""

import sys
import time
from pathlib import Path

from experiments.config.schema import PretrainConfig
from experiments.training import distributed
from experiments.training.preemption import Interrupt, Interrupted
from experiments.training.pretraining import pretrain
from experiments.training.run_folder import held


def run(config: PretrainConfig) -> int:
    """Trains; returns 0, or 130 after an interruption.

    Raises:
      ValueError, OSError: in one line.
    """
    started = time.perf_counter()
    try:
        with (
            distributed.session(config.mesh) as mesh,
            Interrupt() as interrupt,
            held(config.folder, lead=distributed.is_lead()),
        ):
            for row in pretrain(config, interrupt, mesh):
                if "validation_loss" in row:
                    seconds, rate = time.perf_counter() - started, row["timing"]["tokens_per_s"]
                    losses = f"loss {row['loss']:.4f}, held-out {row['validation_loss']:.4f}"
                    print(f"step {row['step']}: {losses}, {rate} tokens/s, {seconds:.0f} s", flush=True)
    except Interrupted as place:
        print(f"interrupted at {place}; run the same command to resume", file=sys.stderr)
        return 130
    print(f"weights: {Path(config.folder) / 'model.safetensors'}")
    return 0
