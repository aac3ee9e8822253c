"""Real files against numbers that other implementations computed from them."""

import jax
import jax.numpy as jnp
import numpy as np

from rwkv7_jax import RWKV7, zero_state
from rwkv7_jax.checkpoint import load

TINY = "checkpoints/rwkv_cpp_tiny7/tiny-rwkv-7v0-834K"


def relative(x, wanted) -> float:
    """Largest error against the largest magnitude of the wanted numbers."""
    return float(np.max(np.abs(np.asarray(x, np.float64) - wanted)) / np.max(np.abs(wanted)))


def run(checkpoint, tokens):
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    model = RWKV7(checkpoint.config)
    tokens = jnp.asarray(np.asarray(tokens)[None], jnp.int32)
    return jax.jit(model.apply)({"params": params}, tokens, zero_state(checkpoint.config, 1))


def test_float64_model_on_the_same_random_pth(shared_data):
    """Logits, final wkv states (value, key) and shifts of an independent float64 model."""
    golden = np.load(shared_data / "goldens" / "rand_L3_C128_V512_f64.npz")
    logits, state = run(load(shared_data / "goldens" / "rand_L3_C128_V512.pth"), golden["tokens"])
    seen = {
        "logits": relative(logits[0], golden["logits"]),
        "wkv": relative(state.wkv[:, 0], golden["final_S"]),
        "att_shift": relative(state.att_shift[:, 0], golden["final_att_x"]),
        "ffn_shift": relative(state.ffn_shift[:, 0], golden["final_ffn_x"]),
    }
    print("largest relative errors", seen)
    assert max(seen.values()) < 5e-6, seen
    swapped = np.swapaxes(golden["final_S"], -1, -2)
    assert relative(state.wkv[:, 0], swapped) > 0.1


def test_rwkv_cpp_expected_logits(shared_data):
    """The gate of the MANIFEST: at most 2e-6 in float32 after the bytes `"in`."""
    wanted = np.fromfile(shared_data / "checkpoints/rwkv_cpp_tiny7/expected-logits-7v0-834K.bin", np.float32)
    logits, _ = run(load(shared_data / f"{TINY}-FP32.bin"), list(b'"in'))
    error = float(np.max(np.abs(np.asarray(logits[0, -1]) - wanted)))
    print("largest absolute error", error)
    assert error <= 2e-6


def test_half_precision_file_is_close(shared_data):
    """Rounding the matrices to float16 (relative 2^-11) moves the logits by no more than about as much."""
    exact, _ = run(load(shared_data / f"{TINY}-FP32.bin"), list(b'"in'))
    half, _ = run(load(shared_data / f"{TINY}-FP16.bin"), list(b'"in'))
    assert 0 < relative(half, np.asarray(exact, np.float64)) < 2**-9
