"""Learning curves on the pocket benchmarks: every method at 25, 100, 400 and 1600 steps, with its own learning rate at
each of them, three seeds, the controls, and what a state changes elsewhere; no download.

    rwkv7 study --config curves
    rwkv7 study --config curves --select.rows standard,dbp,lora --select.tasks gsm8k+gold --select.budgets 25,100,400

The whole takes many hours on two cores; `--select` computes a part, and the report shows all that is there. Ctrl-C, and
the same command goes on.
"""

from experiments.config.curves import CurveRow, CurvesConfig, SolvedConfig
from experiments.config.methods import BaselineMethod, DBPMethod, StandardMethod, UpscaleDBPMethod, UpscaleMethod
from experiments.config.schema import DataConfig, EvaluateConfig, TuneConfig

GOLD = ("gsm8k+gold",)
ROWS = {
    "standard": CurveRow(StandardMethod()),
    "dbp": CurveRow(DBPMethod()),
    "lora": CurveRow(BaselineMethod(name="lora")),
    "upscale": CurveRow(UpscaleMethod()),
    "upscale_dbp": CurveRow(UpscaleDBPMethod()),
    "s0_offset": CurveRow(BaselineMethod(name="s0_offset")),
    "state_offset": CurveRow(BaselineMethod(name="state_offset")),
    "whitened_full": CurveRow(DBPMethod(form="whitened", sample=1.0)),
    "recurrent": CurveRow(UpscaleMethod(map="recurrent")),
    "upscale_192": CurveRow(UpscaleMethod(size=192)),
    "low_rank_4": CurveRow(BaselineMethod(name="low_rank_state", rank=4)),
    "low_rank_16": CurveRow(BaselineMethod(name="low_rank_state", rank=16)),
    "lora_2": CurveRow(BaselineMethod(name="lora", rank=2)),
    "lora_32": CurveRow(BaselineMethod(name="lora", rank=32)),
    "prefix": CurveRow(BaselineMethod(name="prefix")),
    "prefix_128": CurveRow(BaselineMethod(name="prefix", prefix=128)),
    "dbp_seconds": CurveRow(DBPMethod(), seconds_of="standard", rates_of="dbp"),
    "lora_seconds": CurveRow(BaselineMethod(name="lora"), seconds_of="standard", rates_of="lora"),
    "upscale_seconds": CurveRow(UpscaleMethod(), seconds_of="standard", rates_of="upscale"),
    "shuffled": CurveRow(StandardMethod(), data="shuffled", rates_of="standard"),
    "gold_48": CurveRow(StandardMethod(), records=48, budgets=(25, 100), tasks=GOLD),
    "solved_48": CurveRow(StandardMethod(), data="solved", records=48, budgets=(25, 100), tasks=GOLD),
}

config = CurvesConfig(
    name="curves",
    tasks=(
        "pocket:mmlu",
        "pocket:gsm8k+gold",
        "pocket:winogrande",
        "pocket:arc",
        "pocket:mmlu+took",
        "pocket:winogrande+why",
        "pocket:arc+why",
    ),
    elsewhere=(1600,),
    elsewhere_tasks=("mmlu", "gsm8k+gold", "winogrande", "arc"),
    data=DataConfig(batch_size=8),
    tune=TuneConfig(),
    evaluate=EvaluateConfig(max_records=400),
    rows=ROWS,
    # The zero state solves none in 3,200 samples, the state of 100 steps 5 at temperature 1 and 29 at 0.3.
    solved=SolvedConfig(row="standard", budget=100, temperature=0.3, samples=16),
)
