"""State tuning on WinoGrande XL's training split, scored on the validation split; real files, any RWKV-7.

    rwkv7 tune --config winogrande --data.dir data --model.checkpoint model.pth

Expected: the held-out completion loss falls, and with a capable model the accuracy gain is above zero; the tuned state
in runs/winogrande/winogrande/state.safetensors, ready for `rwkv7 evaluate --states`.
"""

from experiments.config.schema import DataConfig, EvaluateConfig, RunConfig, TuneConfig

config = RunConfig(
    name="winogrande",
    data=DataConfig(tasks=("winogrande",), dir="data", max_length=128, batch_size=32),
    tune=TuneConfig(steps=400),
    evaluate=EvaluateConfig(max_records=400, max_new_tokens=256),
)
