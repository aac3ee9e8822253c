"""The benchmark of the whole model: a wrong result gets no time, and every job runs on the tiny shape."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.bench import decoding, evaluation, inputs, ours, steps, tokenizer, tuning, weights
from experiments.bench import model as bench
from experiments.bench.worker import Worker
from experiments.config.overrides import UsageError


def test_table_names_what_was_not_measured():
    text = bench.table(
        [
            bench.Measured("decode", "ours", 50.0, 1.0, 2**30),
            bench.Measured("decode", "rwkv", 25.0, 2.0, 2**29),
            bench.NotMeasured("prefill", "rwkv", "No module named 'torch'"),
        ]
    )
    assert "| decode | ours | 50 |  | 1.00 GiB |" in text
    assert "| decode | rwkv | 25 | 2.00x | 0.50 GiB |" in text
    assert "not measured: No module named 'torch'" in text


def test_a_wrong_result_is_named():
    prefill = [job for job in bench.JOBS if job.task == "prefill"]
    results: list[list[float]] = [[1.0, 2.0], [1.0, 2.1]]
    workers = {job: SimpleNamespace(result=result) for job, result in zip(prefill, results, strict=True)}
    assert list(bench.disagreement(workers)) == [bench.Job("ours", "prefill", inputs.PREFILL)]
    workers[prefill[0]].result = [1.0, 2.1]
    assert not bench.disagreement(workers)


@pytest.mark.parametrize("task", ["prefill", "decode"])
def test_our_jobs_run_on_the_tiny_shape(task: str, tmp_path: Path):
    path = tmp_path / "random.pth"
    weights.make_checkpoint(path, "tiny")
    call, logits = ours.generation(task, path)
    call()
    assert len(logits) == inputs.SHAPES["tiny"].vocab_size


@pytest.mark.parametrize("kind", ["step", "top_p 0.85"])
def test_decoding_jobs_run_on_the_tiny_shape_and_agree(kind: str, tmp_path: Path):
    path = tmp_path / "random.pth"
    weights.make_checkpoint(path, "tiny")
    results = []
    for dtype in decoding.BYTES:
        task = inputs.Decode(kind, dtype, 2)
        assert inputs.Decode.parse(task.name) == task
        call, logits = ours.decoding(task, path)
        call()
        results.append(logits)
    assert decoding.disagreement(results[1], results[0], decoding.TOLERANCE["bfloat16"]) == ""
    assert decoding.disagreement(results[1], results[0], 1e-6).startswith("wrong: differs by")


def test_the_decoding_table_shows_traffic_and_bandwidth():
    small, one = inputs.SHAPES["tiny"], inputs.Decode("step", "float32", 1)
    matrices = 2 * (12 * 128**2 + 2 * 128 * (64 + 64 + 128)) + 2 * 128 * 32 + 128 * 512
    assert decoding.traffic(small, one) == 4 * matrices + 2 * 4 * 2 * 128 * 64
    lines = [
        decoding.Row(8, "ours", "step", "float32", 100.0, 4 * 10**8, 2**30),
        decoding.Row(8, "ours", "greedy", "bfloat16", 200.0, 2 * 10**8, 2**29),
        decoding.Row(8, "keras-hub", "step", "float32", 0.0, 4 * 10**8, 0, "no module"),
    ]
    text = decoding.table(decoding.Comparison("tiny", 1, 1e10, lines))
    assert "| 8 | ours | step | float32 | 100.0 | 1.00 | 400 MB | 50% | 1.00 GiB |" in text
    assert "| 8 | ours | greedy | bfloat16 | 200.0 | 2.00 | 200 MB | 50% | 0.50 GiB |" in text
    assert "not measured: no module" in text


def test_tuning_steps_of_the_tiny_shape_have_the_same_loss(tmp_path: Path):
    path = tmp_path / "random.pth"
    weights.make_checkpoint(path, "tiny")
    losses = [tuning.tuning(who, path)[1] for who in ("ours", "WKV as autodiffed scan", "token-by-token scan")]
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2


def test_a_job_is_measured_in_a_process_of_its_own(tmp_path: Path):
    path = tmp_path / "random.pth"
    weights.make_checkpoint(path, "tiny")
    worker = Worker(bench.Job("ours", "import", 0), path, "tiny")
    worker.measure()
    worker.close()
    assert 0 < worker.seconds < 60
    assert worker.peak > path.stat().st_size
    with pytest.raises(RuntimeError, match="nowhere"):
        Worker(bench.Job("ours", "decode", 1), tmp_path / "nowhere.pth", "tiny")


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
