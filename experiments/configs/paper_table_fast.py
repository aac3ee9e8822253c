"""The paper's results table in small, to see that everything works: two benchmarks, fewer records, seeds, steps, rows.

    rwkv7 study --config paper_table_fast

Took 5 minutes on 2 cores that other work shared. Its numbers prove nothing; `paper_table` is the table.
"""

import dataclasses

from experiments.config.loading import load_config
from experiments.config.schema import EvaluateConfig, TuneConfig
from experiments.config.study import TableRunConfig

FULL = load_config("paper_table", kind=TableRunConfig)
LEFT_OUT = ("whitened", "dbp_seconds", "whitened_seconds", "prefix", "upscale_median", "state_offset")

config = TableRunConfig(
    name="paper_table_fast",
    seeds=(0, 1),
    data=dataclasses.replace(FULL.data, tasks=("pocket:winogrande", "pocket:arc"), max_train=80, max_length=47),
    tune=TuneConfig(steps=20, learning_rate=0.01),
    evaluate=EvaluateConfig(max_records=40),
    rows={name: row for name, row in FULL.rows.items() if name not in LEFT_OUT},
    timing_rounds=2,
    scaling=dataclasses.replace(FULL.scaling, tasks=("pocket:winogrande",), records=20, steps=2),
    observer=dataclasses.replace(FULL.observer, rows=16, samples=128),
)
