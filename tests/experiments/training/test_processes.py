"""Several real processes on loopback: the series of one process, and the same after one was killed.

Each process compiles for itself, so only two run by default; `RWKV7_ALL_MESHES=1` runs four, and the kill, too.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

CONFIG = """
from experiments.config.schema import PretrainConfig

config = PretrainConfig(
    name="tiny", n_layer=2, n_embd=32, head_size=4, lora=8, gate_lora=8, steps=12, batch_size=8, length=64, warmup=1,
    streams=4, validate_every=6, log_every=1, checkpoint_every=3, save_dtype="float32", compilation_cache=False,
)
"""
ALL = pytest.mark.skipif(not os.environ.get("RWKV7_ALL_MESHES"), reason="slow: set RWKV7_ALL_MESHES=1")
ROOT = pathlib.Path(__file__).parents[3]


def start(config: pathlib.Path, folder: pathlib.Path, count: int, *more: str) -> list[subprocess.Popen]:
    """The command in `count` processes of one device each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [
        sys.executable,
        "-m",
        "experiments.cli",
        "pretrain",
        "--config",
        str(config),
        "--output",
        str(folder),
        *more,
    ]
    joined = ["--mesh.coordinator", f"127.0.0.1:{port}", "--mesh.processes", str(count), "--mesh.process_id"]
    own = [command if count == 1 else [*command, *joined, str(number)] for number in range(count)]
    pipe = subprocess.PIPE
    return [subprocess.Popen(c, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) for c in own]


def finish(processes: list[subprocess.Popen]) -> None:
    for number, process in enumerate(processes):
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, f"process {number}: {out[-500:]} {error[-3000:]}"


def losses(folder: pathlib.Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [value for row in rows for value in (row["loss"], row.get("validation_loss")) if value is not None]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    finish(start(config, folder, 1))
    return losses(folder)


@pytest.mark.parametrize(
    ("count", "mesh"), [(2, ("--mesh.fsdp", "2")), pytest.param(4, ("--mesh.tensor", "2"), marks=ALL)]
)
def test_processes_give_the_series_of_one(count, mesh, config, alone, tmp_path):
    finish(start(config, tmp_path, count, *mesh))
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)
    assert (tmp_path / "model.safetensors").is_file()


@ALL
def test_killed_and_started_again_it_goes_on(config, alone, tmp_path):
    processes = start(config, tmp_path, 2)
    rows = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (rows.is_file() and rows.read_text().count("\n") >= 5):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait()
    processes[0].send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    finish(start(config, tmp_path, 2))
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)
