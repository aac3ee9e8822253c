"""Files of users: encodings and dialects are read rightly or refused in one line that names the way."""

import gzip
import json

import pytest

from experiments.config.overrides import UsageError
from experiments.data.jsonl import Pair, check_answers, exchanges_of, read_lines, read_pairs, to_pair, unused_keys

TEXT = '{"prompt": "é?", "completion": " ü"}\n\n{"text": "雨"}\n'
PAIRS = [Pair("é?", " ü"), Pair("", "雨")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_unicode_in_every_form(tmp_path, encoding, ends):
    path = tmp_path / "x.jsonl"
    path.write_bytes(TEXT.replace("\n", ends).encode(encoding))
    assert read_pairs(path) == PAIRS
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_pairs(path) == PAIRS


def test_marks_of_files_put_together_and_arrays(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes("".join(f"\ufeff{line}\n" for line in TEXT.split("\n") if line).encode())
    assert read_pairs(path) == PAIRS
    records = [json.loads(line) for line in TEXT.split("\n") if line]
    for indent in (None, 2):
        path.write_text(json.dumps(records, indent=indent))
        assert read_pairs(path) == PAIRS
        assert read_lines(path)[1].where == f"{path}: record 2"


def test_messages_and_absent_columns(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    chat = [{"role": role, "content": text} for role, text in turns]
    shared = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns]
    path = tmp_path / "x.jsonl"
    rows(path, {"messages": chat}, {"conversations": shared, "text": None}, {"text": "t", "prompt": None, "id": 1})
    text = "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d"
    assert read_pairs(path) == [Pair("", text), Pair("", text), Pair("", "t")]
    assert unused_keys(read_lines(path)) == {"id": 1}
    path.write_text(json.dumps({"system": "s", "conversations": shared}) + '\n{"text": "a", "system": "s"}\n')
    assert read_pairs(path)[0] == Pair("", f"System: s\n\n{text}")
    assert unused_keys(read_lines(path)) == {"system": 1}


def rows(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_lines(path)


def test_instructions_are_one_exchange(tmp_path):
    """Stanford Alpaca's records have the rendered text as a column too, which is not read."""
    first = {"instruction": "Add.", "input": "2\n\n3", "output": "5", "text": "Below is an instruction"}
    second = {"instruction": "Name one.", "input": "", "output": "Blue", "system": "s"}
    lines = rows(tmp_path / "x.jsonl", first, second)
    found = [to_pair(line) for line in lines]
    assert found == [
        Pair("", "User: Add.\n2\n3\n\nAssistant: 5"),
        Pair("", "System: s\n\nUser: Name one.\n\nAssistant: Blue"),
    ]
    assert [[part.answer for part in exchanges_of(pair)] for pair in found] == [[" 5"], [" Blue"]]
    assert unused_keys(lines) == {"text": 1}
    assert to_pair(lines[0], "none") == Pair("", "Add.\n2\n\n35")


def test_a_prompt_beside_messages_is_not_used(tmp_path):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = rows(tmp_path / "x.jsonl", {"prompt": "a", "prompt_id": "7", "messages": chat})
    assert to_pair(lines[0]) == Pair("", "User: a\n\nAssistant: b")
    assert unused_keys(lines) == {"prompt": 1, "prompt_id": 1}


def test_what_is_quoted_inside_a_turn_is_no_turn(tmp_path):
    """Of messages the places of the answers are known; headers of another format inside them are text."""
    quoted = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny"
    chat = [{"role": "user", "content": quoted}, {"role": "assistant", "content": "b\n\nAssistant: c"}]
    (line,) = rows(tmp_path / "x.jsonl", {"messages": chat})
    (part,) = exchanges_of(to_pair(line))
    assert part.answer == " b\nAssistant: c"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": [{"role": "wizard", "content": "a"}]}, "'messages': message 1: the role 'wizard' is not known"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'conversations': message 1: the content of 'human' must"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
            "message 2 (assistant)",
        ),
        ({"instruction": "a", "output": ""}, "the output is empty, there is nothing to learn"),
        ({"instruction": "a", "output": ["b"]}, "'output' must be a string, not list"),
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' must be a string, not int"),
    ],
)
def test_wrong_turns_are_refused_with_file_and_line(tmp_path, record, said):
    path = tmp_path / "x.jsonl"
    lines = rows(path, {"text": "sound"}, record)
    with pytest.raises(UsageError, match=r"^.*x\.jsonl:2: ") as error:
        to_pair(lines[1])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"prompt": "a", "text": "b"}', ":1: 'prompt' and 'text' on one line: what is learnt? a line needs"),
        ('{"prompt": "a", "completion": "b", "text": "c"}', ":1: 'prompt' and 'completion' and 'text' on one line"),
        ('{"messages": [], "text": "c"}', ":1: 'text' and 'messages' on one line"),
        ('{"text": "a", "text": "b"}', ":1: not JSON (the key 'text' stands twice in an object)"),
        ('{"prompt": null, "completion": "b"}', ":1: no 'prompt'; a line needs"),
        ('{"prompt": "a", "completion": null}', ":1: no 'completion'; a line needs"),
        ('{"prompt": [{"role": "user"}], "completion": "b"}', ":1: 'prompt' must be a string, not list; give turns as"),
        (
            '{"text": "a"},\n{"text": "b"},\n',
            ":1: not JSON (Extra data: line 1 column 14 (char 13)); leave out the comma",
        ),
        ('{\n  "text": "a"\n}\n', ":1: a JSON object over several lines; write each record on one line"),
        ('[{"text": "a"},\n{"text": "b"},]', ": not JSON ("),
        ("[]", " is empty; write one JSON object on each line"),
        ('[{"text": "a"},\n3]', ": record 2: a JSON object is wanted, not int"),
        ("prompt,completion\na,b\n", ":1: not JSON (Expecting value: line 1 column 1 (char 0)); write one JSON object"),
        ('{"messages": "hi"}', ":1: 'messages': a list of"),
        ('{"messages": [{"role": "user", "content": "a"}]}', ":1: 'messages': no assistant message"),
        (b"PAR1\x15\x04", " is a Parquet file; write it as jsonl"),
        (b"PK\x03\x04\0\0", " is a zip archive; write it as jsonl"),
        (b"\x1f\x8b\x08\0\0", ": damaged gzip ("),
        ('{"text": "a"}\n{"text": "é"}'.encode("latin-1"), ": not UTF-8 text (byte 24) in line 2; if it is of Windows"),
        ('{"text": "a"}'.encode("utf-16") + b"\0", ": neither UTF-8 nor UTF-16 text (byte 28)"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as error:
        read_pairs(path)
    assert str(error.value).startswith(f"{path}{line}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ("question answer", """rename 'question' to "prompt" and 'answer' to "completion\""""),
        ("instruction response", """rename 'instruction' to "prompt" and 'response' to "completion\""""),
        ("prompt response", """rename 'response' to "completion\""""),
    ],
)
def test_keys_of_other_tools_are_named(tmp_path, keys, advice):
    (tmp_path / "x.jsonl").write_text(json.dumps(dict.fromkeys(keys.split(), "a")))
    with pytest.raises(UsageError, match=r"a line needs .*has: ") as error:
        read_pairs(tmp_path / "x.jsonl")
    assert advice in str(error.value)


def test_long_and_strange_keys_make_a_short_line(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"\u202e\x1b[31m" + "k" * 5000: 1}))
    with pytest.raises(UsageError) as error:
        read_pairs(tmp_path / "x.jsonl")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_a_conversation_without_an_answer():
    with pytest.raises(UsageError, match=r"^x:3: the conversation has no answer"):
        check_answers(Pair("", "User: a\n\nAssistant:"), "x:3")
    assert check_answers(Pair("User: a\n\nAssistant:", " b"), "x:3").completion == " b"
