"""The benchmark of the whole model: a wrong result gets no time, and every job runs on the tiny shape."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from experiments.bench import decoding, evaluation, inputs, ours, steps, tokenizer, tuning, weights
from experiments.bench import model as bench
from experiments.bench.worker import Job, Worker
from experiments.config.overrides import UsageError


@dataclasses.dataclass
class Computed:
    """A job that has computed its result."""

    result: list[float]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "random.pth"
    weights.make_checkpoint(path, "tiny")
    return path


def test_table_names_what_was_not_measured():
    text = bench.table(
        [
            bench.Measured("prefill", "ours", "float32", 50.0, 1.0, 2**30),
            bench.Measured("prefill", "rwkv", "float32", 25.0, 0.5, 2**29),
            bench.NotMeasured("prefill", "rwkv", "float32", "No module named 'torch'"),
        ]
    )
    assert "| prefill | ours | float32 | 50 | 1.00 | 1.00 GiB |" in text
    assert "| prefill | rwkv | float32 | 25 | 0.50 | 0.50 GiB |" in text
    assert "not measured: No module named 'torch'" in text


def test_a_wrong_result_is_named():
    prefill = [job for job in bench.JOBS if job.task == "prefill" and job.dtype == "float32"]
    results: list[list[float]] = [[1.0, 2.0], [1.0, 2.1]]
    workers = {job: Computed(result) for job, result in zip(prefill, results, strict=True)}
    assert list(bench.disagreement(workers)) == [Job("ours", "prefill")]
    workers[prefill[0]].result = [1.0, 2.1]
    assert not bench.disagreement(workers)
    assert bench.difference([float("nan")], [1.0], 0.5).startswith("wrong")


@pytest.mark.parametrize("task", ["prefill", "prefill, all logits"])
def test_prefill_is_that_of_the_float32_model_in_every_dtype(task: str, checkpoint: Path):
    results = {}
    for dtype in ("float32", "bfloat16", "int8"):
        timed = ours.prefill(dtype, checkpoint, task == "prefill")
        timed.calls[""]()
        results[dtype] = timed.result
    assert len(results["float32"]) == inputs.SHAPES["tiny"].vocab_size
    for dtype in ("bfloat16", "int8"):
        assert bench.difference(results[dtype], results["float32"], bench.TOLERANCE[dtype]) == ""
        assert bench.difference(results[dtype], results["float32"], 1e-6).startswith("wrong: differs by")


def test_decoding_jobs_run_on_the_tiny_shape_and_agree(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ours, "decoded", lambda kind, rows: 2)
    timed = {dtype: ours.decoding(dtype, 2, checkpoint) for dtype in decoding.DTYPES}
    for kind in (inputs.STEP, inputs.SAMPLED):
        timed["int8"].calls[kind]()
    wanted = timed["float32"].result
    for dtype, one in timed.items():
        assert bench.difference(one.result, wanted, bench.TOLERANCE[dtype]) == ""
    small = inputs.SHAPES["tiny"]
    linear, lora = 2 * 12 * 128**2 + 128 * 512, 2 * 2 * 128 * (64 + 64 + 128) + 2 * 128 * 32
    vectors = timed["float32 wide"].weights - 4 * (linear + lora)
    assert 0 < vectors < 4 * 100 * small.n_embd
    assert timed["float32"].weights == timed["bfloat16"].weights == 2 * (linear + lora) + vectors
    rows = 2 * (5 * 128 + 4 * 128 + 128 - 128) + 512
    assert timed["int8"].weights == linear + 4 * rows + 2 * lora + vectors
    assert timed["int4"].weights == linear // 2 + 4 * linear // 32 + 2 * lora + vectors


def test_the_decoding_table_shows_traffic_and_bandwidth():
    assert decoding.state_bytes(inputs.SHAPES["tiny"], 3) == 4 * 3 * 2 * 128 * 64
    lines = [
        decoding.Row(8, "ours", "step", "float32", 100.0, 4 * 10**8, 2**30),
        decoding.Row(8, "ours", "greedy", "bfloat16", 200.0, 2 * 10**8, 2**29),
        decoding.Row(8, "keras-hub", "step", "float32", 0.0, 0, 0, "no module"),
    ]
    text = decoding.table(decoding.Comparison("tiny", 1, 1e10, lines))
    assert "| 8 | ours | step | float32 | 100.0 | 1.00 | 400 MB | 50% | 1.00 GiB |" in text
    assert "| 8 | ours | greedy | bfloat16 | 200.0 | 2.00 | 200 MB | 50% | 0.50 GiB |" in text
    assert "not measured: no module" in text


def test_generation_is_timed_from_its_first_token_on(tmp_path: Path):
    run = decoding.Run(Job("ours", "decoding", "float32", 8), tmp_path / "a.pth", "tiny", "not started")
    tokens = inputs.decoded(inputs.GREEDY, 8)
    seconds = {inputs.STEP: 64 / 100, inputs.GREEDY: 0.5 + (tokens - 1) / 80, inputs.SAMPLED: 0.5 + (tokens - 1) / 40}
    run.problem, run.worker = (
        "",
        cast(Worker, SimpleNamespace(seconds={**seconds, inputs.FIRST: 0.5}, weights=0, peak=0)),
    )
    assert inputs.decoded(inputs.STEP, 8) == 64
    np.testing.assert_allclose([line.tokens_per_s for line in run.lines(inputs.SHAPES["tiny"])], [800, 640, 320])


def test_only_pypi_rwkv_is_left_out_for_many_sequences():
    who = [{job.who for job in decoding.jobs(rows, ["int8"], ["keras-hub"])} for rows in (1, 8)]
    assert who == [{"ours", "llama.cpp", "rwkv"}, {"ours", "llama.cpp"}]


def test_a_process_that_does_not_start_or_ends_is_a_line_of_the_table(tmp_path: Path):
    small = inputs.SHAPES["tiny"]
    told = decoding.Run(Job("llama.cpp", "decoding", "q8_0", 8), tmp_path / "a.pth", "tiny", "No module named 'gguf'")
    told.measure()
    absent = decoding.Run(Job("ours", "decoding"), tmp_path / "nowhere.pth", "tiny")
    absent.measure()
    decoding.check([told, absent])
    assert [line.problem for line in told.lines(small)] == ["No module named 'gguf'"]
    assert ["nowhere" in line.problem for line in absent.lines(small)] == [True] * 3


def test_tuning_steps_of_the_tiny_shape_have_the_same_loss(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "TUNE", 24)
    monkeypatch.setattr(tuning, "UNROLLED", 4)
    contenders = ("ours", *bench.PEERS["state-tuning step"])
    losses = [tuning.tuning(who, "float32", checkpoint).result for who in contenders]
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 3
    for dtype in ("bfloat16", "int8"):
        assert tuning.tuning("ours", dtype, checkpoint).result == pytest.approx(losses[0], rel=5e-2)


def test_a_job_is_measured_in_a_process_of_its_own(checkpoint: Path, tmp_path: Path):
    worker = Worker(Job("ours", "import"), checkpoint, "tiny")
    worker.measure()
    assert 0 < worker.seconds[""] < 60
    assert worker.peak > checkpoint.stat().st_size
    worker.process.kill()
    with pytest.raises(RuntimeError, match="ended by signal 9"):
        worker.measure()
    worker.close()
    with pytest.raises(RuntimeError, match="nowhere"):
        Worker(Job("ours", "decoding"), tmp_path / "nowhere.pth", "tiny")


def test_a_step_of_every_method_is_timed_on_the_tiny_shape():
    seconds = steps.measure("tiny", 1, 32, 1, steps.chosen_methods(["dbp"]))
    lines = steps.table(seconds).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == ["method", "standard", "dbp"]
    assert lines[2].endswith("| 1.00 |")


def test_tokenizers_race_on_files_and_agree(tmp_path: Path):
    plain, lines, wrong = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    plain.write_text("Mira lives in Dorn.\n")
    lines.write_text('{"text": "käse"}\n\n{"text": "你好"}\n')
    wrong.write_text("[1]\n")
    lacking = tmp_path / "d.jsonl"
    lacking.write_text('{"text": ""}\n{"prompt": "a"}\n')
    table = "\n".join(tokenizer.table([plain, lines])).splitlines()
    assert [line.split(" | ")[:2] for line in table[2:]] == [["| a.txt", "20"], ["| b.jsonl", "11"]]
    for path, message in ((wrong, r"c\.jsonl:1: a JSON object"), (lacking, r"d\.jsonl:2: no string")):
        with pytest.raises(UsageError, match=message):
            tokenizer.texts(path)
    with pytest.raises(ValueError, match="do not agree on b'ab'"):
        tokenizer.race([b"ab"], {"ours": list, "theirs": lambda text: [len(text)]})


def test_a_wrong_log_likelihood_gets_no_time():
    text = evaluation.table(
        [
            evaluation.Result("a", 2.0, 10, [-1.0, -2.0]),
            evaluation.Result("b", 9.0, 50, [-1.0, -2.0001]),
            evaluation.Result("c", 9.0, 50, [-1.0, -2.1]),
        ]
    )
    assert "| b | 50 | 5.0 | 9.00 | 4.5 |" in text
    assert "| c | 50 | 5.0 | wrong: differs by 5.0e-02 |  |" in text
