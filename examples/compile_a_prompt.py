"""Compile a prompt into a state: started from it, a text gets the logits that it gets after the prompt."""

import jax.numpy as jnp

from experiments.build import checkpoint_path
from experiments.pocket import text
from rwkv7_jax import LanguageModel, State, export_state, save_state
from state_tuning.observer import compile_prompt, portable

lm = LanguageModel.load(checkpoint_path("pocket/student"))
prompt = next(text.documents(seed=3)) + "\n\n"
question = "Mira has a lamp."

state = compile_prompt(lm.model, lm.params, lm.encode(prompt))


def difference(start: State) -> float:
    """The largest difference of a logit from what it is after the prompt."""
    after_prompt = lm.logits(lm.encode(prompt) + lm.encode(question))[0][-len(lm.encode(question)) :]
    return float(jnp.abs(after_prompt - lm.logits(question, state=start)[0]).max())


print(f"{len(lm.encode(prompt))} tokens of prompt that no request reads again")
print(f"no state:                       logits differ by {difference(lm.zero_state()):.4f}")
print(f"compiled, in our own format:    {difference(state):.6f}")

# Files of other tools hold the matrices alone, without the token-shift states.
matrices = portable(state)
print(f"matrices alone:                 {difference(matrices):.4f}")
print(f"matrices of rank 4:             {difference(portable(state, rank=4)):.4f}")

save_state("prompt.safetensors", state, metadata={"base_model_hash": lm.weights_hash})
export_state("prompt.pth", matrices, layout="rwkv-runner")
