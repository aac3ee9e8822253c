"""`rwkv7 doctor`: every planted fault of machine, checkpoint, state and data is named in one line with what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import cli
from experiments.build import ASSETS, EMBEDDED
from experiments.doctor import machine
from experiments.doctor.machine import GIB, Accelerator, Device
from rwkv7_jax import RWKV7Config, State, export_state, load_checkpoint, save_state, zero_state
from rwkv7_jax.checkpoint import params_to_flat, safetensors

SOUND = {
    "devices": ((Device("cpu", "cpu", None),), None),
    "accelerators": (),
    "memory": (8 * GIB, 16 * GIB),
    "cores": (8, 8),
    "load": 0.0,
    "open_files": 4096,
    "few_rows": True,
    "free_disk": 50 * GIB,
    "unwritable": None,
    "flags": {"disable_jit": False, "debug_nans": False, "enable_x64": False},
}
GPU, TPU = Accelerator("gpu", "NVIDIA H200", 0, 140 * GIB), Accelerator("tpu", "accel0")
Plant = Callable[[Path, pytest.MonkeyPatch], list[str]]
"""(a folder, patches) -> further words of the command."""


def probe(name: str, value: object) -> Plant:
    """The machine's probe of this name says something else."""

    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        patch.setattr(machine, name, lambda *args: value)
        return []

    return plant


def variable(name: str, value: str, accelerators: tuple = (), devices: tuple = SOUND["devices"]) -> Plant:
    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        patch.setenv(name, value)
        patch.setattr(machine, "accelerators", lambda: accelerators)
        patch.setattr(machine, "devices", lambda: devices)
        return []

    return plant


def only(part: str, answer: object, name: str) -> Plant:
    """A probe of folders says something else of one of them."""

    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        if part == "compile cache":
            patch.setattr(machine, "cache_folder", lambda: str(folder / "cache"))
        places = {"compile cache": "cache", "temporary folder": "tmp", "working folder": "here"}
        for one in places.values():
            (folder / one).mkdir()
        patch.chdir(folder / "here")
        patch.setattr(machine.tempfile, "gettempdir", lambda: str(folder / "tmp"))
        sound = SOUND[name]
        patch.setattr(machine, name, lambda path: answer if path.name == places[part] else sound)
        return []

    return plant


def package(name: str, version: str | None, least: str) -> Plant:
    return probe("packages", {"jax": ("0.10.2", "0.10.2"), "jaxlib": ("0.10.2", "0.10.2"), name: (version, least)})


MACHINE = [
    (probe("memory", (GIB // 4, 16 * GIB)), "0.25 of 16.0 GiB of memory are free; end other programs"),
    (probe("open_files", 64), "a process may open 64 files; allow more: ulimit -n"),
    (probe("cores", (1, 8)), "this process may use 1 of 8 cores"),
    (probe("load", 99.0), "99 programs want 8 cores"),
    (probe("cache_folder", None), "compiled programs are not kept"),
    (probe("accelerators", (GPU,)), "there is a GPU (NVIDIA H200) and JAX uses the CPU alone; install JAX for it: pip"),
    (probe("accelerators", (TPU,)), "there is a TPU (accel0) and JAX uses the CPU alone; install JAX for it: pip"),
    (probe("accelerators", (GPU._replace(used=100 * GIB),)), "another program holds 100 of 140 GiB of gpu 0"),
    (variable("JAX_PLATFORMS", "cpu", (GPU,)), "JAX_PLATFORMS=cpu hides it: unset it"),
    (probe("devices", ((), "no backend")), "JAX has no device (no backend); reinstall jax and jaxlib"),
    (variable("JAX_PLATFORMS", "tpu", (), ((), "x")), "JAX_PLATFORMS=tpu asks for what is not there; unset it"),
    (variable("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false"), "one core alone computes; take it out"),
    (probe("few_rows", False), "up to twice the speed with llvmlite: pip install"),
    (probe("flags", {"disable_jit": True}), "JAX_DISABLE_JIT is set"),
    (probe("flags", {"debug_nans": True}), "JAX_DEBUG_NANS is set"),
    (probe("flags", {"enable_x64": True}), "JAX_ENABLE_X64 is set"),
    (package("flax", "0.9.1", "0.12.8"), "flax 0.9.1 is older than 0.12.8; update it: pip install -U 'flax>=0.12.8'"),
    (package("optax", None, "0.2.8"), "the package optax is missing; install it: pip install 'optax>=0.2.8'"),
    (package("jaxlib", "0.9.0", "0.10.2"), "jaxlib 0.9.0 beside jax 0.10.2; install the same version"),
    (only("working folder", 2**20, "free_disk"), "1 MiB are free in the working folder"),
    (only("compile cache", 2**20, "free_disk"), "1 MiB are free in the compile cache"),
    (only("working folder", "Read-only file system", "unwritable"), "cannot be written to (Read-only file system)"),
    (only("compile cache", "Permission denied", "unwritable"), "set JAX_COMPILATION_CACHE_DIR to a folder of yours"),
    (only("temporary folder", "No space left on device", "unwritable"), "set TMPDIR to a folder of yours"),
]


def student() -> dict[str, np.ndarray]:
    return {name: np.array(x) for name, x in params_to_flat(load_checkpoint(EMBEDDED["pocket/student"]).params).items()}


def model(change: Callable[[dict[str, np.ndarray]], object], *words: str, tokenizer: bool = True) -> Plant:
    """The student's weights, changed."""

    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        flat = student()
        change(flat)
        safetensors.write(folder / "m.safetensors", flat, {})
        if tokenizer:
            shutil.copy(ASSETS / "tokenizer.json", folder)
        return ["--model.checkpoint", str(folder / "m.safetensors"), *words]

    return plant


def content(
    make: Callable[[bytes], bytes], key: str = "--model.checkpoint", file: Path = EMBEDDED["pocket/student"]
) -> Plant:
    """A file with other bytes."""

    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        (folder / "x.safetensors").write_bytes(make(file.read_bytes()))
        return [key, str(folder / "x.safetensors")]

    return plant


def entry(name: str, value: float) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda flat: flat[name].reshape(-1).__setitem__(3, value)


def small_memory(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr(machine, "memory", lambda: (2**20, 16 * GIB))
    return ["--model.checkpoint", "pocket/student"]


HEAD, LAYER = "head.weight", "blocks.1.att.key.weight"
CHECKPOINT = [
    (lambda folder, patch: ["--model.checkpoint", str(folder / "none.pth")], "model.checkpoint: no file "),
    (content(lambda data: b""), "is empty; download it again"),
    (content(lambda data: data[:5000]), "x.safetensors: "),
    (content(lambda data: b"<!DOCTYPE html><html>"), "is a web page and not a checkpoint"),
    (content(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "is a pointer of Git LFS"),
    (content(lambda data: b'{"architectures": []}'), "is JSON text and not a checkpoint"),
    (model(entry(LAYER, np.nan)), "NaN or infinite numbers in blocks.1.att.key.weight"),
    (model(entry(HEAD, np.inf)), "NaN or infinite numbers in head.weight"),
    (model(lambda flat: flat.pop(LAYER)), "blocks.1.att.key.weight"),
    (model(lambda flat: flat.update({LAYER: flat[LAYER][:, :5]})), "blocks.1.att.key.weight"),
    (model(lambda flat: flat.update({HEAD: 0 * flat[HEAD]})), "no better than a guess; is it trained"),
    (model(lambda flat: flat.update({"emb.weight": flat["emb.weight"][::-1].copy()})), "no better than a guess"),
    (model(lambda flat: None, "--model.tokenizer", "world"), "tokenizer 'world' uses ids up to"),
    (model(lambda flat: None, tokenizer=False), 'tokenizer "auto" knows vocabularies of 256'),
    (small_memory, "pocket/student needs 0.0 GiB in float32"),
]


def a_state(scale: float = 0.1) -> State:
    config = load_checkpoint(EMBEDDED["pocket/student"]).config
    start, rng = zero_state(config, None), np.random.default_rng(0)
    wkv = scale * rng.standard_normal(start.wkv.shape).astype(np.float32)
    return jax.tree.map(np.asarray, start)._replace(wkv=wkv)


def state(change: Callable[[State], State] = lambda found: found, base: str = "", *words: str) -> Plant:
    """A state file beside the student."""

    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        hash = load_checkpoint(EMBEDDED["pocket/student"]).report.weights_hash
        save_state(folder / "s.safetensors", change(a_state()), metadata={"base_model_hash": base or hash})
        return ["--model.checkpoint", "pocket/student", "--state", str(folder / "s.safetensors"), *words]

    return plant


def foreign(change: Callable[[np.ndarray], np.ndarray], *words: str) -> Plant:
    """Another tool's state file, which nothing checks when it is written."""

    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        rows = {f"blocks.{i}.att.time_state": change(np.array(row)) for i, row in enumerate(a_state().wkv)}
        safetensors.write(folder / "f.safetensors", rows, {})
        return ["--model.checkpoint", "pocket/student", "--state", str(folder / "f.safetensors"), *words]

    return plant


def damaged_state(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    words = state()(folder, patch)
    data = bytearray(Path(words[-1]).read_bytes())
    data[-3] ^= 64
    Path(words[-1]).write_bytes(data)
    return words


def other_model(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    export_state(folder / "o.pth", zero_state(RWKV7Config(256, 2, 128), None), layout="rwkv-runner")
    words = ["--state", str(folder / "o.pth"), "--state_layout", "rwkv-runner"]
    return ["--model.checkpoint", "pocket/student", *words]


LAYOUT = ("--state_layout", "value_key")
STATE = [
    (lambda folder, patch: ["--state", str(folder / "none.st")], "no such state file"),
    (content(lambda data: data[:900], "--state"), "x.safetensors: "),
    (content(lambda data: data, "--state"), "is this a model checkpoint?"),
    (damaged_state, "does not match the hash stored with it: damaged"),
    (state(base="f" * 64), "was tuned on the base model ffffffffffffffff, the checkpoint is"),
    (other_model, "layers with"),
    (state(lambda found: found._replace(wkv=0 * found.wkv)), "is all zero and changes nothing"),
    (state(lambda found: found._replace(wkv=3e5 * found.wkv)), "as large as the model's own state after a text"),
    (state(lambda found: found._replace(wkv=1e8 * found.wkv)), "which float16 cannot hold"),
    (
        state(lambda found: found._replace(wkv=found.wkv * np.array([1, 0, 1, 1])[:, None, None, None])),
        "is zero in layer 1",
    ),
    (foreign(lambda row: row), "layout"),
    (foreign(lambda row: row, "--state_layout", "vakue_key"), "layout"),
    (foreign(lambda row: np.where(row > 0.2, np.nan, row), *LAYOUT), "the state has values that are not finite"),
    (foreign(lambda row: row[:, :5], *LAYOUT), "expected [H, N, N]"),
    (foreign(lambda row: row, *LAYOUT), "does not say its base model"),
]


def records(text: str) -> Plant:
    def plant(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        (folder / "d.jsonl").write_text(text, encoding="utf-8")
        return ["--data", str(folder / "d.jsonl")]

    return plant


DATA = [
    (lambda folder, patch: ["--data", str(folder / "none.jsonl")], "data: no file"),
    (records(""), "is empty; write one JSON object on each line"),
    (records('{"text": "a"}\n' * 4), "1 different sound records, too few"),
    (records('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n{"messages": []}\n'), "d.jsonl:4: 'messages': a list of"),
    (records('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n{"text": 3}\n'), "d.jsonl:4: 'text' must be a string"),
]


@pytest.fixture
def sound(monkeypatch, tmp_path):
    """A machine without fault."""
    for name, value in SOUND.items():
        monkeypatch.setattr(machine, name, lambda *args, value=value: value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(machine, "cache_folder", lambda: str(tmp_path / "compiled"))
    return monkeypatch


PLANTED = [*MACHINE, *CHECKPOINT, *STATE, *DATA]
NOTES = ("99 programs", "are not kept", "with llvmlite", "DEBUG_NANS", "is zero in layer", "does not say its base")


@pytest.mark.parametrize(("plant", "said"), PLANTED, ids=[said for _, said in PLANTED])
def test_a_planted_fault_is_named_in_one_line(plant, said, sound, tmp_path, capsys):
    folder = tmp_path / "planted"
    folder.mkdir()
    words = plant(folder, sound)
    status = cli.main(["doctor", *words])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith(("FAULT ", "note "))]
    named = [line for line in told if said in line]
    assert len(named) == 1, lines
    if said.startswith(NOTES) or any(note in said for note in NOTES):
        assert (named[0][:4], status, lines[-1]) == ("note", 0, "RESULT: PASS")
    else:
        faults = sum(line.startswith("FAULT ") for line in told)
        assert (named[0][:5], status, lines[-1]) == ("FAULT", 1, f"RESULT: FAIL ({faults})")


def test_there_are_at_least_40_planted_faults():
    assert len(PLANTED) >= 40


def test_what_is_sound_passes(sound, tmp_path, capsys):
    words = state()(tmp_path, sound)
    (tmp_path / "d.jsonl").write_text("".join(f'{{"prompt": "{i}+1=", "completion": " {i + 1}"}}\n' for i in range(4)))
    words += ["--data", str(tmp_path / "d.jsonl"), "--json", str(tmp_path / "o.json")]
    assert cli.main(["doctor", *words]) == 0
    out = capsys.readouterr().out
    assert out.endswith("RESULT: PASS\n")
    assert "FAULT" not in out
    assert "note" not in out
    body = json.loads((tmp_path / "o.json").read_text())
    assert body["result"] == "RESULT: PASS"
    assert body["findings"] == []
    assert body["checkpoint"]["loss"] < 0.75 * body["checkpoint"]["loss_of_guessing"]
    assert len(body["state"]["layers"]["wkv_norm"]) == 4
    assert body["data"]["records"] == 4
    assert body["machine"]["cores"] == [8, 8]


def test_this_machine_is_described(capsys):
    cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("machine: Python 3.")
    assert f"jax {jax.__version__}" in lines[0]
    assert "x cpu" in lines[1]
    assert lines[-1].startswith("RESULT: ")


def test_probes_say_what_the_system_says(tmp_path):
    assert machine.unwritable(tmp_path / "later" / "deeper") is None
    assert machine.unwritable(Path("/proc/1")) is not None
    assert machine.free_disk(tmp_path / "later") == pytest.approx(shutil.disk_usage(tmp_path).free, abs=2**30)
    free, total = machine.memory()
    assert 0 < free <= total
    assert machine.packages()["jax"][0] == jax.__version__
    found, error = machine.devices()
    assert error is None
    assert len(found) == len(jax.devices())


def test_gpus_are_read_from_nvidia_smi(monkeypatch):
    class Done:
        stdout = "NVIDIA H200, 1000, 143771\nNVIDIA H200, 0, 143771\n"

    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: Done())
    assert [one for one in machine.accelerators() if one.kind == "gpu"] == [
        Accelerator("gpu", "NVIDIA H200", 1000 * 2**20, 143771 * 2**20),
        Accelerator("gpu", "NVIDIA H200", 0, 143771 * 2**20),
    ]


def test_wrong_words_are_one_line(tmp_path, capsys):
    assert cli.main(["doctor", "--modle.checkpoint", "x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main(["doctor", "--json", str(tmp_path / "no" / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: json: no folder")
