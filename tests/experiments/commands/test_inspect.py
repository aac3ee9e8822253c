"""`rwkv7 inspect`, and `rwkv7 convert`, of whatever a user names."""

import jax
import numpy as np
import pytest

from experiments import cli
from experiments.build import EMBEDDED
from rwkv7_jax import LanguageModel, RWKV7Config, zero_state
from rwkv7_jax.checkpoint import export_state, load, save_state


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A state in our own format and in two of other tools."""
    folder = tmp_path_factory.mktemp("states")
    state = jax.tree.map(np.asarray, zero_state(RWKV7Config(256, 2, 128), None))
    save_state(folder / "own.safetensors", state, metadata={"method": "standard", "task": "arc"})
    export_state(folder / "other.pth", state, layout="rwkv-runner")
    export_state(folder / "other.st", state, layout="web-rwkv")
    return folder


@pytest.mark.parametrize("name", ["own.safetensors", "other.pth", "other.st"])
def test_a_state_file_is_described(files, name, capsys):
    assert cli.main(["inspect", str(files / name)]) == 0
    out, error = capsys.readouterr()
    assert not error
    assert "a state, not a model" in out
    assert "2 of 2 x 64 x 64" in out
    assert f"rwkv7 state info {files / name}" in out
    assert ("arc" in out) is (name == "own.safetensors")


def test_names_of_embedded_models_are_taken(tmp_path, capsys):
    assert cli.main(["inspect", "pocket/student"]) == 0
    assert "4 layers" in capsys.readouterr().out
    assert cli.main(["convert", "pocket/student", str(tmp_path / "s.pth")]) == 0
    assert load(tmp_path / "s.pth").config.n_layer == 4
    assert cli.main(["inspect", "pocket/studnet"]) == 2
    assert "did you mean pocket/student?" in capsys.readouterr().err


def test_convert_writes_quantised_weights_that_load_by_themselves(tmp_path, capsys):
    target = tmp_path / "small.safetensors"
    assert cli.main(["convert", "pocket/student", str(target), "--quantize", "int8"]) == 0
    small, exact = LanguageModel.load(target, tokenizer="byte"), LanguageModel.load(EMBEDDED["pocket/student"])
    assert small.identity == f"{exact.weights_hash} int8"
    assert target.stat().st_size < 0.7 * EMBEDDED["pocket/student"].stat().st_size
    again = LanguageModel.load(EMBEDDED["pocket/student"], quantise="int8")
    jax.tree.map(np.testing.assert_array_equal, small.params, again.params)
    capsys.readouterr()
    assert cli.main(["convert", "pocket/student", str(tmp_path / "x.bin"), "--quantize", "int4"]) == 2
    assert "--quantize writes .safetensors alone" in capsys.readouterr().err
    assert not (tmp_path / "x.bin").exists()


def test_convert_writes_a_folder_that_is_the_same_model(tmp_path, capsys):
    folder = tmp_path / "my-rwkv7.1"
    assert cli.main(["convert", "pocket/student", f"{folder}/"]) == 0
    one, other = LanguageModel.load(folder), LanguageModel.load(EMBEDDED["pocket/student"])
    assert one.weights_hash == other.weights_hash
    assert one.tokenizer.eos_id == other.tokenizer.eos_id
    assert one.encode("Mira has 3 stones.") == other.encode("Mira has 3 stones.")
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert one.weights_hash in card
    assert "my-rwkv7.1" in card
    assert cli.main(["convert", str(folder), str(tmp_path / "back.pth")]) == 0
    assert load(tmp_path / "back.pth").report.weights_hash == one.weights_hash
    assert cli.main(["convert", "pocket/student", str(tmp_path / "wide"), "--dtype", "float32"]) == 0
    assert load(tmp_path / "wide").report.dtypes == ("float32",)
    capsys.readouterr()
    for words, error in (
        ([f"{folder}/"], "exists and is not an empty folder"),
        ([f"{tmp_path / 'q'}/", "--quantize", "int8"], "--quantize writes .safetensors alone"),
        ([str(tmp_path / "model.gguf")], "a slash at the end makes a folder"),
    ):
        assert cli.main(["convert", "pocket/student", *words]) == 2
        told = capsys.readouterr().err
        assert error in told
        assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "my-rwkv7.1", "wide"]
