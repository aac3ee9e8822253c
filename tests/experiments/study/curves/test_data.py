"""What the rows of a study are tuned on."""

import pytest

from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, EvaluateConfig
from experiments.data.jsonl import Pair
from experiments.pocket import text
from experiments.study.curves import data

PAIRS = [Pair(f"p{i}", f"c{i}") for i in range(30)]


@pytest.mark.parametrize("count", [2, 3, 30])
def test_shuffled_targets_are_all_there_and_none_at_its_own_prompt(count):
    found = data.shuffled(PAIRS[:count], 0)
    assert [pair.prompt for pair in found] == [pair.prompt for pair in PAIRS[:count]]
    assert sorted(pair.completion for pair in found) == sorted(pair.completion for pair in PAIRS[:count])
    assert all(pair.completion[1:] != pair.prompt[1:] for pair in found)
    assert found == data.shuffled(PAIRS[:count], 0)
    if count > 3:
        assert found != data.shuffled(PAIRS[:count], 1)


def test_one_record_cannot_be_shuffled():
    with pytest.raises(ValueError, match="no other record"):
        data.shuffled(PAIRS[:1], 0)


def test_a_benchmark_and_its_chain_are_two_jobs_with_one_set_of_records():
    tasks = ("pocket:mmlu", "pocket:mmlu+took")
    exact, chain = data.jobs_of(tasks, DataConfig(), EvaluateConfig(max_records=5), 0).values()
    assert (exact.name, chain.name) == ("mmlu", "mmlu+took")
    assert exact.records == chain.records
    assert [pair.prompt for pair in exact.train] == [pair.prompt for pair in chain.train]
    assert chain.train[0].completion.endswith(f"so Tom took{exact.train[0].completion}")


def test_an_unknown_phrasing_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"data\.chain: arc has no phrasing 'tok'"):
        data.jobs_of(("pocket:arc+tok",), DataConfig(), EvaluateConfig(), 0)


def test_plain_text_is_the_pocket_worlds_or_a_files(tmp_path):
    pocket = data.documents(3, None)
    stream = text.documents(data.TEXT_SEED)
    assert pocket == [Pair("", next(stream)) for _ in range(3)]
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\n\nthree\r\n\r\nfour\n")
    assert data.documents(2, str(path)) == [Pair("", "one\ntwo"), Pair("", "three")]
    path.write_text("\n\n")
    with pytest.raises(UsageError, match="has no text"):
        data.documents(2, str(path))
    with pytest.raises(UsageError):
        data.documents(2, str(tmp_path / "none.txt"))
