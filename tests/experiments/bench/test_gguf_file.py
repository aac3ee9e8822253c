"""The file for llama.cpp: every weight is in it once, in its layout; llama.cpp, where it is installed, agrees."""

from pathlib import Path

import numpy as np
import pytest

from experiments.bench import gguf_file, inputs, ours, weights
from experiments.bench import model as bench
from rwkv7_jax.checkpoint import pth


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "random.pth"
    weights.make_checkpoint(path, "tiny")
    return path


def test_every_weight_is_there_once_in_llama_cpps_layout(checkpoint: Path):
    flat = pth.read(checkpoint)
    found = list(gguf_file.tensors(flat, 2))
    named = dict(found)
    assert len(named) == len(found)
    copies = sum(named[f"blk.0.time_mix_a{i}.weight"].size for i in range(3))
    assert sum(tensor.size for tensor in named.values()) == sum(tensor.size for tensor in flat.values()) + copies
    assert np.array_equal(named["blk.1.time_mix_w1.weight"], np.float32(flat["blocks.1.att.w1"]).T)
    mixed = named["blk.1.time_mix_lerp_fused.weight"]
    assert mixed.shape == (6, 1, 1, 128)
    assert np.array_equal(mixed[5].ravel(), np.float32(flat["blocks.1.att.x_g"]).ravel())
    assert {name for name in named if not name.startswith("blk.")} == {
        "token_embd.weight", "token_embd_norm.weight", "token_embd_norm.bias",
        "output_norm.weight", "output_norm.bias", "output.weight",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", gguf_file.TYPES)
def test_llama_cpp_computes_our_logits(dtype: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from experiments.bench import llama

    monkeypatch.setattr(llama, "decoded", lambda kind, rows: 1)
    weights.make_gguf(checkpoint, "tiny", dtype)
    timed = llama.decoding(dtype, 2, gguf_file.beside(checkpoint, dtype), "tiny")
    timed.calls[inputs.STEP]()
    wanted = ours.decoding("float32", 2, checkpoint).result
    assert bench.difference(timed.result, wanted, bench.TOLERANCE[dtype]) == ""
