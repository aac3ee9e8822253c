import json
import pathlib
import subprocess
import sys
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments import cli
from experiments.commands.work import checkpoint as work
from rwkv7_jax import RWKV7, RWKV7Config, zero_state
from rwkv7_jax.checkpoint import CheckpointError, detect_format, load, pth, rwkv_cpp, safetensors
from rwkv7_jax.checkpoint.names import expected_shapes
from rwkv7_jax.functional import forward as logits_of


def test_format_is_told_by_content(tmp_path, make_flat, small):
    flat = make_flat(dtype=np.float32)
    pth.write(tmp_path / "a.txt", flat)
    safetensors.write(tmp_path / "b.pth", flat)
    rwkv_cpp.write(tmp_path / "c.safetensors", flat)
    assert [detect_format(tmp_path / n) for n in ("a.txt", "b.pth", "c.safetensors")] == [
        "pth",
        "safetensors",
        "rwkv_cpp",
    ]
    reports = [load(tmp_path / name).report for name in ("a.txt", "b.pth", "c.safetensors")]
    assert len({report.weights_hash for report in reports}) == 1
    for report in reports:
        assert report.config == small
        assert report.weights_hash in str(report)
        assert f"{report.parameter_count:,}" in str(report)
    with pytest.raises(CheckpointError):
        load(tmp_path / "b.pth", format="pth")


def test_wrong_paths_are_one_line(tmp_path, one_line_error):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        load(tmp_path / "none.pth")
    with one_line_error(str(tmp_path), "folder"):
        load(tmp_path)
    (tmp_path / "text.pth").write_text("Call me Ishmael.\nSome years ago")
    with one_line_error("text.pth", "a text file"):
        load(tmp_path / "text.pth")
    (tmp_path / "web.pth").write_text("<!DOCTYPE html>\n<html>")
    with one_line_error("web.pth", "a text file"):
        load(tmp_path / "web.pth")
    (tmp_path / "noise.pth").write_bytes(bytes(range(128, 228)) * 9)
    with one_line_error("noise.pth"):
        load(tmp_path / "noise.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with one_line_error("empty"):
        load(tmp_path / "empty.pth")


def test_an_older_model_is_named(tmp_path, one_line_error):
    names = ("emb.weight", "blocks.0.att.time_maa_x", "blocks.0.att.time_decay", "blocks.0.att.gate.weight")
    pth.write(tmp_path / "six.pth", {name: np.zeros((4, 4), np.float32) for name in names})
    with one_line_error("six.pth", "RWKV-6"):
        load(tmp_path / "six.pth")


@pytest.mark.parametrize(
    ("extra", "version"),
    [
        (("blocks.{}.ffn.s_emb.weight", "blocks.{}.ffn.s0", "blocks.{}.ffn.s1", "blocks.{}.ffn.s2"), "RWKV-7a"),
        (("blocks.{}.ffn.s0",), "RWKV-7a"),
        (("blocks.{}.ffn.s_emb_x.weight",), "RWKV-7a"),
        (("blocks.{}.ffn.s_emb.weight", "blocks.{}.qkv.k1", "blocks.{}.qkv.qq.weight"), "RWKV-7b"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_deep_embed_models_are_named(tmp_path, make_flat, one_line_error, extra, version, prefix):
    flat = make_flat(dtype=np.float32)
    flat |= {name.format(i): np.zeros((4, 4), np.float32) for name in extra for i in range(3)}
    flat = {prefix + name: array for name, array in flat.items()}
    for write, name in ((pth.write, "x.pth"), (safetensors.write, "x.safetensors")):
        write(tmp_path / name, flat)
        with one_line_error(name, version):
            load(tmp_path / name)


def folded(flat):
    """The tensors with the norm of the embedding applied to it, and without that norm."""
    x = flat["emb.weight"].astype(np.float64)
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    rest = {name: array for name, array in flat.items() if ".ln0." not in name}
    emb = normal * flat["blocks.0.ln0.weight"].astype(np.float64) + flat["blocks.0.ln0.bias"].astype(np.float64)
    return rest | {"emb.weight": emb.astype(flat["emb.weight"].dtype)}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_folded_embedding_gives_the_same_logits(tmp_path, make_flat, small, suffix):
    write = pth.write if suffix == "pth" else safetensors.write
    flat = make_flat(dtype=np.float32)
    write(tmp_path / f"plain.{suffix}", flat)
    write(tmp_path / f"folded.{suffix}", folded(flat))
    plain, unfolded = load(tmp_path / f"plain.{suffix}"), load(tmp_path / f"folded.{suffix}")
    assert "no blocks.0.ln0" in str(unfolded.report)
    tokens = jnp.arange(8).reshape(1, 8) % small.vocab_size
    logits = [
        np.asarray(logits_of(RWKV7(small), jax.tree.map(jnp.asarray, c.params), tokens, zero_state(small, 1))[0])
        for c in (plain, unfolded)
    ]
    assert np.abs(logits[0]).max() > 0.1
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-5 * float(np.abs(logits[0]).max()))


def test_config_of_a_folder_says_whether_the_embedding_is_folded(tmp_path, make_flat, one_line_error):
    flat = make_flat(dtype=np.float32)
    safetensors.write(tmp_path / "model.safetensors", folded(flat))
    for fused in (True, None):
        (tmp_path / "config.json").write_text(json.dumps({"embedding_layer_norm_fused": fused}))
        assert "no blocks.0.ln0" in str(load(tmp_path).report)
    (tmp_path / "config.json").write_text(json.dumps({"embedding_layer_norm_fused": False}))
    with one_line_error(str(tmp_path), "blocks.0.ln0"):
        load(tmp_path)
    safetensors.write(tmp_path / "model.safetensors", flat)
    load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"embedding_layer_norm_fused": True}))
    with one_line_error(str(tmp_path), "embedding_layer_norm_fused"):
        load(tmp_path)


@pytest.mark.parametrize("prefix", ["rwkv7.", "model.", ""])
def test_other_names_of_embedding_norm_and_head(tmp_path, make_flat, prefix):
    names = {"emb.weight": "embeddings.weight", "ln_out.weight": "norm.weight", "ln_out.bias": "norm.bias"}
    flat = make_flat()
    safetensors.write(tmp_path / "a.safetensors", flat)
    other = {prefix + names.get(name, name): array for name, array in flat.items() if name != "head.weight"}
    safetensors.write(tmp_path / "b.safetensors", other | {"lm_head.weight": flat["head.weight"]})
    first, second = load(tmp_path / "a.safetensors"), load(tmp_path / "b.safetensors")
    assert first.report.weights_hash == second.report.weights_hash


def test_layers_of_different_dtypes_name_a_command_that_works(tmp_path, make_flat, one_line_error, capsys):
    flat = make_flat()
    flat["blocks.2.ln1.bias"] = flat["blocks.2.ln1.bias"].astype(np.float32)
    safetensors.write(tmp_path / "a.safetensors", flat)
    with one_line_error("blocks.2.ln1.bias", "`rwkv7 convert IN OUT --dtype float32`"):
        load(tmp_path / "a.safetensors")
    line = ["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pth"), "--dtype", "float32"]
    assert cli.main(line) == 0
    capsys.readouterr()
    found = pth.read(tmp_path / "b.pth")
    for name, array in flat.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path, make_flat, value, dtype):
    flat = make_flat(dtype=dtype)
    flat["blocks.1.att.key.weight"][3, 4] = value
    pth.write(tmp_path / "x.pth", flat)
    with pytest.warns(UserWarning, match=r"x\.pth: NaN or infinite numbers in blocks\.1\.att\.key\.weight$"):
        report = load(tmp_path / "x.pth").report
    assert "blocks.1.att.key.weight" in str(report)


def test_command_line(tmp_path, make_flat, capsys, same_bits):
    flat = make_flat(dtype=np.float32, unused=True)
    pth.write(tmp_path / "a.pth", flat)
    assert cli.main(["inspect", str(tmp_path / "a.pth")]) == 0
    assert "blocks.0.att.v0" in capsys.readouterr().out
    for step in (("a.pth", "b.safetensors"), ("b.safetensors", "c.bin"), ("c.bin", "d.pth")):
        assert cli.main(["convert", *(str(tmp_path / name) for name in step)]) == 0
    used = {name: array for name, array in flat.items() if name[:14] != "blocks.0.att.v" or "value" in name}
    same_bits(pth.read(tmp_path / "d.pth"), used)
    assert cli.main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "e.bin"), "--dtype", "float16"]) == 0
    assert "FP16" in load(tmp_path / "e.bin").report.format
    np.testing.assert_array_equal(rwkv_cpp.read(tmp_path / "e.bin")["ln_out.weight"], flat["ln_out.weight"])
    assert cli.main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "f.pth"), "--dtype", "bfloat16"]) == 0
    assert load(tmp_path / "f.pth").report.dtypes == ("bfloat16",)
    capsys.readouterr()
    (tmp_path / "text").write_text("Call me Ishmael.")
    for arguments in (
        ["inspect", "none.pth"],
        ["convert", str(tmp_path / "a.pth"), "x.gguf"],
        ["inspect", str(tmp_path / "text")],
    ):
        assert cli.main(arguments) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert not out


def test_command_line_interrupted_or_read_in_part(tmp_path, make_flat, capsys, monkeypatch):
    pth.write(tmp_path / "a.pth", make_flat())
    for error, status in ((KeyboardInterrupt, 130), (ValueError("two\nlines"), 2)):
        monkeypatch.setattr(work, "load", Mock(side_effect=error))
        assert cli.main(["inspect", str(tmp_path / "a.pth")]) == status
        assert capsys.readouterr().err.count("\n") == 1
    command = [sys.executable, "-m", "experiments.cli", "inspect", str(tmp_path / "a.pth")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 0


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_import_needs_at_most_twice_the_file(tmp_path):
    config = RWKV7Config(65536, 12, 768)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2**14, 65536 * 768, dtype=np.uint16).view(ml_dtypes.bfloat16)
    shapes = expected_shapes(config)
    pth.write(tmp_path / "x.pth", {name: noise[: int(np.prod(shape))].reshape(shape) for name, shape in shapes.items()})
    # VmHWM is the process's own peak; ru_maxrss would be that of the parent it was forked from, if larger.
    program = (
        "import sys, rwkv7_jax.checkpoint as c; out = c.load(sys.argv[1]); "
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.pth"], capture_output=True, text=True, check=True
    )
    assert 1024 * int(done.stdout) < 2 * (tmp_path / "x.pth").stat().st_size


WRAPPED = {
    "a prefix of one's own": lambda name: f"student.net.{name}",
    "PEFT": lambda name: f"base_model.model.{name}".replace("att.key.weight", "att.key.base_layer.weight"),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}".replace(".att.", "._fsdp_wrapped_module.att."),
    "compiled blocks": lambda name: name.replace(".att.", "._orig_mod.att."),
    "checkpointed blocks": lambda name: name.replace(".ffn.", "._checkpoint_wrapped_module.ffn."),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_of_training_tools_are_dropped(tmp_path, make_flat, kind):
    flat = make_flat(dtype=np.float32)
    pth.write(tmp_path / "plain.pth", flat)
    pth.write(tmp_path / "wrapped.pth", {WRAPPED[kind](name): array for name, array in flat.items()})
    hashes = [load(tmp_path / f"{name}.pth").report.weights_hash for name in ("plain", "wrapped")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("name", ["lora_A", "lora_B.default.weight", "bone"])
@pytest.mark.parametrize("alone", [True, False])
def test_adapters_are_named(tmp_path, make_flat, name, alone, one_line_error):
    flat = {} if alone else make_flat(dtype=np.float32)
    flat |= {f"base_model.model.blocks.{i}.att.key.{name}": np.zeros((4, 4), np.float32) for i in range(2)}
    pth.write(tmp_path / "x.pth", flat)
    with one_line_error("x.pth", name, "merge"):
        load(tmp_path / "x.pth")


def test_the_only_torch_file_of_a_folder_is_meant(tmp_path, make_flat):
    pth.write(tmp_path / "pytorch_model.bin", make_flat())
    (tmp_path / "config.json").write_text("{}")
    assert load(tmp_path).report.weights_hash == load(tmp_path / "pytorch_model.bin").report.weights_hash


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("adapter_config.json", "merge_and_unload"),
        ("zero_to_fp32.py", "DeepSpeed"),
        ("__0_0.distcp", "dcp_to_torch"),
        ("model.gguf", "GGUF"),
    ],
)
def test_folders_of_other_tools_are_named(tmp_path, name, advice, one_line_error):
    (tmp_path / name).touch()
    with one_line_error(str(tmp_path), advice):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"GGUF\x03" + bytes(40), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "git lfs pull"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, content, advice, one_line_error):
    (tmp_path / "x.pth").write_bytes(content)
    with one_line_error("x.pth", advice):
        load(tmp_path / "x.pth")
