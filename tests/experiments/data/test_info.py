"""What is said of a file of records is true, and every planted fault is named in one line."""

import json

import pytest

from experiments.config.data_info import ExamplesConfig
from experiments.config.overrides import UsageError
from experiments.data import info, info_report
from experiments.data.batching import encode_each
from experiments.data.jsonl import read_pairs
from rwkv7_jax.tokenizer import ByteTokenizer, WorldTokenizer

tokenizer = ByteTokenizer()


def talk(*texts):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


SOUND = [talk("a", "b", "c", "d" * (10 + i)) for i in range(8)]


def written(path, records):
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in records))
    return path


def test_counts_are_those_of_what_is_tuned_on(tmp_path):
    records = [*SOUND, {"prompt": "q", "completion": "a" * 600}, {"text": "plain " * 200}, SOUND[2]]
    path = written(tmp_path / "x.jsonl", records)
    config, watched = ExamplesConfig(max_length=128), []
    found = info.examine(path, config, tokenizer, lambda items, count: watched.append(count) or items)
    from experiments.config.schema import DataConfig

    parts = encode_each(tokenizer, read_pairs(path), DataConfig(max_length=128))
    assert found.records == 11
    assert watched == [12]
    assert found.forms == {"messages": 9, "prompts with completions": 1, "plain texts": 1}
    assert (found.answers, found.most_answers, found.roles) == (18, 2, {"user": 18, "assistant": 18})
    whole = [sum(len(one.tokens) + one.truncated for one in part) for part in parts]
    whole[9] -= len(parts[9]) - 1
    assert found.tokens is not None
    assert found.cut is not None
    assert (found.tokens.total, found.tokens.longest) == (sum(whole), 1202)
    assert found.tokens.median == sorted(whole)[5]
    masks = [
        one.learnt.sum() if one.learnt is not None else len(one.tokens) - one.completion_start
        for part in parts
        for one in part
    ]
    assert found.tokens.learnt == sum(masks)
    assert (found.cut.records, found.cut.tokens) == (1, 602 - 129)
    assert (found.cut.split, found.cut.examples) == (1, sum(map(len, parts)))
    assert found.repeated == (1, f"{path}:11 is {path}:3")


def test_suggested_settings_keep_records_whole(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"prompt": "q", "completion": "a" * (300 + i)} for i in range(40)])
    found = info.examine(path, ExamplesConfig(), tokenizer)
    assert found.suggested == {"data.max_length": 384, "data.batch_size": 16}
    config = ExamplesConfig(max_length=found.suggested["data.max_length"])
    again = info.examine(path, config, tokenizer).cut
    assert again is not None
    assert again.records == 0
    long = written(tmp_path / "y.jsonl", [{"prompt": "q", "completion": "a" * 3000}] * 3)
    assert info.examine(long, ExamplesConfig(), tokenizer).suggested == {"data.max_length": 3072, "data.batch_size": 2}


def test_a_sound_file_has_no_finding(tmp_path):
    assert info_report.findings(info.examine(written(tmp_path / "x.jsonl", SOUND), ExamplesConfig(), tokenizer)) == []


FAULTS = [
    (["{broken\n"], ":9: not JSON (", True),
    (["3\n"], ":9: a JSON object is wanted, not int", True),
    ([{"prompt": "a", "completion": ""}], ":9: the completion is empty", True),
    ([talk("a", "b", "c", " ")], ":9: 'messages': message 4 (assistant) is empty", True),
    ([talk("a")], ":9: 'messages': no assistant message follows another", True),
    ([{"messages": [{"role": "wizard", "content": "a"}]}], ":9: 'messages': message 1: the role 'wizard' is not", True),
    (
        [{"messages": [{"role": "user", "content": 3}]}],
        ":9: 'messages': message 1: the content of 'user' must be",
        True,
    ),
    ([{"prompt": "a", "text": "b"}], ":9: 'prompt' and 'text' on one line", True),
    ([{"question": "a", "answer": "b"}], "rename 'question' to \"prompt\" and 'answer'", True),
    (['{"text": "\\ud83d"}\n'], ":9: '\\ud83d' is half of a surrogate pair", True),
    (['{"text": "a", "text": "b"}\n'], ":9: not JSON (the key 'text' stands twice", True),
    ([{"text": "User: a\n\nAssistant:"}], ":9: the conversation has no answer", True),
    ([{"prompt": "a", "completion": "  "}], "1 empty answers, the first at", True),
    ([{"text": "User: how are you?\n\nFine"}], "1 texts begin as a conversation and have no answer", True),
    ([{"text": "caf\ufffd"}], "1 records have replacement characters (U+FFFD)", True),
    ([{"text": "cafÃ© au lait"}], "1 records have UTF-8 that was read as Latin-1", True),
    ([{"text": "a\u0000b"}], "1 records have control characters", True),
    (SOUND * 2, "16 of 24 records are equal to earlier ones", True),
    ([SOUND[1]], "1 of 9 records are equal to earlier ones", False),
    (
        [{"prompt": "q", "completion": "a" * 900}],
        "1 of 9 records are longer than data.max_length 512 and are cut",
        False,
    ),
    ([{"text": "a", "source": "x"}], "keys that are not used (records that have them): 'source' (1)", False),
]


@pytest.mark.parametrize(("records", "said", "fault"), FAULTS, ids=[said for _, said, _ in FAULTS])
def test_a_planted_fault_is_named_in_one_line(tmp_path, records, said, fault):
    path = written(tmp_path / "x.jsonl", [*SOUND, *records])
    found = info_report.findings(info.examine(path, ExamplesConfig(), tokenizer))
    (line,) = [one for one in found if said in one.text]
    assert line.fault is fault
    assert "\n" not in line.line


def test_lines_that_are_not_utf_8_are_counted_and_the_others_read(tmp_path):
    path = written(tmp_path / "x.jsonl", SOUND)
    path.write_bytes(path.read_bytes() + '{"text": "é"}\n'.encode("latin-1") * 2)
    found = info.examine(path, ExamplesConfig(), tokenizer)
    assert found.records == len(SOUND)
    (one,) = info_report.findings(found)
    assert f"2 of this kind, the first: {path}:9: not UTF-8 text (byte 10 of the line); if it is of Windows" in one.text


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"PAR1\x15", "is a Parquet file"), (b"\xff\xfe\xfa", "text (byte")]
)
def test_what_holds_no_records_is_refused(tmp_path, content, said):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        info.examine(path, ExamplesConfig(), tokenizer)


def test_boundaries_inside_a_token_are_noted(tmp_path):
    records = [{"prompt": f"The {i} Ans", "completion": "wer"} for i in range(4)]
    found = info_report.findings(
        info.examine(written(tmp_path / "x.jsonl", records), ExamplesConfig(), WorldTokenizer())
    )
    assert [one.text.startswith("in 4 of the first 1,000 prompts") for one in found] == [True]


def test_the_description_names_what_is_there(tmp_path):
    lines = info_report.describe(
        info.examine(written(tmp_path / "x.jsonl", SOUND), ExamplesConfig(), tokenizer), "byte"
    )
    assert lines[0].endswith(": 8 messages")
    assert lines[1].startswith("turns: 16 answers in 8 conversations, 2 each, at most 2; messages by role: user 16")
    assert lines[-1] == "suggested: --data.max_length 64 --data.batch_size 8"
