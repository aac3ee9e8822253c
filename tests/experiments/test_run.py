"""Whole runs on a tiny model: outcome, files, interruption and resume, bit for bit."""

import json
import os
import shutil
import signal
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import run, session
from experiments.config.loading import load_config
from experiments.data.jobs import Job, load_jobs
from experiments.data.jsonl import Pair
from experiments.training import checkpoint, profiling
from experiments.training.metrics_log import MetricsLog
from experiments.training.preemption import Interrupt
from experiments.training.run_folder import claim
from rwkv7_jax.checkpoint import load, load_state
from rwkv7_jax.tokenizer import ByteTokenizer

STEPS = 12
CACHE_SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    """A compilation cache of this file's own, as users have one; off again afterwards, as for all other tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def argv(tiny_checkpoint, tmp_path_factory):
    """The command, without --output: digits repeated, which a state learns at once."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = [{"prompt": f"{i}", "completion": "ab" * (1 + i % 3)} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--config jsonl --tune.steps {STEPS} --tune.learning_rate 0.3 --data.batch_size 4 --evaluate.batch_size 4"
    more = "--system.checkpoint_every 5 --report.sample_tokens 4 --model.wkv scan"
    files = ["--model.checkpoint", str(tiny_checkpoint), "--data.train", str(path)]
    return [*words.split(), *more.split(), *files]


@pytest.fixture(scope="module")
def finished(argv, tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run.main([*argv, "--output", str(folder)]) == 0
    return folder


def result(folder):
    """Everything of a run that must be the same again."""
    rows = [{k: v for k, v in row.items() if k != "timing"} for row in MetricsLog(folder / "metrics.jsonl").rows()]
    return json.loads((folder / "results.json").read_text()), rows, (folder / "jsonl/state.safetensors").read_bytes()


def test_a_run_leaves_all_that_is_promised(finished, capsys, argv):
    body, rows, _ = result(finished)
    assert body["verdict"] == "PASS"
    assert body["jobs"]["jsonl"]["loss_tuned"] < body["jobs"]["jsonl"]["loss_vanilla"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {"report.md", "results.json", "run.json", "metrics.jsonl", "loss.png", "jsonl"}
    assert names == {path.name for path in finished.iterdir()}
    assert json.loads((finished / "run.json").read_text())["config"]["tune"]["steps"] == STEPS
    state = load_state(finished / "jsonl/state.safetensors")
    assert state.metadata["base_model_hash"] == body["base_model_sha256"]
    assert {"method", "config", "metrics"} <= state.metadata.keys()
    assert np.abs(np.asarray(state.state.wkv)).max() > 0


def test_the_same_command_reads_a_finished_run_back(finished, argv, capsys):
    before = result(finished)
    assert run.main([*argv, "--output", str(finished)]) == 0
    assert result(finished) == before
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "RESULT: PASS"
    assert "without and with the tuned state" in out
    assert "rwkv7 generate" in out


def test_lora_leaves_its_weights_beside_the_state(argv, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run.main([*argv, "--method.kind", "baseline", "--method.name", "lora", "--output", str(folder)]) == 0
    weights = folder / "jsonl" / "model.safetensors"
    told = capsys.readouterr()
    assert f"rwkv7 generate --model.checkpoint {weights}" in told.out
    assert "jsonl: 27 training records, " in told.out
    assert " steps left, " in told.err
    base = argv[argv.index("--model.checkpoint") + 1]
    merged, before = load(weights), load(base)
    state = load_state(folder / "jsonl/state.safetensors")
    assert state.metadata["base_model_hash"] == merged.report.weights_hash != before.report.weights_hash
    assert not np.any(state.state.wkv)


def test_compiled_programs_are_kept(finished, cache_folder):
    assert any((cache_folder / "rwkv7-jax" / "compiled").iterdir())


def interrupt_at(monkeypatch, step):
    """Ctrl-C just after the metrics of `step` were written."""
    append = MetricsLog.append

    def pressing(self, row):
        append(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "append", pressing)


def test_interrupted_and_resumed_equals_undisturbed(argv, finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    command = [*argv, "--output", str(folder)]
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert run.main(command) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted at step 7 of jsonl; run the same command to resume"
    assert checkpoint.steps(folder / "jsonl/checkpoints") == [5, 7]
    assert run.main(command) == 0
    assert result(folder) == result(finished)


def test_a_damaged_checkpoint_is_passed_over_by_name(argv, finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    command = [*argv, "--output", str(folder)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert run.main(command) == 130
    newest = folder / "jsonl/checkpoints/step_00000007"
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    capsys.readouterr()
    assert run.main(command) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    assert result(folder) == result(finished)


def one_error(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_other_settings_do_not_mix_with_an_earlier_run(argv, finished, capsys):
    assert run.main([*argv, "--output", str(finished), "--tune.l2", "0.1"]) == 2
    assert "holds a run with other settings (tune.l2: 0.0 there, 0.1 here)" in one_error(capsys)
    assert run.main([*argv, "--output", str(finished), "--resume", "no"]) == 2
    assert "holds an earlier run" in one_error(capsys)


def test_a_folder_with_other_files_is_never_thrown_away(argv, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("dear")
    assert run.main([*argv, "--output", str(tmp_path), "--overwrite"]) == 2
    assert "holds other files" in one_error(capsys)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


TOO_SMALL = ["--method.kind", "upscale", "--method.size", "3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (TOO_SMALL, "size"),
        (["--system.tensorboard", "yes"], "tensorboard: no writer is installed"),
        (["--system.keep_best", "1", "--system.best_metric", "accuracy"], "best_metric: accuracy is not among loss"),
    ],
)
def test_wrong_settings_throw_nothing_away(words, message, argv, finished, monkeypatch, capsys):
    monkeypatch.setattr(profiling.importlib.util, "find_spec", lambda name: None)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert run.main([*argv, "--output", str(finished), "--overwrite", *words]) == 2
    assert message in one_error(capsys)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_overwrite_throws_away_what_a_run_wrote_and_nothing_else(argv, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "my_notes.txt").write_text("dear")
    assert not claim(folder, "other", {}, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"my_notes.txt", "run.json"}


def test_a_run_without_results_gives_its_folder_up(argv, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run.main([*argv, "--output", str(folder), *TOO_SMALL]) == 2
    assert "size" in one_error(capsys)
    assert not folder.exists()
    assert not claim(folder, "a", {}, resume=False)
    assert not claim(folder, "b", {}, resume=False)
    assert json.loads((folder / "run.json").read_text())["identity"] == "b"


def test_a_text_file_named_pth(argv, tmp_path, capsys):
    (tmp_path / "model.pth").write_text("not a checkpoint\n")
    assert run.main([*argv, "--model.checkpoint", str(tmp_path / "model.pth"), "--output", str(tmp_path / "o")]) == 2
    assert "model.pth" in one_error(capsys)


def test_non_finite_run_fails_and_says_where(argv, tmp_path, capsys):
    words = ["--output", str(tmp_path / "run"), "--tune.warmup", "1", "--tune.learning_rate", "3e38"]
    assert run.main([*argv, *words]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("RESULT: FAIL (step ")


def test_public_records_of_a_task_in_a_local_file(tmp_path, capsys):
    path = tmp_path / "gsm.jsonl"
    rows = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config("jsonl", ["--data.tasks=gsm8k", f"--data.train={path}", "--data.max_train=7"])
    (job,) = load_jobs(config.data, config.evaluate, config.seed)
    assert (job.name, len(job.train), len(job.held_out), len(job.records)) == ("gsm8k", 7, 2, 2)
    assert job.train[0].prompt.startswith("Question: ")
    assert job.train[0].prompt.endswith("?\nAnswer:")
    path.write_text('{"question": "1?", "answer": "#### 1"}\n{"text": "a"}\n')
    argv = [
        "--config",
        "jsonl",
        "--data.tasks",
        "gsm8k",
        "--data.train",
        str(path),
        "--output",
        str(tmp_path / "o"),
    ]
    assert run.main(argv) == 2
    assert one_error(capsys).startswith(f"error: {path}:2: a gsm8k record lacks question, answer")


def test_a_long_text_counts_as_one_record():
    """Its windows are summed, and `max_records` and the intervals go by records."""

    class Told:
        """Losses that say how many tokens each window completes."""

        def _replace(self, tick):
            return self

        def losses(self, state, examples):
            counts = np.array([len(example.tokens) - example.completion_start for example in examples], float)
            return 2 * counts, counts

    config = load_config("jsonl", ["--data.max_length", "64", "--report.plots", "no"])
    job = Job("jsonl", [], [Pair("", "a" * 999), Pair("q", "b" * 9), Pair("", "c" * 499)])
    lm = SimpleNamespace(tokenizer=ByteTokenizer())
    made: Any = SimpleNamespace(lm=lm, data=config.data, evaluator=Told(), interrupt=Interrupt())
    nothing: Any = None
    found = session.measure(made, job, nothing, "vanilla")
    assert (found.nll, found.tokens) == ([2000.0, 20.0, 1000.0], [1000.0, 10.0, 500.0])


def test_a_real_checkpoint_on_real_text(shared_data, tmp_path):
    """A real RWKV-7 (rwkv.cpp's), real GSM8K: a few steps lower the held-out completion loss."""
    model = shared_data / "checkpoints/rwkv_cpp_tiny7/tiny-rwkv-7v0-834K-FP32.bin"
    train = shared_data / "datasets/gsm8k/train.jsonl"
    words = "--data.tasks gsm8k --data.max_train 64 --data.max_length 96 --data.batch_size 8 --tune.steps 12"
    more = "--tune.learning_rate 0.1 --evaluate.max_records 16 --evaluate.max_new_tokens 4 --report.sample_tokens 4"
    argv = ["--config", "jsonl", "--model.checkpoint", str(model), "--data.train", str(train)]
    code = run.main([*argv, *words.split(), *more.split(), "--report.plots=no", "--output", str(tmp_path / "run")])
    assert code in (0, 1)
    body = json.loads((tmp_path / "run/results.json").read_text())
    assert body["jobs"]["gsm8k"]["loss_change"][2] < 0
