"""`rwkv7 data`: what is printed, written and returned."""

import json
import re

import numpy as np
import pytest

from experiments import cli
from rwkv7_jax import RWKV7Config
from rwkv7_jax.checkpoint import save
from rwkv7_jax.checkpoint.names import flat_to_params
from tests.malformed.readers import weights

TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2}


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(TALK | {"system": f"s{i}"}) + "\n" for i in range(4)))
    return path


def test_info_of_a_sound_file(sound, tmp_path, capsys):
    assert cli.main(["data", "info", str(sound), "--json", str(tmp_path / "i.json"), "--tune.steps", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "RESULT: PASS"
    assert re.fullmatch(
        r"time: at least .* for a 0\.1B model on this machine \(cpu\), 7 steps of 16 examples of 32 positions with "
        r"padding; by its FLOPs and products of matrices measured at .* GFLOP/s",
        lines[-2],
    )
    body = json.loads((tmp_path / "i.json").read_text())
    assert (body["records"], body["answers"], body["result"], body["tokenizer"]) == (4, 8, "RESULT: PASS", "world")
    assert body["seconds"] > 0
    assert body["findings"] == []


def test_info_of_a_broken_file_fails(sound, capsys):
    sound.write_text(sound.read_text() + "{\n")
    assert cli.main(["data", "info", str(sound), "--model.tokenizer", "byte"]) == 1
    out = capsys.readouterr().out
    assert f"FAULT data: {sound}:5: not JSON" in out
    assert out.endswith("RESULT: FAIL (1)\n")
    assert cli.main(["data", "info", str(sound.parent / "none.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("error: no file ")


def test_a_checkpoint_s_tokens_are_counted_and_its_step_is_timed(sound, tmp_path, capsys):
    config = RWKV7Config(256, 1, 8, 4, 3, 2, 2, 2, 2)
    small = {name: (0.1 * x).astype(np.float32) for name, x in weights(config=config).items()}
    save(tmp_path / "m.safetensors", flat_to_params(small))
    args = [
        "data",
        "info",
        str(sound),
        "--model.checkpoint",
        str(tmp_path / "m.safetensors"),
        "--model.tokenizer",
        "byte",
    ]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "tokens (byte of " in out
    assert re.search(r"time: about .* and compilation \(.*\); measured: one step of 4 x 128 tokens takes .* s", out)
    assert cli.main([*args, "--measure", "no"]) == 0
    assert "time:" not in capsys.readouterr().out


def test_show_marks_what_is_learnt(sound, capsys):
    assert cli.main(["data", "show", str(sound), "--n", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown == (
        f"--- {sound}:1\nSystem: s0\n\nUser: a\n\nAssistant:⟦ b\n\n⟧User: a\n\nAssistant:⟦ b<end>⟧\n"
        "--- learnt is what stands between ⟦ and ⟧\n"
    )
    assert cli.main(["data", "show", str(sound), "--n", "1", "--data.learn", "all"]) == 0
    assert "\n⟦System: s0" in capsys.readouterr().out


def test_wrong_words_are_one_line(sound, tmp_path, capsys):
    for args in (
        ["inof", str(sound)],
        ["info"],
        ["show", str(sound), "--n", "0"],
        ["info", str(sound), "--json", "/no/x"],
    ):
        assert cli.main(["data", *args]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
