"""Modules that were commands, and the command that took over."""

MOVED = {
    "experiments.evaluate": "rwkv7 evaluate",
    "experiments.harness": "rwkv7 evaluate --data.tasks lm_eval:TASK",
    "experiments.sweep": "rwkv7 sweep",
    "experiments.distill": "rwkv7 distill",
    "experiments.test_time": "rwkv7 scale",
    "experiments.pretrain": "rwkv7 pretrain",
    "experiments.plan": "rwkv7 plan",
    "experiments.plan.table": "rwkv7 plan table",
    "experiments.table.rates": "rwkv7 study rates",
    "experiments.table.publish": "rwkv7 study publish",
    "experiments.bench": "rwkv7 bench model",
    "experiments.bench.steps": "rwkv7 bench steps",
    "experiments.bench.tokenizer": "rwkv7 bench tokenizer",
    "experiments.eval_bench": "rwkv7 bench evaluation",
    "experiments.pocket": "rwkv7 pocket",
    "experiments.sources.mmlu_tfds": "python -m experiments.data.tfds_mmlu",
}
