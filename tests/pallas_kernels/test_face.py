"""What a user sees of the package: its names, what importing it loads, and where commands went."""

import subprocess
import sys

import pytest

import pallas_kernels
from pallas_kernels.moved import MOVED, refuse_moved


def run(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def test_names():
    assert set(pallas_kernels.__all__) <= set(dir(pallas_kernels))
    own = {"gated_delta_rule", "gpu", "reference", "tpu", "wkv7", "wkv7_sequence_parallel", "wkv7_step"}
    assert dir(pallas_kernels) == sorted(["IMPLEMENTATIONS", "__version__", *own])
    assert all(hasattr(pallas_kernels, name) for name in dir(pallas_kernels))


def test_optional_packages_are_not_imported():
    code = "import sys, pallas_kernels; print({'triton', 'torch', 'jax_triton'} & set(sys.modules))"
    assert run("-c", code).stdout == "set()\n"


def test_a_module_that_moved_names_its_successor_in_one_line():
    done = run("-m", "pallas_kernels.gpu_check", "--json", "x.json")
    message = "error: python -m pallas_kernels.gpu_check is now: python -m pallas_kernels.bench.gpu\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-c"], ["python", "-c", "import pallas_kernels", "-m", "pallas_kernels.gpu_check"]),
        (["-m"], ["python", "-m", "pallas_kernels.bench"]),
        (["/usr/bin/pytest", "-m"], ["python", "-m", "pytest"]),
        (["-m"], ["python", "-m"]),
    ],
)
def test_all_else_passes(argv, words):
    refuse_moved(argv, words)


@pytest.mark.parametrize("name", MOVED.values())
def test_successors_are_there(name):
    assert run("-m", name, "--help").returncode == 0
