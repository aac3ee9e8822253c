"""Vanilla against standard state tuning on the four pocket benchmarks, with the embedded student; no download.

    rwkv7 tune --config quickstart

Expected: on each benchmark the held-out completion loss falls, the mean accuracy gain is clearly above zero, and the
last line is `RESULT: PASS`; about 2 minutes on 2 cores.
"""

from experiments.config.schema import DataConfig, EvaluateConfig, ReportConfig, RunConfig, TuneConfig

config = RunConfig(
    name="quickstart",
    data=DataConfig(tasks=("pocket:mmlu", "pocket:gsm8k", "pocket:winogrande", "pocket:arc"), batch_size=16),
    tune=TuneConfig(steps=100, learning_rate=1.0),
    evaluate=EvaluateConfig(max_records=200),
    report=ReportConfig(samples=1),
)
