"""What a run tunes on when real benchmark files are given, and the table of the evaluation's benchmark."""

import json

import pytest

from experiments.config.loading import load_config
from experiments.config.overrides import UsageError
from experiments.config.schema import RunConfig, check
from experiments.data.jobs import load_jobs


def jobs_of(config):
    return load_jobs(config.data, config.evaluate, config.seed)


def write(path, count, start=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"{i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_real_training_and_scored_splits(tmp_path):
    write(tmp_path / "gsm8k" / "train.jsonl", 5)
    write(tmp_path / "gsm8k" / "test.jsonl", 30, 100)
    config = load_config("gsm8k", ["--data.dir", str(tmp_path), "--evaluate.max_records", "7"])
    (job,) = jobs_of(check(config))
    assert [pair.prompt for pair in job.train] == [f"Question: {i}?\nAnswer:" for i in range(5)]
    assert job.train[3].completion == " It is 3.\n#### 3"
    assert len(job.held_out) == len(job.records) == 7
    assert {int(record["question"][:-1]) for record in job.records} < set(range(100, 130))
    assert job.fingerprint == jobs_of(config)[0].fingerprint


def test_validation_is_held_out_of_the_real_training_split(tmp_path):
    write(tmp_path / "gsm8k" / "train.jsonl", 40)
    settings = ["--data.dir", str(tmp_path), "--evaluate.split", "validation"]
    (job,) = jobs_of(load_config("gsm8k", settings))
    assert len(job.held_out) >= 2
    assert {pair.prompt for pair in job.train + job.held_out} == {f"Question: {i}?\nAnswer:" for i in range(40)}
    assert not set(job.train) & set(job.held_out)


def test_mmlu_is_tuned_on_dev_where_nothing_else_is(tmp_path):
    for split, subject in (("dev", "anatomy"), ("test", "anatomy")):
        path = tmp_path / split / f"{subject}_{split}.csv"
        path.parent.mkdir()
        path.write_text(f"{split}?,a,b,c,d,B\n" * 4)
    (job,) = jobs_of(load_config("mmlu", ["--data.dir", str(tmp_path)]))
    assert {pair.completion for pair in job.train} == {" B"}
    assert all("dev?" in pair.prompt for pair in job.train)
    assert all("test?" in pair.prompt for pair in job.held_out)


def test_a_missing_folder_and_two_sources_are_told(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        jobs_of(load_config("arc", ["--data.dir", str(tmp_path / "nowhere")]))
    with pytest.raises(UsageError, match=r"data\.dir and data\.train are two sources"):
        check(load_config("gsm8k", ["--data.train", "x.jsonl"]))
    assert RunConfig().data.dir is None
