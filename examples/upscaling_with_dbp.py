"""Kernel upscaling and decorrelated backpropagation on a model of your own: nothing here is RWKV.

The model is linear attention that reads an initial state, y_t = S_0 q_t. Upscaling adds S_ext psi(q_t), with Gaussian
features psi of the query; `decorrelated` wraps any optax optimiser and needs E[x x^T] of what each matrix reads.
"""

import jax
import jax.numpy as jnp
import optax

from rwkv7_jax.wkv_state import gaussian
from state_tuning import decorrelated
from state_tuning.upscale import feature_map

KEYS = jax.random.split(jax.random.key(0), 4)
WIDTH, FEATURES, TOKENS = 8, 24, 1024

# Queries whose entries go together, and outputs that no matrix makes out of them.
mixing = jax.random.normal(KEYS[0], (WIDTH, WIDTH)) * jnp.linspace(0.1, 1.5, WIDTH)
queries = jax.random.normal(KEYS[1], (TOKENS, WIDTH)) @ mixing
wanted = jnp.tanh(queries @ jax.random.normal(KEYS[2], (WIDTH, WIDTH)))

# Supports by k-means and widths by the median heuristic, from the model's own queries.
kernel = feature_map.fit(queries[None], FEATURES, KEYS[3], bandwidth=0.5)
lifted = gaussian(queries[None, :, None], kernel.supports[:, None], kernel.gamma[:, None])[0, :, 0]

inputs = {"s_0": queries, "s_ext": lifted}
correlations = {name: x.T @ x / len(x) for name, x in inputs.items()}


def loss(state):
    """Mean squared error of the read; matrices that a state does not have read nothing."""
    return jnp.mean(jnp.square(sum(inputs[name] @ matrix.T for name, matrix in state.items()) - wanted))


def tuned(names, optimizer, steps=300):
    """Returns the loss after gradient steps on the named matrices, zero at the start."""
    state = {name: jnp.zeros((WIDTH, inputs[name].shape[1])) for name in names}
    optimizer = optax.with_extra_args_support(optimizer)
    known = {name: correlations[name] for name in names}

    def step(carry, _):
        state, memory = carry
        updates, memory = optimizer.update(jax.grad(loss)(state), memory, state, correlations=known)
        return (optax.apply_updates(state, updates), memory), None

    (state, _), _ = jax.lax.scan(step, (state, optimizer.init(state)), None, length=steps)
    return float(loss(state))


adam = optax.adam(1e-2)
print(f"no state                  {float(loss({})):.4f}")
print(f"S_0, Adam                 {tuned(['s_0'], adam):.4f}")
print(f"S_0, Adam and DBP         {tuned(['s_0'], decorrelated(adam)):.4f}")
print(f"S_0 and S_ext, Adam       {tuned(['s_0', 's_ext'], adam):.4f}")
print(f"S_0 and S_ext, with DBP   {tuned(['s_0', 's_ext'], decorrelated(adam)):.4f}")
