"""Tune an initial state in Python: the same model, the same question, before and after."""

from experiments.build import checkpoint_path
from experiments.pocket import benchmarks
from experiments.tasks import TASKS
from rwkv7_jax import LanguageModel
from state_tuning import tune

# Any checkpoint: "model.pth", a folder of safetensors, "hf://OWNER/NAME". This one is inside the package.
lm = LanguageModel.load(checkpoint_path("pocket/student"))
print(lm)

# Pairs of prompt and completion. These are small sums in words about an invented world.
train = [TASKS["gsm8k"].to_example(record) for record in benchmarks.load("gsm8k", "train")]
held_out = [TASKS["gsm8k"].to_example(record) for record in benchmarks.load("gsm8k", "validation")[:50]]

result = tune(lm, train, steps=100, learning_rate=3.0, validation=held_out)
print(result)

result.state.save("sums.safetensors")  # 0.1 MB, and the hash of the model that it belongs to

prompt = held_out[0][0]
print(prompt)
for name, state in (("zero state", None), ("tuned state", result.state)):
    answer = lm.generate(prompt, state=state, temperature=0, max_new_tokens=48, stop="\n\n")
    print(f"--- {name}:{answer}")
