"""A method of your own: one direction for each layer, shared by its heads, with a strength for each head.

A `Method` is three functions; the train step, the optimiser, files, evaluation and `tune` take it as they take others.
"""

import jax
import jax.numpy as jnp

from experiments.build import checkpoint_path
from experiments.pocket import benchmarks
from experiments.tasks import TASKS
from rwkv7_jax import LanguageModel
from state_tuning import Method, standard, surgery, tune

lm = LanguageModel.load(checkpoint_path("pocket/student"))
layers, heads, values, keys = lm.zero_state().wkv.shape


def init():
    """What is trained: any float32 tree whose leaves have the layers first."""
    return {"strength": jnp.ones((layers, heads)), "direction": jnp.zeros((layers, values, keys))}


def full(tree):
    """The state that a tree stands for, for files and generation."""
    wkv = jnp.einsum("lh,lvk->lhvk", tree["strength"], tree["direction"])
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), lm.zero_state())._replace(wkv=wkv)


shared = Method(init, lambda tree, batch_size: surgery.broadcast(full(tree), batch_size), full)

train = [TASKS["arc"].to_example(record) for record in benchmarks.load("arc", "train")]
for name, method in (("standard", standard(lm)), ("shared", shared)):
    result = tune(lm, train, method, steps=60, validation=train[:50])
    print(f"{name:<9} {surgery.size(method.init()):>6} numbers, {result}")
