"""`rwkv7 state`: the algebra of surgery on files, with the metadata of the states that it starts from."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli
from experiments.build import EMBEDDED
from rwkv7_jax import LanguageModel, State
from rwkv7_jax.checkpoint import export_state, load_state, save_state

LAYERS, HEADS, SIZE = 2, 2, 4


def random_state(seed: int, shifts: bool = True) -> State:
    rng = np.random.default_rng(seed)
    shift = (LAYERS, HEADS * SIZE)
    parts = [rng.normal(size=shape).astype(np.float32) for shape in (shift, shift, (LAYERS, HEADS, SIZE, SIZE))]
    if not shifts:
        parts[:2] = [np.zeros(shift, np.float32)] * 2
    return State(*map(jnp.asarray, parts))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for name, seed in (("a", 1), ("b", 2)):
        fields = {"base_model_hash": "f00d", "method": "standard", "metrics": {"loss": 1.5}, "config": {"name": name}}
        save_state(tmp_path / f"{name}.safetensors", random_state(seed), metadata=fields)
    return str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")


def state(*words: str) -> int:
    return cli.main(["state", *words])


def test_info_prints_origin_norms_and_ranks_by_layer(files, capsys):
    assert state("info", files[0]) == 0
    out = capsys.readouterr().out
    assert f"{LAYERS} layers, {HEADS} heads of {SIZE}, 96 values" in out
    assert "base_model_hash: f00d\n" in out
    assert "method: standard\n" in out
    assert '"loss": 1.5' in out
    lines = [line.split() for line in out.splitlines()]
    assert "wkv rank" in " ".join(lines[-LAYERS - 2])
    norms = np.linalg.norm(np.asarray(random_state(1).wkv).reshape(LAYERS, -1), axis=1)
    assert [float(line[3]) for line in lines[-LAYERS:]] == pytest.approx(norms.tolist(), rel=1e-3)


def test_mix_scale_and_diff_are_linear(files, tmp_path, capsys):
    mixed, half, difference = (str(tmp_path / f"{name}.safetensors") for name in ("mixed", "half", "difference"))
    assert state("mix", *files, "--weight", "0.25", "--output", mixed) == 0
    assert state("scale", files[0], "--by", "0.5", "--output", half) == 0
    assert state("diff", files[0], half, "--output", difference) == 0
    assert "|A - B| = " in capsys.readouterr().out
    a, b = random_state(1), random_state(2)
    loaded = load_state(mixed)
    np.testing.assert_allclose(loaded.state.wkv, 0.75 * a.wkv + 0.25 * b.wkv, rtol=1e-6)
    np.testing.assert_allclose(loaded.state.att_shift, 0.75 * a.att_shift + 0.25 * b.att_shift, rtol=1e-6)
    assert loaded.metadata["base_model_hash"] == "f00d"
    assert loaded.metadata["made_by"] == f"rwkv7 state mix {files[0]} {files[1]} 0.25"
    assert "metrics" not in loaded.metadata
    np.testing.assert_array_equal(load_state(difference).state.wkv, load_state(half).state.wkv)


def test_a_state_subtracted_from_itself_is_zero(files, capsys):
    assert state("diff", files[0], files[0]) == 0
    assert "|A - B| = 0, 0.0000 of |A|" in capsys.readouterr().out


def test_truncation_keeps_the_rank_and_says_what_it_leaves_out(files, tmp_path, capsys):
    small = str(tmp_path / "small.safetensors")
    assert state("truncate", files[0], "--rank", "1", "--output", small) == 0
    assert "rank 1 leaves out 0." in capsys.readouterr().out
    assert np.linalg.matrix_rank(np.asarray(load_state(small).state.wkv), tol=1e-4).max() == 1
    assert state("truncate", files[0], "--rank", str(SIZE), "--output", small) == 0
    assert "leaves out 0.0000" in capsys.readouterr().out


def test_foreign_files_need_a_layout(tmp_path, capsys):
    plain = random_state(3, shifts=False)
    export_state(tmp_path / "foreign.pth", plain, layout="rlhf")
    foreign, out = str(tmp_path / "foreign.pth"), str(tmp_path / "out.safetensors")
    assert state("scale", foreign, "--by", "2", "--output", out) == 2
    assert "axis order cannot be seen" in capsys.readouterr().err
    assert state("scale", foreign, "--by", "2", "--output", out, "--layout", "rlhf") == 0
    np.testing.assert_array_equal(load_state(out).state.wkv, 2 * np.asarray(plain.wkv))
    assert state("info", foreign, "--layout", "rlhf") == 0
    assert "att shift norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("truncate A --rank 9 --output OUT", "rank 9 is not in 1..4"),
        ("scale A --by much --output OUT", "by: 'much' is not a number"),
        ("scale A --by 2 --output out.bin", "the suffix must be one of .safetensors, .st"),
        ("mix A --output OUT", "second is missing (state file): rwkv7 state mix FIRST SECOND"),
        ("mix A OTHER --output OUT", "states of one model can be combined"),
        ("diff A SMALL", "of shape"),
        ("info nowhere.st", "nowhere.st"),
        ("convert A --to wrld --output OUT", "unknown layout wrld; one of value_key"),
        ("convert A --to web-rwkv --output out.pth", "reads no .pth; end the name in .st"),
        ("convert A --to rlhf --output OUT", "has no place for shift states"),
        ("info A --out x", "unknown key 'out'"),
    ],
)
def test_mistakes_are_one_line(words, told, files, tmp_path, capsys):
    save_state(tmp_path / "other.safetensors", random_state(1), metadata={"base_model_hash": "beef"})
    small = State(jnp.zeros((2, 4)), jnp.zeros((2, 4)), jnp.zeros((2, 1, 4, 4)))
    save_state(tmp_path / "small.safetensors", small, metadata={})
    names = {"A": files[0], "OUT": str(tmp_path / "out.safetensors")}
    names |= {"OTHER": str(tmp_path / "other.safetensors"), "SMALL": str(tmp_path / "small.safetensors")}
    assert state(*(names.get(word, word) for word in words.split())) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_convert_writes_small_files(tmp_path, capsys):
    rwkv7 = cli.main
    rng = np.random.default_rng(0)
    wkv = (rng.normal(size=(2, 2, 64, 4)) @ rng.normal(size=(2, 2, 4, 64))).astype(np.float32)
    state = State(jnp.zeros((2, 128)), jnp.zeros((2, 128)), jnp.asarray(wkv))
    save_state(tmp_path / "a.safetensors", state, metadata={"base_model_hash": "abc", "method": "standard"})
    words = ["state", "convert", str(tmp_path / "a.safetensors"), str(tmp_path / "small.safetensors")]
    assert rwkv7([*words, "--rank", "4", "--dtype", "int8"]) == 0
    said = capsys.readouterr().out
    assert "leaves out 0.0" in said
    assert "kB, whole in float32 65.5 kB" in said
    found = load_state(tmp_path / "small.safetensors")
    assert np.linalg.norm(found.state.wkv - wkv) < 0.02 * np.linalg.norm(wkv)
    assert found.metadata["base_model_hash"] == "abc"
    assert rwkv7(["state", "info", str(tmp_path / "small.safetensors")]) == 0
    assert rwkv7(["inspect", str(tmp_path / "small.safetensors")]) == 0
    assert "2 of 2 x 64 x 64" in capsys.readouterr().out
    assert rwkv7([*words[:3], str(tmp_path / "x.pth"), "--to", "fla", "--rank", "4"]) == 2
    assert "rwkv7 state truncate before" in capsys.readouterr().err
    assert rwkv7([*words, "--rank", "65"]) == 2
    assert "rank 65 is not in 1..64" in capsys.readouterr().err


def test_a_card_says_how_a_state_was_made_and_what_was_measured(tmp_path, capsys):
    config = {"seed": 3, "data": {"train": "my|`<data>`.jsonl", "tasks": []}, "tune": {"steps": 200}}
    config["model"] = {"checkpoint": "/home/me/model.pth"}
    metrics = {"loss_vanilla": 3.66472, "loss_tuned": 0.09015, "loss_change": [-3.57, -3.73, -3.43]}
    fields = {"base_model_hash": "f00d", "method": "dbp", "config": config, "metrics": metrics}
    save_state(tmp_path / "pirate.safetensors", random_state(1), metadata=fields)
    page = tmp_path / "README.md"
    assert cli.main(["state", "card", str(tmp_path / "pirate.safetensors"), "--output", str(page)]) == 0
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "---"
    for line in (
        "# pirate", "| method | dbp |", "| steps | 200 |", "| seed | 3 |", "| base model | model.pth |",
        "| hash of the base model's weights | f00d |",
        "| data | my\\|'&lt;data>'.jsonl |", "| loss_vanilla | 3.665 |", "| loss_tuned | 0.09015 |",
        "| loss_change | -3.57 [-3.73, -3.43] |",
        "rwkv7 chat --model.checkpoint model.pth --state pirate.safetensors",
    ):  # fmt: skip
        assert line in lines
    assert not any("tasks" in line for line in lines)
    save_state(tmp_path / "bare.safetensors", random_state(1), metadata={"config": "[", "metrics": "3"})
    assert cli.main(["state", "card", str(tmp_path / "bare.safetensors"), "--output", str(page)]) == 0
    assert "Nothing is noted in the file." in page.read_text(encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["state", "card", str(tmp_path / "none.safetensors")]) == 2
    assert "no such state file" in capsys.readouterr().err


def test_a_card_tells_what_a_state_changes_elsewhere(tmp_path, capsys):
    lm = LanguageModel.load(EMBEDDED["pocket/student"], dtype="float32")
    zero = lm.zero_state()
    wkv = jnp.asarray(10.0 * np.random.default_rng(0).normal(size=zero.wkv.shape), jnp.float32)
    state = zero._replace(wkv=wkv)
    path, page = str(tmp_path / "wild.safetensors"), tmp_path / "README.md"
    save_state(path, state, metadata={"base_model_hash": lm.weights_hash})
    (tmp_path / "a.txt").write_text("Mira lives in Dorn. " * 4, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"prompt": "Mira lives in", "completion": " Dorn."}\n' * 2, encoding="utf-8")
    asked = ["state", "card", path, "--output", str(page), "--held_out"]
    assert cli.main([*asked, f"{tmp_path}/a.txt,{tmp_path}/b.jsonl"]) == 0
    lines = [line.strip("| ").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if " [" in line]
    assert [line[0] for line in lines] == ["a.txt", "b.jsonl"]
    ids = [*lm.encode("Mira lives in Dorn."), lm.tokenizer.eos_id]
    first = len(lm.encode("Mira lives in"))
    assert int(lines[1][1]) == 2 * (len(ids) - first), "the end of the text is one of them"
    for told, one in zip(lines[1][2:4], (None, state), strict=True):
        log_p = jax.nn.log_softmax(lm.logits(ids[:-1], state=one)[0])
        losses = [-float(log_p[at - 1, ids[at]]) for at in range(first, len(ids))]
        assert float(told) == pytest.approx(np.mean(losses), abs=2e-3)
    for _, _, without, with_state, change in lines:
        assert float(with_state) - float(without) == pytest.approx(float(change.split()[0]), abs=2e-4)
    save_state(path, state, metadata={"base_model_hash": "f00d"})
    assert cli.main([*asked, f"{tmp_path}/a.txt"]) == 2
    assert "was tuned on the base model f00d" in capsys.readouterr().err
    save_state(path, random_state(1), metadata={})
    assert cli.main([*asked, f"{tmp_path}/a.txt"]) == 2
    assert "has the shape (2, 2, 4, 4), and pocket/student needs" in capsys.readouterr().err
    assert cli.main(["state", "card", path, "--output", str(page)]) == 0
    assert "Not measured." in page.read_text(encoding="utf-8")
