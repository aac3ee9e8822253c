"""What a table says of the records that were scored."""

import json

import pytest

from experiments.evaluation import suite


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("test_first400.jsonl", "split test (test_first400.jsonl)"),
        ("test-sample.jsonl", "split test (test-sample.jsonl)"),
        ("test.jsonl", "split test"),
        ("main-test.jsonl", "split test"),
    ],
)
def test_a_file_that_is_a_part_of_a_split_is_named(file, told, tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / file).write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    (bench,) = suite.load(["gsm8k"], suite.Options(str(tmp_path), {"gsm8k": 0}))
    assert f", {told}, prefix tokens none" in bench.protocol
