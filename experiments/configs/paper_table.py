"""The paper's results table on the four pocket benchmarks: every method, 3 seeds, with the controls; no download.

    rwkv7 study --config paper_table

Writes report.md, results.json and pictures to runs/paper_table.
"""

from experiments.config.methods import BaselineMethod, DBPMethod, StandardMethod, UpscaleDBPMethod, UpscaleMethod
from experiments.config.schema import DataConfig, EvaluateConfig, TuneConfig
from experiments.config.study import Learned, ScalingConfig, TableRunConfig

TASKS = ("pocket:mmlu", "pocket:gsm8k", "pocket:winogrande", "pocket:arc")
# rwkv7 study rates --config paper_table
RATES: dict[str, dict[str, float]] = {
    "standard": {"mmlu": 0.1, "gsm8k": 3.0, "winogrande": 3.0, "arc": 0.3},
    "upscale": {"mmlu": 0.1, "gsm8k": 3.0, "winogrande": 3.0, "arc": 0.3},
    "dbp": {"mmlu": 0.1, "gsm8k": 3.0, "winogrande": 3.0, "arc": 0.3},
    "upscale_dbp": {"mmlu": 0.1, "gsm8k": 3.0, "winogrande": 3.0, "arc": 0.3},
    "whitened": {"mmlu": 0.1, "gsm8k": 3.0, "winogrande": 1.0, "arc": 1.0},
    "upscale_median": {"mmlu": 0.03, "gsm8k": 1.0, "winogrande": 1.0, "arc": 0.3},
    "state_offset": {"mmlu": 0.03, "gsm8k": 1.0, "winogrande": 1.0, "arc": 0.3},
    "prefix": {"mmlu": 1.0, "gsm8k": 0.1, "winogrande": 0.03, "arc": 0.01},
    "lora": {"mmlu": 0.003, "gsm8k": 0.01, "winogrande": 0.01, "arc": 0.01},
}

METHODS = {
    "standard": StandardMethod(),
    "upscale": UpscaleMethod(),
    "dbp": DBPMethod(),
    "upscale_dbp": UpscaleDBPMethod(),
    "upscale_median": UpscaleMethod(bandwidth=1.0),
    "whitened": DBPMethod(form="whitened"),
    "state_offset": BaselineMethod(name="state_offset"),
    "prefix": BaselineMethod(name="prefix"),
    "lora": BaselineMethod(name="lora"),
}
ROWS = {name: Learned(method, RATES[name]) for name, method in METHODS.items()}
ROWS |= {f"{name}_seconds": Learned(METHODS[name], RATES[name], "standard") for name in ("dbp", "whitened")}
# The larger model is scored, but not compared: it takes the student's rates.
ROWS["larger_standard"] = Learned(StandardMethod(), RATES["standard"], model="larger")

config = TableRunConfig(
    name="paper_table",
    data=DataConfig(tasks=TASKS, batch_size=8),
    tune=TuneConfig(steps=100, learning_rate=0.01),
    evaluate=EvaluateConfig(max_records=400),
    rows=ROWS,
    scaling=ScalingConfig(tasks=TASKS, records=192, rate=0.1),
)
