"""Every method on GSM8K's own problems with any RWKV-7: three seeds, the held-out loss and the accuracy of each.

    rwkv7 study --config gsm8k_table --data.dir data --model.checkpoint model.pth

The learning rates were found for the 834K model of docs/results-gsm8k.md; for another model find them first:

    rwkv7 study rates --config gsm8k_table --data.dir data --model.checkpoint model.pth
"""

import dataclasses

from experiments.config.loading import load_config
from experiments.config.schema import DataConfig, EvaluateConfig, TuneConfig
from experiments.config.study import ScalingConfig, TableRunConfig

FULL = load_config("paper_table", kind=TableRunConfig)
RATES = {"standard": 1, "upscale": 1, "upscale_median": 0.1, "dbp": 1, "upscale_dbp": 1, "lora": 0.03}

config = TableRunConfig(
    name="gsm8k_table",
    data=DataConfig(tasks=("gsm8k",), dir="data", max_length=512, batch_size=8),
    tune=TuneConfig(steps=40, learning_rate=0.01),
    evaluate=EvaluateConfig(max_records=200, max_new_tokens=256),
    rows={name: dataclasses.replace(FULL.rows[name], rates={"gsm8k": rate}) for name, rate in RATES.items()},
    shots=0,
    larger=None,
    scaling=ScalingConfig(),
    timing_rounds=3,
)
