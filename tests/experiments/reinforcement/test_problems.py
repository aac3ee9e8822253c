"""Prompts of a run with rewards: forms of records, right answers that a reward needs, judges."""

import json

import numpy as np
import pytest

from experiments.config.methods import GRPOMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, EvaluateConfig
from experiments.reinforcement import problems
from experiments.reinforcement.problems import Problem, encode, judge, load, padded
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.reinforcement.rewards import Reward, RewardError, make_reward


def file_of(folder, records, name="mine.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def loaded(path, reward="number", **data):
    method = GRPOMethod(reward=reward)
    return load(method, DataConfig(train=path, validation=path, **data), EvaluateConfig(), 0)


def test_prompts_with_answers_of_any_form(tmp_path):
    records = [
        {"prompt": "1+1=", "completion": " so 2"},
        {"prompt": "1+2=", "answer": 3},
        {"prompt": "1+3=", "answer": "4", "completion": " 5"},
        {"messages": [{"role": "user", "content": "1+4"}, {"role": "assistant", "content": "5"}]},
        {"instruction": "1+5", "output": "6"},
    ]
    (job,) = loaded(file_of(tmp_path, records))
    assert [one.gold.strip() for one in job.train] == ["so 2", "3", "4", "5", "6"]
    assert [one.prompt for one in job.train][:3] == ["1+1=", "1+2=", "1+3="]
    assert job.train[3].prompt.endswith("Assistant:")
    assert job.train[1].record == records[1]
    assert job.job.name == "jsonl"
    assert job.job.held_out[0].completion == " so 2"


def test_held_out_prompts_are_a_part_of_the_file(tmp_path):
    path = file_of(tmp_path, [{"prompt": f"{i}", "answer": i} for i in range(30)])
    data = DataConfig(train=path, max_train=7)
    (job,) = load(GRPOMethod(reward="number"), data, EvaluateConfig(max_records=2), 0)
    assert (len(job.train), len(job.held_out)) == (7, 2)
    assert not {one.prompt for one in job.train} & {one.prompt for one in job.held_out}


def test_what_depends_on_the_records_and_the_reward_is_known(tmp_path):
    records = [{"prompt": f"{i}", "answer": i, "hint": i} for i in range(3)]
    (first,) = loaded(file_of(tmp_path, records))
    (other,) = loaded(file_of(tmp_path, [{**one, "hint": 9} for one in records], "b.jsonl"))
    (pattern,) = loaded(file_of(tmp_path, records), "regex:{answer}")
    assert len({first.fingerprint, other.fingerprint, pattern.fingerprint}) == 3


@pytest.mark.parametrize(
    ("record", "reward", "said"),
    [
        ({"prompt": "a"}, "number", 'reward number compares with a right answer: give "answer" or "completion"'),
        ({"prompt": "a", "answer": "none"}, "number", "the right answer 'none' has no number for reward number"),
        ({"prompt": "a", "answer": "seven"}, "letter", "has no letter that stands alone for reward letter"),
        ({"prompt": "a", "answer": [1]}, "number", "'answer' is [1]; give a text, a number"),
        ({"prompt": "a", "answer": True}, "number", "'answer' is True; give a text, a number"),
        ({"prompt": "", "answer": "1"}, "number", "the prompt is empty"),
        ({"prompt": 3, "answer": "1"}, "number", "'prompt' must be a string, not int"),
        ({"text": "plain 3"}, "number", "a plain text has no prompt to answer"),
        ({"question": "3"}, "number", "no 'prompt' and 'completion'"),
    ],
)
def test_a_record_that_will_not_do_is_one_line_with_its_place(tmp_path, record, reward, said):
    path = file_of(tmp_path, [{"prompt": "1", "answer": "A 1"}, record])
    with pytest.raises(UsageError) as raised:
        loaded(path, reward)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert said in str(raised.value)


def test_a_prompt_alone_does_where_nothing_is_compared(tmp_path):
    (job,) = loaded(file_of(tmp_path, [{"prompt": "a"}, {"prompt": "b"}]), "regex:yes")
    assert [one.gold for one in job.train] == ["", ""]


def test_the_number_of_a_choice_is_its_letter(tmp_path):
    (job,) = loaded(file_of(tmp_path, [{"prompt": "a", "answer": 2}, {"prompt": "b", "answer": 0}]), "letter")
    assert [one.gold for one in job.train] == ["C", "A"]


def test_benchmarks_give_their_prompts():
    data = DataConfig(tasks=("pocket:gsm8k", "pocket:mmlu"), max_train=3)
    with pytest.raises(UsageError, match=r"mmlu: the right answer .* has no number"):
        load(GRPOMethod(reward="number"), data, EvaluateConfig(max_records=2), 0)
    gsm8k, mmlu = load(GRPOMethod(reward="regex:x"), data, EvaluateConfig(max_records=2), 0)
    assert (gsm8k.job.name, mmlu.job.name, len(gsm8k.train), len(mmlu.held_out)) == ("gsm8k", "mmlu", 3, 2)
    assert gsm8k.train[0].prompt.startswith("Question: ")


def test_no_reward_is_one_line():
    with pytest.raises(UsageError, match=r"method\.reward is missing: give --reward number"):
        load(GRPOMethod(), DataConfig(tasks=("pocket:gsm8k",)), EvaluateConfig(), 0)


def test_prompts_are_padded_to_one_length():
    rows, cut = encode(ByteTokenizer(), [Problem("abcd", "", {}), Problem("", "", {})], 3)
    assert (rows, cut) == ([[98, 99, 100], [0]], 1)
    first, other = padded(rows, [[1] * 20])
    assert first.tokens.shape == (2, 32)
    assert other.tokens.shape == (1, 32)
    assert first.tokens[0, first.valid[0]].tolist() == rows[0]


def test_the_judge_scores_each_answer_by_its_own_problem(monkeypatch):
    asked = [Problem("a", "1", {}), Problem("b", "2", {})]
    scores = judge(asked, make_reward("number"))
    np.testing.assert_array_equal(scores(np.asarray([0, 1, 1]), ["1", "1", "2"]), [1.0, 0.0, 1.0])


def test_a_reward_that_fails_in_the_first_process_fails_in_all(monkeypatch):
    def score(answer):
        raise RewardError("no")

    monkeypatch.setattr(problems, "gather", lambda value: [[[], "no (of the first)"]])
    monkeypatch.setattr(problems, "is_lead", lambda: False)
    scores = judge([Problem("a", "1", {})], Reward("mine", score))
    with pytest.raises(RewardError, match=r"no \(of the first\)"):
        scores(np.asarray([0]), ["1"])
