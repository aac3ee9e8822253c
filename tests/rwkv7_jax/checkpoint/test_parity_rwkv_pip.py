"""The same logits as PyPI `rwkv` on a random .pth in the released layout, in one pass and token by token."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.weights import make_checkpoint
from rwkv7_jax import RWKV7, checkpoint, zero_state

TOKENS = [3, 141, 59, 26, 5, 358, 97, 93, 238, 46, 264]
PEER = """
import json, os, sys
os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
from rwkv.model import RWKV
model, tokens = RWKV(model=sys.argv[1], strategy="cpu fp32"), json.loads(sys.argv[2])
whole, state = model.forward(tokens, None, full_output=True)
steps, now = [], None
for token in tokens:
    logits, now = model.forward([token], now)
    steps.append(logits.tolist())
print(json.dumps({"whole": whole.tolist(), "steps": steps, "state": [s.tolist() for s in state]}))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("peer") / "random.pth"
    make_checkpoint(path, "tiny")
    return path


@pytest.fixture(scope="module")
def peer(path: pathlib.Path) -> dict:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: no comparison with PyPI rwkv")
    command = [sys.executable, "-c", PEER, str(path.with_suffix("")), json.dumps(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_logits_and_state_equal_those_of_rwkv_pip(path: pathlib.Path, peer: dict):
    loaded = checkpoint.load(path)
    model = RWKV7(loaded.config)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)
    apply = jax.jit(lambda tokens, state: model.apply({"params": params}, tokens, state))
    whole, state = apply(jnp.asarray([TOKENS]), zero_state(loaded.config, 1))
    scale = np.abs(peer["whole"]).max()
    np.testing.assert_allclose(whole[0] / scale, np.asarray(peer["whole"]) / scale, atol=2e-6)
    now = zero_state(loaded.config, 1)
    for token, wanted in zip(TOKENS, peer["steps"], strict=True):
        logits, now = apply(jnp.asarray([[token]]), now)
        np.testing.assert_allclose(logits[0, 0] / scale, np.asarray(wanted) / scale, atol=2e-6)
    theirs = checkpoint.from_rwkv_list([np.asarray(part, np.float32) for part in peer["state"]])
    np.testing.assert_allclose(theirs.wkv, state.wkv[:, 0], rtol=1e-5, atol=1e-5)
