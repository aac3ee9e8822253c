"""Conversations: answers alone are predicted, whatever the dialect; nothing of the text is lost."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv7_jax.tokenizer import ByteTokenizer, WorldTokenizer
from state_tuning.core.conversations import Learn, encode_record, exchanges, from_messages
from state_tuning.core.objective import boundary_merges, collate, encode_example

tokenizer = ByteTokenizer()


def learnt(text, max_len=512, learn: Learn = "answers"):
    """What is predicted of a text, window by window, the end token as $."""
    batches = [collate([one], len(one.tokens)) for one in encode_record(tokenizer, "", text, max_len, learn)]
    kept = [batch["targets"][batch["loss_mask"] > 0].tolist() for batch in batches]
    return [bytes(ids).replace(b"\0", b"$").decode() for ids in kept]


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("User: a\n\nAssistant: b", " b$"),
        ("User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d", " b\n\n d$"),
        ("System: s\n\nUser: a\n\nAssistant: b\n\nc\n\nUser: d\n\nAssistant: e", " b\n\nc\n\n e$"),
        ("A chat.\n\nUser: a\n\nAssistant: b", " b$"),
        ("User: a\r\n\r\nAssistant: b\r\n\r\nUser: c\r\n\r\nAssistant: d", " b\r\n\r\n d$"),
        ("\nUser: a\nAssistant: b\nUser: c\nAssistant: d", " b\n d$"),
        ("Assistant: hello\n\nUser: a\n\nAssistant: b", " hello\n\n b$"),
        ("User: a\n\nAssistant: one\nUser: no header\n\nUser: c\n\nAssistant: d", " one\nUser: no header\n\n d$"),
        ("User: a\n\nAssistant:\n\nUser: c\n\nAssistant: d", " d$"),
        ("User: a\n\nAssistant: b\n\nUser: thanks", " b\n\n"),
        ("Human: a\n\nAssistant: b", " b$"),
        ("Question: a\nAnswer: b\n\nQuestion: c\nAnswer: d", " b\n\n d$"),
        ("Q: a\n\nA: b", " b$"),
        ("Instruction: a\n\nInput: i\n\nResponse: b", " b$"),
        ("Below is a task.\n\n### Instruction:\na\n\n### Response:\nb", "\nb$"),
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>", "b<|im_end|>$"),
    ],
)
def test_answers_alone_are_predicted(text, answers):
    assert learnt(text) == [answers]
    assert "".join(part.context + part.answer for part in exchanges(text)) == text
    assert learnt(text, learn="all") == [text + "$"]


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time.\nThe end.",
        "User: alone",
        "Answer: 42",
        "The answer.\n\nQ: in the middle\n\nA: of a text",
        "He wrote User: and Assistant: in one line",
        "ROMEO: what?\n\nJULIET: nothing",
    ],
)
def test_other_texts_are_learnt_whole(text):
    assert not exchanges(text)
    assert learnt(text) == [text + "$"]


def test_one_exchange_is_a_prompt_and_its_completion():
    (one,) = encode_record(tokenizer, "", "User: a\n\nAssistant: b", 64)
    other = encode_example(tokenizer, "User: a\n\nAssistant:", " b")
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one[1:] == other[1:]


@given(st.lists(st.tuples(st.text("ab", min_size=1), st.text("cd", min_size=1, max_size=12)), min_size=1, max_size=6))
def test_a_long_conversation_is_cut_between_exchanges(turns):
    text = "\n\n".join(f"User: {a}\n\nAssistant: {b}" for a, b in turns)
    windows = encode_record(tokenizer, "", text, 64)
    assert all(len(one.tokens) <= 65 for one in windows)
    assert all(bytes(one.tokens.tolist()).startswith(b"User: ") for one in windows if not one.truncated)
    assert "".join(learnt(text, 64)).split() == [b for _, b in turns[:-1]] + [turns[-1][1] + "$"]


def test_no_answer_is_refused():
    with pytest.raises(ValueError, match="no answer to learn"):
        encode_record(tokenizer, "", "User: a\n\nAssistant: ", 64)


def test_an_answer_that_alone_is_too_long_keeps_some_of_its_prompt():
    (one,) = encode_record(tokenizer, "", "User: " + "a" * 99 + "\n\nAssistant: " + "b" * 240, 128)
    assert (len(one.tokens), one.truncated) == (129, 117 + 242 - 129)
    assert bytes(one.tokens[:32].tolist()) == b"a" * 20 + b"\n\nAssistant:"
    assert np.all(one.tokens[33:] == ord("b"))


USER = {"role": "user", "content": "a"}


def test_messages_become_turns():
    parts = [{"type": "text", "text": "b\r\n\r\n"}, {"type": "text", "text": "c"}]
    messages = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": parts}]
    assert from_messages(messages).text == "System: s\n\nUser: a\n\nAssistant: b\nc"
    assert from_messages([{"role": "system", "content": ""}, *messages[1:]]).text == "User: a\n\nAssistant: b\nc"
    shared = from_messages([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}])
    assert shared.text == "User: a\n\nAssistant: b"
    assert [(part.context, part.answer) for part in shared.exchanges] == [("User: a\n\nAssistant:", " b")]


CALL = {"function": {"name": "add", "arguments": '{"a": 1}'}}
MANY = [
    {"role": "system", "content": "s"},
    USER,
    {"role": "assistant", "content": "one\n\ntwo", "reasoning_content": "r"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "d", "weight": 0},
    {"role": "user", "content": "e"},
    {"role": "assistant", "content": "f", "weight": 1},
    {"role": "user", "content": "g"},
]


def learnt_text(found, reader):
    (one,) = encode_record(reader, "", found.text, 2000, "answers", found.answers)
    batch = collate([one], len(one.tokens))
    return reader.decode(batch["targets"][batch["loss_mask"] > 0].tolist())


@pytest.mark.parametrize("world", [False, True])
def test_every_answer_of_messages_is_learnt_with_the_end_of_its_turn(world):
    """Also those with chains of thought and calls; not system, user and tool turns, nor what has the weight 0."""
    reader = WorldTokenizer() if world else tokenizer
    begin, call, end = (
        " <think>\nr\n</think>\none\ntwo\n\n ```json\n",
        {"name": "add", "arguments": {"a": 1}},
        "\n```\n\n f\n\n",
    )
    found = learnt_text(from_messages(MANY), reader)
    assert (found[: len(begin)], found[-len(end) :]) == (begin, end)
    assert json.loads(found[len(begin) : -len(end)]) == call
    assert learnt_text(from_messages(MANY, "g1"), reader).startswith(" <think>\nr\n</think>\none\n\ntwo\n\n ```")
    assert learnt_text(from_messages(MANY[:3], "none"), reader) == "one\n\ntwo" + reader.decode([reader.eos_id])


def test_no_token_lies_on_both_sides_of_a_boundary():
    """Answers are encoded apart from what stands around them, as when text is generated after `Assistant:`."""
    reader = WorldTokenizer()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "wer\n\n"}] * 2
    joined = from_messages([{"role": "user", "content": "The Ans"}, {"role": "assistant", "content": "wer"}], "none")
    assert boundary_merges(reader, "The Ans", "wer")
    (one,) = encode_record(reader, "", joined.text, 64, "answers", joined.answers)
    ids = one.tokens.tolist()
    assert ids == [*reader.encode("The Ans"), *reader.encode("wer"), reader.eos_id]
    assert one.completion_start == len(reader.encode("The Ans"))
    found = from_messages(messages)
    (one,) = encode_record(reader, "", found.text, 64, "answers", found.answers)
    sides = [reader.decode([i]) for i in one.tokens[one.learnt].tolist()]
    assert "".join(sides) == " wer\n\n wer" + reader.decode([reader.eos_id])
    assert reader.decode(one.tokens.tolist()).removesuffix(reader.decode([reader.eos_id])) == found.text


def test_answers_with_nothing_between_them_are_one():
    found = from_messages([USER, {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}], "none")
    assert [(part.context, part.answer) for part in found.exchanges] == [("a", "bc")]


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "^a list of"),
        ("hi", "^a list of"),
        (["hi"], "^message 1 is not an object"),
        ([USER], "^no assistant message"),
        ([USER, {"role": "wizard", "content": "x"}], "^message 2: the role 'wizard' is not known; give one of system"),
        ([USER, {"content": "x"}], "^message 2: the role None"),
        ([{"role": "user"}, {"role": "assistant", "content": "b"}], r"^message 1 \(user\) has no text"),
        ([USER, {"role": "assistant", "content": None}], r"^message 2 \(assistant\) is empty"),
        ([USER, {"role": "assistant", "content": "b", "weight": 0}], "^no assistant message"),
        ([USER, {"role": "assistant", "content": " "}], r"^message 2 \(assistant\) is empty"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "part of type 'image'"),
    ],
)
def test_other_messages_are_refused(messages, line):
    with pytest.raises(ValueError, match=line):
        from_messages(messages)
