"""The guard names the layer of a weight gradient, and the batch of a skipped update."""

import jax.numpy as jnp
import numpy as np
import pytest

from state_tuning.core import non_finite

NAN = jnp.nan


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_flags_of_weights_by_layer(stacked, layer):
    values = [NAN if layer == index else 1.0 for index in range(3)]
    first = {"att": {"w": jnp.full((2, 3), values[0])}, "ln1": {"bias": jnp.ones(3)}}
    rest = {"att": {"w": jnp.stack([jnp.full((2, 3), v) for v in values[1:]])}, "ln1": {"bias": jnp.ones((2, 3))}}
    later = {f"block_{i + 1}": {"att": {"w": rest["att"]["w"][i]}} for i in range(2)}
    tree = {"emb": {"weight": jnp.full(2, NAN)}, "block_0": first, **({"blocks": rest} if stacked else later)}
    np.testing.assert_array_equal(non_finite.weight_flags(tree), [index != layer for index in range(3)])


def test_step_batch_and_layer_are_named():
    bad = {
        "applied": jnp.array(False),
        "loss": jnp.array(1.0),
        "state_finite": jnp.ones((3, 3), bool),
        "grad_finite": jnp.array([False, False, True]),
    }
    line = "step 7, batch 9: update skipped, first non-finite value in the gradient of layer 1"
    assert non_finite.skip_message(bad, 7, 9) == line
    assert non_finite.skip_message({"applied": jnp.array(True)}, 7) is None
    assert non_finite.skip_message({"applied": jnp.array(False)}, 7).startswith("step 7: update skipped, ")
