"""FLOPs from dimensions agree with what the compiler counts; MFU only where the peak is known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, flops, zero_state

SMALL = RWKV7Config(
    vocab_size=512, n_layer=2, n_embd=128, head_size=32, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=16,
    scan_layers=False, wkv_implementation="scan",
)  # fmt: skip


def test_forward_agrees_with_the_compiler():
    """Of one token, whose scan the compiler counts as it is; it also counts work of order D, here some per cent."""
    model, tokens = RWKV7(SMALL), jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, tokens, zero_state(SMALL, 1)))["params"]
    run = jax.jit(lambda params: model.apply({"params": params}, tokens, zero_state(SMALL, 1)))
    counted = run.lower(params).cost_analysis()["flops"]
    assert flops.forward(SMALL) == pytest.approx(counted, rel=0.05)


def test_by_hand():
    weights = 2 * (2 * (4 * 128**2 + 2 * 128 * 512) + 2 * 128 * (2 * 32 + 8) + 128 * 512)
    recurrence = 2 * 9 * 128 * 32
    assert flops.forward(SMALL) == weights + recurrence
    assert flops.training(SMALL) == 3 * (weights + recurrence)
    assert flops.tuning(SMALL) == 2 * weights + 3 * recurrence


def device(kind):
    return SimpleNamespace(device_kind=kind)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("TPU v4", 275e12),
     ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
     ("NVIDIA A100-SXM4-80GB", 312e12), ("cpu", None), ("NVIDIA L400", None), ("TPU v50", None)],
)  # fmt: skip
def test_peaks(kind, peak):
    assert flops.peak(device(kind)) == peak


def test_utilisation_counts_all_devices():
    assert flops.mfu(1e6, 10**9, [device("TPU v4")] * 2) == pytest.approx(1e15 / 550e12)
    assert flops.mfu(1e6, 10**9, [device("TPU v4"), device("cpu")]) is None
    assert flops.mfu(1e6, 10**9, jax.devices()) is None
