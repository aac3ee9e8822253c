"""Processes and rows: when a cluster is looked for, and what each process draws."""

import jax
import numpy as np
import pytest

from experiments.config.overrides import UsageError
from experiments.config.schema import MeshConfig, PretrainConfig
from experiments.data import packing
from experiments.training import distributed
from rwkv7_jax import processes, sharding


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host0"}, True),
    ],
)
def test_a_cluster_is_told_by_its_environment(environment, several, monkeypatch):
    monkeypatch.setattr(distributed, "TPU_DEVICES", ())
    assert distributed.on_cluster(environment) is several


def test_a_tpu_host_is_told_by_its_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "TPU_DEVICES", (str(tmp_path),))
    assert distributed.on_cluster({})
    assert not distributed.on_cluster({"JAX_PLATFORMS": "cpu"})


def test_half_an_address_is_refused():
    with pytest.raises(UsageError, match="belong together"):
        distributed.start(MeshConfig(coordinator="localhost:1"))


def test_one_device_needs_no_mesh():
    with distributed.session(MeshConfig()) as mesh:
        assert mesh is None
    assert distributed.describe(None) == "1 device"


def test_a_batch_comes_together_from_the_rows_of_a_process():
    mesh = sharding.make_mesh(2, 2, 2)
    spread = distributed.Spread(mesh, 8)
    assert spread.rows == list(range(8))
    batch = {"tokens": np.arange(24).reshape(8, 3)}
    placed = spread.put(batch)["tokens"]
    np.testing.assert_array_equal(placed, batch["tokens"])
    assert placed.addressable_shards[0].data.shape == (2, 3)
    assert processes.gather({"a": 1}) == [{"a": 1}]


def test_rows_do_not_depend_on_who_draws_them():
    config = PretrainConfig(batch_size=4, length=64, streams=2)
    whole, part = packing.Batches(config, 0), packing.Batches(config, 0, [3, 2])
    assert list(part.streams) == [1]
    for _ in range(3):
        both = next(whole), next(part)
        np.testing.assert_array_equal(both[0]["tokens"][[3, 2]], both[1]["tokens"])
    again = packing.Batches(config, 0, [2])
    again.set_state(whole.get_state())
    np.testing.assert_array_equal(next(again)["tokens"][0], next(whole)["tokens"][2])
    assert len({row.tobytes() for row in next(whole)["tokens"]}) == 4


def test_every_process_reads_only_its_slices():
    seen = []

    class Watched:
        shape, dtype = (8, 4), np.dtype(np.float32)

        def __getitem__(self, index):
            seen.append(index)
            return np.zeros((8, 4), np.float32)[index]

    mesh = sharding.make_mesh(1, 4, 2)
    placed = sharding.place(Watched(), jax.NamedSharding(mesh, jax.P("tensor", "fsdp")), "bfloat16")
    assert placed.dtype == "bfloat16"
    assert {tuple((s.start, s.stop) for s in index) for index in seen} == {
        ((row, row + 4), (column, column + 1)) for row in (0, 4) for column in range(4)
    }
