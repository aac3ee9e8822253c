"""Evaluate two states on the same records, and say whether the difference is beyond chance.

`rwkv7 evaluate --states none,tuned.safetensors` does this for whole benchmarks in the protocol of
lm-evaluation-harness; here are the parts.
"""

import numpy as np

from experiments.build import checkpoint_path
from experiments.pocket import benchmarks
from experiments.tasks import TASKS
from rwkv7_jax import LanguageModel
from state_tuning import tune

task = TASKS["arc"]
lm = LanguageModel.load(checkpoint_path("pocket/student"))
train = [task.to_example(record) for record in benchmarks.load("arc", "train")]
records = benchmarks.load("arc", "test")[:100]

states = {"zero": None, "tuned": tune(lm, train, steps=50).state}


def right(state) -> np.ndarray:
    """1 for each record whose best choice is the right one, by log-likelihood over characters."""
    requests = [task.requests(record) for record in records]
    flat = lm.score([(one.context, one.continuation) for group in requests for one in group], state=state)
    scores = iter(flat)
    results = [[next(scores) for _ in group] for group in requests]
    return np.array([task.score(record, found)["acc_norm"] for record, found in zip(records, results, strict=True)])


found = {name: right(state) for name, state in states.items()}
for name, values in found.items():
    print(f"{name:<6} {100 * values.mean():.1f} % of {len(values)} records")

# The same records in both columns, so the records are drawn anew in pairs.
rng = np.random.default_rng(0)
gain = found["tuned"] - found["zero"]
means = gain[rng.integers(len(gain), size=(2000, len(gain)))].mean(1)
low, high = np.percentile(means, [2.5, 97.5])
print(f"gain   {100 * gain.mean():+.1f} points, 95 % interval [{100 * low:+.1f}, {100 * high:+.1f}]")
