"""State tuning on your own task: any RWKV-7 checkpoint, jsonl of {"prompt", "completion"}, {"messages"} or {"text"}.

    rwkv7 tune --config jsonl --model.checkpoint model.pth --data.train my.jsonl

Expected: `RESULT: PASS` when the held-out completion loss falls; the tuned state in runs/jsonl/jsonl/state.safetensors
and the command to use it. Give each task its own --output. Without --model.checkpoint it is the embedded student.
"""

from experiments.config.schema import DataConfig, RunConfig, TuneConfig

config = RunConfig(name="jsonl", data=DataConfig(batch_size=8), tune=TuneConfig(steps=200))
