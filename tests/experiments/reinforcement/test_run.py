"""Whole runs that learn from rewards on a tiny model: files, resume bit for bit, meshes, errors of users."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments import run
from experiments.commands import state as state_command
from experiments.commands import sweep
from experiments.config.schema import MeshConfig
from experiments.reinforcement import run as rewarded
from experiments.training import checkpoint, distributed
from experiments.training.metrics_log import MetricsLog
from rwkv7_jax.checkpoint import load_state, save_state
from tests.experiments.test_run import interrupt_at, one_error

STEPS = 5


@pytest.fixture(scope="module")
def argv(tiny_checkpoint, tmp_path_factory):
    """The command, without --output and the kind: the reward is the part of the text that is ASCII."""
    folder = tmp_path_factory.mktemp("data")
    path, function = folder / "mine.jsonl", folder / "ascii_part.py"
    path.write_text("".join(json.dumps({"prompt": f"{i}", "answer": f"{i}"}) + "\n" for i in range(30)))
    function.write_text(
        "def score(prompt, completion, record):\n"
        "    assert record['prompt'] == prompt\n"
        "    return sum(ord(c) < 128 for c in completion) / max(1, len(completion))\n"
    )
    words = f"--config jsonl --tune.steps {STEPS} --tune.learning_rate 0.3 --tune.warmup 1 --data.batch_size 2"
    more = "--method.samples 4 --method.passes 2 --method.max_new_tokens 4 --evaluate.batch_size 4 --model.wkv scan"
    kept = "--system.checkpoint_every 2 --system.validate_every 2 --system.validate_records 2"
    files = ["--model.checkpoint", str(tiny_checkpoint), "--data.train", str(path), "--report.plots", "no"]
    rest = ["--system.compilation_cache", "no", "--reward", f"{function}:score"]
    return [*words.split(), *more.split(), *kept.split(), *files, *rest]


def words(argv, kind, folder, *more):
    return [*argv, "--method.kind", kind, "--output", str(folder), *more]


@pytest.fixture(scope="module", params=["grpo", "es"])
def finished(request, argv, tmp_path_factory):
    """(kind, folder of an undisturbed run)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    more = ("--report.plots", "yes") if request.param == "grpo" else ()
    assert run.main(words(argv, request.param, folder, *more)) in (0, 1)
    return request.param, folder


def result(folder):
    """Everything of a run that must be the same again."""
    rows = [{k: v for k, v in row.items() if k != "timing"} for row in MetricsLog(folder / "metrics.jsonl").rows()]
    body = json.loads((folder / "results.json").read_text())
    return (
        {k: body[k] for k in ("jobs", "samples")},
        rows,
        np.asarray(load_state(folder / "jsonl/state.safetensors").state.wkv),
    )


def assert_equal(one, other):
    assert one[:2] == other[:2]
    np.testing.assert_array_equal(one[2], other[2])


def test_a_run_leaves_all_that_is_promised(finished):
    kind, folder = finished
    body, rows, state = result(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    wanted = {"loss", "reward", "mixed", "ended", "length", "grad_norm"} | (
        {"kl", "clipped"} if kind == "grpo" else set()
    )
    assert wanted <= rows[0].keys()
    assert [row["step"] for row in rows if "validation_reward" in row] == [2, 4, 5]
    names = {"report.md", "results.json", "run.json", "metrics.jsonl", "goodput.json", "jsonl"}
    assert {path.name for path in folder.iterdir()} - {"goodput.json", "reward.png"} == names - {"goodput.json"}
    assert (folder / "reward.png").exists() == (kind == "grpo")
    kept = {path.name for path in (folder / "jsonl").iterdir()}
    assert {"state.safetensors", "best.safetensors", "outcome.json", "prompt.txt", "checkpoints"} <= kept
    assert np.any(state)
    best = json.loads(load_state(folder / "jsonl/best.safetensors").metadata["metrics"])
    rewards = {row["step"]: row["validation_reward"] for row in rows if "validation_reward" in row}
    assert best["validation_reward"] == max(rewards.values())
    assert rewards[best["step"]] == max(rewards.values())
    assert set(body["jobs"]["jsonl"]) == {"prompts", "before", "after", "change"}


def test_the_same_command_reads_a_finished_run_back(finished, argv, monkeypatch, capsys):
    kind, folder = finished
    before = result(folder)
    more = ("--report.plots", "yes") if kind == "grpo" else ()
    monkeypatch.setattr(rewarded, "_tune", lambda *_: pytest.fail("nothing is tuned again"))
    run.main(words(argv, kind, folder, *more))
    assert_equal(result(folder), before)
    out = capsys.readouterr().out
    assert "pass@2 %" in out
    assert "rwkv7 generate" in out


def test_a_killed_run_goes_on_bit_for_bit(finished, argv, tmp_path, monkeypatch, capsys):
    kind, folder = finished
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert run.main(words(argv, kind, tmp_path / "run")) == 130
    assert "interrupted at step 3 of jsonl" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "run/jsonl/checkpoints") == [2, 3]
    assert load_state(tmp_path / "run/jsonl/last.safetensors").metadata["task"] == "jsonl"
    run.main(words(argv, kind, tmp_path / "run"))
    assert_equal(result(tmp_path / "run"), result(folder))
    assert not (tmp_path / "run/jsonl/last.safetensors").exists()


def test_the_state_of_a_checkpoint_is_a_file(finished, tmp_path):
    _, folder = finished
    out = tmp_path / "made.safetensors"
    words = ["scale", str(folder / "jsonl/checkpoints"), "--by", "1", "--output", str(out)]
    assert state_command.main(words) == 0
    np.testing.assert_array_equal(load_state(out).state.wkv, result(folder)[2])


def test_a_run_starts_from_a_state(argv, tiny, tmp_path):
    start = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.25, np.float32), tiny.zero_state())
    start = start._replace(att_shift=start.att_shift * 0, ffn_shift=start.ffn_shift * 0)
    path = tmp_path / "start.safetensors"
    save_state(path, start, metadata={"base_model_hash": tiny.weights_hash})
    more = ("--tune.init", str(path), "--tune.steps", "1", "--tune.learning_rate", "1e-6")
    assert run.main(words(argv, "es", tmp_path / "run", *more)) in (0, 1)
    np.testing.assert_allclose(result(tmp_path / "run")[2], 0.25, atol=1e-3)


@pytest.mark.parametrize("kind", ["grpo", "es"])
def test_rows_may_be_cut_over_devices(argv, finished, tmp_path, kind, monkeypatch):
    made, folder = finished
    if made != kind:
        pytest.skip("the other kind's run")
    monkeypatch.setattr(distributed, "devices", lambda: jax.devices()[:2])
    run.main(words(argv, kind, tmp_path / "run", "--mesh.data", "2"))
    got, wanted = result(tmp_path / "run"), result(folder)
    assert [row["reward"] for row in got[1]] == pytest.approx([row["reward"] for row in wanted[1]], abs=1e-6)
    np.testing.assert_allclose(got[2], wanted[2], atol=1e-2)
    assert MeshConfig().data == -1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--reward", "numbre"], "no reward 'numbre'"),
        (["--reward="], "method.reward is missing"),
        (["--tune.patience", "2"], "tune.patience goes by held-out losses"),
        (["--tune.segment", "16"], "tune.segment goes with tuning on text"),
        (["--data.learn", "all"], "data.learn goes with tuning on text"),
        (["--method.samples", "1"], "method.samples: must be at least 2"),
        (["--method.temperature", "0"], "method.temperature: must be above 0"),
        (["--method.sigma", "1"], "it goes with --method.kind es"),
        (["--method.normalise", "rows"], "is not one of tokens, samples"),
    ],
)
def test_wrong_settings_are_one_line(argv, tmp_path, more, said, capsys):
    assert run.main(words(argv, "grpo", tmp_path / "run", *more)) == 2
    assert said in one_error(capsys)
    assert not (tmp_path / "run").exists()


def test_evolution_has_no_backward_pass_to_cut(argv, tmp_path, capsys):
    assert run.main(words(argv, "es", tmp_path / "run", "--tune.accumulate", "2")) == 2
    assert "tune.accumulate: method.kind es has no backward pass" in one_error(capsys)


def test_a_function_that_fails_ends_the_run_in_one_line(argv, tmp_path, capsys):
    (tmp_path / "bad.py").write_text("def score(prompt, completion, record):\n    return float('nan')\n")
    assert run.main(words(argv, "grpo", tmp_path / "run", "--reward", f"{tmp_path}/bad.py:score")) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert "returned nan, not a number" in error[0]
    assert "bad" not in sys.modules


def test_another_command_does_not_take_it_for_tuning_on_text(argv, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}", "completion": "a"}) + "\n" for i in range(9))
    )
    command = words(argv, "grpo", tmp_path / "sweep", "--data.train", str(tmp_path / "text.jsonl"))
    command[command.index("--reward")] = "--method.reward"
    place = command.index("--tune.learning_rate")
    del command[place : place + 2]
    assert sweep.main([*command, "--tune.learning_rate", "0.1", "--seeds", "0"]) == 2
    assert "it learns from rewards, which rwkv7 tune alone does" in capsys.readouterr().err
