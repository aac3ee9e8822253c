"""Benchmark files in every public layout give the same records, and a wrong one gives a line with file and number."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.config.overrides import UsageError
from experiments.data import find
from experiments.data import load as sources
from experiments.data.jsonl import Line
from experiments.data.schema import to_record

QUESTION = {"question": 'Why, "so"?\nSay.', "choices": ["w", "x, y", "", "z"], "answer": 2}
GSM = {"question": "How many?", "answer": "1 + 1 = 2\n#### 2"}
ARC = {"id": "Q", "question": "Why?", "choices": {"text": ["no", "yes"], "label": ["1", "2"]}, "answerKey": "2"}
WINO = {"sentence": "Ann met Bea and _ left.", "option1": "Ann", "option2": "Bea", "answer": "1"}


def write_csv(path, count=3, subject_answer="C"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        row = [QUESTION["question"], *QUESTION["choices"], subject_answer]
        csv.writer(file).writerows([row] * count)


def write_jsonl(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def records(*args):
    return [line.record for line in sources.load(*args)]


def test_mmlu_csv(tmp_path):
    for subject in ("anatomy", "us_foreign_policy"):
        write_csv(tmp_path / "test" / f"{subject}_test.csv", 2)
        write_csv(tmp_path / "dev" / f"{subject}_dev.csv", 5)
    wanted = [QUESTION | {"subject": s} for s in ("anatomy", "anatomy", "us_foreign_policy", "us_foreign_policy")]
    assert records("mmlu", "test", tmp_path) == wanted
    lines = sources.load("mmlu", "dev", tmp_path)
    assert len(lines) == 10
    assert lines[1].where == f"{tmp_path}/dev/anatomy_dev.csv:3"
    assert find.splits("mmlu", tmp_path) == ["dev", "test"]


def test_public_jsonl_layouts(tmp_path):
    choices = [{"text": "no", "label": "1"}, {"text": "yes", "label": "2"}]
    raw = {"id": "Q", "question": {"stem": "Why?", "choices": choices}, "answerKey": "2"}
    write_jsonl(tmp_path / "ARC-V1" / "ARC-Challenge" / "ARC-Challenge-Dev.jsonl", raw)
    write_jsonl(tmp_path / "ARC-V1" / "ARC-Easy" / "ARC-Easy-Dev.jsonl", {"not": "read"})
    write_jsonl(tmp_path / "winogrande_1.1" / "train_xl.jsonl", WINO)
    write_jsonl(tmp_path / "winogrande_1.1" / "train_xs.jsonl", {"not": "read"})
    write_jsonl(tmp_path / "winogrande_1.1" / "dev.jsonl", WINO | {"answer": 2})
    write_jsonl(tmp_path / "gsm8k" / "test_first2.jsonl", GSM, GSM)
    apart = {"question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "D", "subject": "world religions"}
    write_jsonl(tmp_path / "mmlu" / "test.jsonl", apart)
    assert records("arc", "validation", tmp_path) == [ARC]
    assert records("winogrande", "train", tmp_path) == [WINO]
    assert records("winogrande", "validation", tmp_path) == [WINO | {"answer": "2"}]
    assert records("gsm8k", "test", tmp_path) == [GSM, GSM]
    (mmlu,) = records("mmlu", "test", tmp_path)
    assert mmlu == {"question": "q", "choices": list("abcd"), "answer": 3, "subject": "world_religions"}


def test_what_tfds_gives():
    """Bytes, arrays and class numbers."""
    choices = {"text": np.asarray([b"no", b"yes"], object), "label": np.asarray([0, 1])}
    arc = {"id": b"Q", "question": b"Why?", "choices": choices, "answerKey": np.int64(1)}
    wanted = ARC | {"choices": {"text": ["no", "yes"], "label": ["A", "B"]}, "answerKey": "B"}
    assert to_record("arc", Line(arc, "")) == wanted
    wino = {key: value.encode() for key, value in WINO.items() if key != "answer"} | {"label": 0}
    assert to_record("winogrande", Line(wino, "")) == WINO


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columnar_layouts(tmp_path, kind):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet

    def write(folder, split, rows, shard=""):
        table = pa.Table.from_pylist(rows)
        if kind == "parquet":
            path = tmp_path / folder / f"{split}{shard}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(table, path)
            return
        path = tmp_path / folder / split / f"data{shard}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

    mmlu = [QUESTION | {"subject": s} for s in ("anatomy", "virology")]
    write("mmlu/all", "test", mmlu, "-00000-of-00001")
    write("gsm8k/main", "train", [GSM], "-00000-of-00002")
    write("gsm8k/main", "train", [GSM | {"question": "Second?"}], "-00001-of-00002")
    write("ai2_arc/ARC-Challenge", "validation", [ARC])
    assert records("mmlu", "test", tmp_path) == mmlu
    assert records("gsm8k", "train", tmp_path) == [GSM, GSM | {"question": "Second?"}]
    assert records("arc", "validation", tmp_path) == [ARC]
    (tmp_path / "gsm8k" / "main" / f"test.{kind}").write_bytes(b"no table")
    with pytest.raises(UsageError, match=rf"test\.{kind}: not readable"):
        sources.load("gsm8k", "test", tmp_path)


def test_without_tfds_one_line_says_what_to_install(tmp_path, monkeypatch):
    home = tmp_path / "gsm8k" / "1.0.0"
    home.mkdir(parents=True)
    (home / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match=r"1\.0\.0: reading it needs tensorflow_datasets: pip install"):
        sources.load("gsm8k", "test", tmp_path)
    code = "import sys; sys.modules['tensorflow_datasets'] = None; import experiments.data.tfds_mmlu"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "needs tensorflow_datasets: pip install" in done.stderr


def test_our_tfds_builder_keeps_the_order(tmp_path):
    pytest.importorskip("array_record", reason="array_record is not installed")
    from experiments.data import tfds_mmlu

    for split, count in (("dev", 5), ("test", 4)):
        for subject in ("virology", "anatomy"):
            write_csv(tmp_path / "csv" / split / f"{subject}_{split}.csv", count)
    tfds_mmlu.prepare(tmp_path / "csv", tmp_path / "tfds")
    for split in ("dev", "test"):
        assert records("mmlu", split, tmp_path / "tfds") == records("mmlu", split, tmp_path / "csv")
    with pytest.raises(UsageError, match="no MMLU files under"):
        tfds_mmlu.prepare(tmp_path / "tfds" / "nothing", tmp_path / "other")


CSV, JSONL, ARC_FILE, WINO_FILE = (
    "anatomy_test.csv",
    "gsm8k/test.jsonl",
    "ARC-Challenge-Test.jsonl",
    "winogrande/test.jsonl",
)


@pytest.mark.parametrize(
    ("dataset", "name", "text", "line"),
    [
        ("mmlu", CSV, "q,a,b,c,d,A\nq,a,b,c,B\n", ":2: 5 columns, wanted 6: question, A, B, C, D, answer"),
        ("mmlu", CSV, 'q,a,b,c,d,A\n"q\nq",a,b,c,d,E\n', ":2: answer 'E' is none of A, B, C, D"),
        ("mmlu", CSV, "", ": empty, a subject needs at least one question"),
        ("mmlu", CSV, 'q,a,b,c,d,A\n"q,a,b', ":2: not CSV"),
        ("gsm8k", JSONL, '{"question": "q", "answer": "#### 1"}\n{"question": ', ":2: not JSON"),
        ("gsm8k", JSONL, '{"question": "q", "target": "1"}', ":1: no column 'answer'"),
        ("gsm8k", JSONL, '{"question": "q", "answer": "1"}', ":1: the answer has no line `#### n`: '1'"),
        ("gsm8k", JSONL, '{"question": 3, "answer": "#### 1"}', ":1: 'question' must be a string, not int"),
        ("gsm8k", JSONL, "", " is empty; write one JSON object on each line"),
        ("arc", ARC_FILE, json.dumps(ARC | {"answerKey": "C"}), ":1: answerKey 'C' is none of the labels 1, 2"),
        ("winogrande", WINO_FILE, json.dumps(WINO | {"answer": ""}), ":1: answer '' is neither 1 nor 2"),
        ("winogrande", WINO_FILE, json.dumps(WINO | {"sentence": "no"}), ":1: a winogrande sentence has no gap"),
    ],
)
def test_a_wrong_file_names_itself_and_the_line(tmp_path, dataset, name, text, line):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as error:
        sources.load(dataset, "test", tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}{line}")
    assert "\n" not in str(error.value)


def test_what_is_missing_is_told(tmp_path):
    write_jsonl(tmp_path / "gsm8k" / "train.jsonl", GSM)
    with pytest.raises(UsageError, match=r"gsm8k: no test split under .* \(there is: train\)"):
        sources.load("gsm8k", "test", tmp_path)
    with pytest.raises(
        UsageError, match=r"arc: no test split under .*no files of arc at all.*ARC-Challenge-Test\.jsonl"
    ):
        sources.load("arc", "test", tmp_path)
    with pytest.raises(UsageError, match=r"no folder .*nowhere, where"):
        sources.load("arc", "test", tmp_path / "nowhere")
    write_jsonl(tmp_path / "gsm8k" / "more" / "train_new.jsonl", GSM)
    with pytest.raises(UsageError, match="several files could be its train split"):
        sources.load("gsm8k", "train", tmp_path)
