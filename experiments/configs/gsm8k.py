"""State tuning on GSM8K's 7473 training problems, scored on numbers of the test split; real files, any RWKV-7.

    rwkv7 tune --config gsm8k --data.dir data --model.checkpoint model.pth

Expected: the held-out completion loss falls, and with a capable model the accuracy gain is above zero; the tuned state
in runs/gsm8k/gsm8k/state.safetensors, ready for `rwkv7 evaluate --states`.
"""

from experiments.config.schema import DataConfig, EvaluateConfig, RunConfig, TuneConfig

config = RunConfig(
    name="gsm8k",
    data=DataConfig(tasks=("gsm8k",), dir="data", max_length=512, batch_size=16),
    tune=TuneConfig(steps=400),
    evaluate=EvaluateConfig(max_records=400, max_new_tokens=256),
)
