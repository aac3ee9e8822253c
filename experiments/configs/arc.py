"""State tuning on ARC-Challenge's training split, scored on the test split; real files, any RWKV-7.

    rwkv7 tune --config arc --data.dir data --model.checkpoint model.pth

Expected: the held-out completion loss falls, and with a capable model the accuracy gain is above zero; the tuned state
in runs/arc/arc/state.safetensors, ready for `rwkv7 evaluate --states`.
"""

from experiments.config.schema import DataConfig, EvaluateConfig, RunConfig, TuneConfig

config = RunConfig(
    name="arc",
    data=DataConfig(tasks=("arc",), dir="data", max_length=256, batch_size=16),
    tune=TuneConfig(steps=400),
    evaluate=EvaluateConfig(max_records=400, max_new_tokens=256),
)
