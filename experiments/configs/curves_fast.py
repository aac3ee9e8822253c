"""Learning curves in small, to see that everything works: two benchmarks, two budgets, two seeds, few rows and records.

    rwkv7 study --config curves_fast

Its numbers prove nothing; `curves` is the study.
"""

import dataclasses

from experiments.config.curves import CurvesConfig
from experiments.config.loading import load_config
from experiments.config.schema import EvaluateConfig

FULL = load_config("curves", kind=CurvesConfig)
KEPT = ("standard", "dbp", "lora", "shuffled")

config = CurvesConfig(
    name="curves_fast",
    seeds=(0, 1),
    tasks=("pocket:arc", "pocket:mmlu+took"),
    budgets=(5, 20),
    elsewhere=(20,),
    elsewhere_tasks=(),
    data=dataclasses.replace(FULL.data, max_train=80),
    evaluate=EvaluateConfig(max_records=30, max_new_tokens=24),
    rows={name: FULL.rows[name] for name in KEPT},
    model=FULL.model,
    tune=FULL.tune,
    search_records=30,
    texts=8,
    timing_rounds=1,
)
