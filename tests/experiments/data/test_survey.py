"""What is said of the data is true: counts, what was cut, over which tokens losses are means."""

import pytest

from experiments.config.schema import DataConfig, EvaluateConfig
from experiments.data import batching, survey
from experiments.data.jobs import Job, load_jobs
from experiments.data.jsonl import Pair
from rwkv7_jax.tokenizer import ByteTokenizer, WorldTokenizer

PLAIN = "Loss: nats per completion token of held-out records, end token included; no token before the prompt."
PAIRS = [Pair("q" * 9, "a" * 9), Pair("q" * 9, "a" * 9), Pair("p" * 109, "c" * 240)]
TALK = Pair("", "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d")
tokenizer = ByteTokenizer()


def found(pairs, data):
    return survey.survey(tokenizer, pairs, batching.encode_each(tokenizer, pairs, data), data.learn)


def test_cuts_are_told_with_the_setting_that_keeps_all(capsys):
    data = DataConfig(max_length=128, batch_size=2)
    job = Job("mine", PAIRS, [PAIRS[0]], notes=["a note"])
    survey.tell(job, tokenizer, batching.encode_each(tokenizer, job.train, data), data, 6)
    out, err = capsys.readouterr()
    assert out == (
        "mine: 3 training records (1 of them repeated), 167 tokens of which 117 are learnt; 6 steps of 2 are 4 passes; "
        "1 held-out records\nmine: a note\n"
    )
    assert err == (
        "warning: mine: 1 of 3 training records and 0 of 1 held-out ones are longer than data.max_length 128 and were "
        "cut (1 lost the end of the completion and its end token); the longest has 350 tokens: --data.max_length 349 "
        "keeps all\nwarning: mine: 1 of 1 held-out records are training records too\n"
    )
    assert found(PAIRS, DataConfig(max_length=349)).cut == 0


def test_prompts_whose_end_would_be_one_token_with_the_completion_are_told(capsys):
    data, world = DataConfig(), WorldTokenizer()
    job = Job("mine", [Pair("The Ans", "wer"), Pair("Q: 1?\nA: ", "two"), Pair("Q: 1?\nA:", " two")], [Pair("a", " b")])
    survey.tell(job, world, batching.encode_each(world, job.train, data), data, 6)
    said = "in 2 of 3 training records the end of the prompt and the beginning of the completion would be one token"
    assert said in capsys.readouterr().err


def test_few_steps_are_a_part_of_a_pass():
    line = survey.describe("x", found([TALK] * 50, DataConfig()), 2, DataConfig(batch_size=1), 5)
    assert "5 steps of 1 are 10 % of one pass" in line
    assert "of 50 conversations the answers alone are learnt (--data.learn all learns every token)" in line
    whole = survey.describe("x", found([TALK], DataConfig(learn="all")), 2, DataConfig(learn="all"), 5)
    assert "conversations" not in whole


@pytest.mark.parametrize(
    ("pairs", "data", "line"),
    [
        (PAIRS, DataConfig(), PLAIN),
        (PAIRS[2:], DataConfig(max_length=340), f"{PLAIN} 1 of 1 held-out records were cut to data.max_length 340."),
        (
            PAIRS,
            DataConfig(max_length=128),
            f"{PLAIN} 1 of 3 held-out records were cut to data.max_length 128, 1 of them without the end of the "
            "completion and its end token.",
        ),
        (
            [Pair("", "text")],
            DataConfig(),
            "Loss: nats per token of held-out records, end token included; after an end token.",
        ),
        (
            [TALK],
            DataConfig(),
            "Loss: nats per token of held-out records, end token included; no token before the prompt. Conversations "
            "(1 records): the answers' tokens alone.",
        ),
        (
            [PAIRS[0], Pair("", "text")],
            DataConfig(),
            f"{PLAIN} Plain texts (1 records): every token, after an end token.",
        ),
    ],
)
def test_the_protocol_is_that_of_the_data(pairs, data, line):
    assert survey.protocol([found(pairs, data)], data.max_length) == line


def test_what_of_a_file_is_not_used_is_noted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"text": "{i}", "id": {i}}}\n' for i in range(20)))
    data = DataConfig(train=str(path), max_train=7)
    (job,) = load_jobs(data, EvaluateConfig(), 0)
    assert job.notes == [
        f"{path}: keys that are not used (records that have them): 'id' (20)",
        "7 of 18 training records are used (data.max_train)",
    ]
