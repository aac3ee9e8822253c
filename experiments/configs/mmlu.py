"""State tuning on MMLU's auxiliary training questions (the development ones where there are no others), scored on its
test questions, all subjects mixed; real files, any RWKV-7.

    rwkv7 tune --config mmlu --data.dir data --model.checkpoint model.pth

Expected: the held-out completion loss falls, and with a capable model the accuracy gain is above zero; the tuned state
in runs/mmlu/mmlu/state.safetensors, ready for `rwkv7 evaluate --states`.
"""

from experiments.config.schema import DataConfig, EvaluateConfig, RunConfig, TuneConfig

config = RunConfig(
    name="mmlu",
    data=DataConfig(tasks=("mmlu",), dir="data", max_length=1024, batch_size=8),
    tune=TuneConfig(steps=400),
    evaluate=EvaluateConfig(max_records=400, max_new_tokens=256),
)
