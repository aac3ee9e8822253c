"""The algebra of states: measure, subtract, scale and mix two tuned states."""

import numpy as np

from experiments.build import checkpoint_path
from experiments.pocket import benchmarks
from experiments.tasks import TASKS
from rwkv7_jax import LanguageModel
from state_tuning import surgery, tune

lm = LanguageModel.load(checkpoint_path("pocket/student"))
pairs = {
    name: [TASKS[name].to_example(record) for record in benchmarks.load(name, "train")[:200]]
    for name in ("gsm8k", "winogrande")
}
tuned = {name: tune(lm, train, steps=50).state.state for name, train in pairs.items()}

for name, state in tuned.items():
    found = surgery.info(state)
    print(f"{name:<11} norms by layer {np.round(found['wkv_norm'], 1)}, rank up to {found['wkv_rank'].max():.1f}")

change = surgery.diff(tuned["gsm8k"], tuned["winogrande"])
print(f"difference  norms by layer {np.round(surgery.info(change)['wkv_norm'], 1)}")


def loss(state, name: str, count: int = 40) -> float:
    """Mean negative log-likelihood of completions in nats."""
    return -float(np.mean(lm.score(pairs[name][:count], state=state)))


rows = {"zero": None, **tuned}
rows["half of gsm8k"] = surgery.scale(tuned["gsm8k"], 0.5)
rows["half of each"] = surgery.mix(list(tuned.values()), [0.5, 0.5])
rows["last layer of gsm8k"] = surgery.select_layers(tuned["gsm8k"], [-1])
for label, state in rows.items():
    print(f"{label:<20} gsm8k {loss(state, 'gsm8k'):8.2f}   winogrande {loss(state, 'winogrande'):8.2f}")
