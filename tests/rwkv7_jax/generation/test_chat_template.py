"""Conversations as the authors of G1 models write them, character for character and token for token."""

import re

import pytest

from rwkv7_jax.generation.chat_template import STOPS, THINK_MODES, answer_opening, assistant_spans, render
from rwkv7_jax.tokenizer import load_tokenizer

SYSTEM, USER = {"role": "system", "content": "xxx"}, {"role": "user", "content": "xxx"}
ANSWER = {"role": "assistant", "content": "xxx"}
MARS = {"role": "user", "content": "simulate SpaceX mars landing using python"}
TOOLS = (
    'Tools:\n- get_weather(location: string, unit?: "celsius" | "fahrenheit")\n- get_stock_price(ticker: string)\n'
    "- translate_text(text: string, target_language: string)\nReturn only a JSON function call."
)
RAIN = 'Translate "Will it rain tomorrow?" into Japanese.'
SYNC = "Schedule a 30-minute sync with Bob on 2026-05-08 afternoon."
ARGUMENTS = '{"date": "2026-05-08", "duration_minutes": 30, "time_window": "afternoon"}'
FREE_SLOTS = (
    '{"free_slots":[{"start":"2026-05-08T15:00:00+09:00","end":"2026-05-08T15:30:00+09:00"}],'
    '"bob_email":"bob@example.com"}'
)
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "find_free_slots", "arguments": ARGUMENTS}}]}  # fmt: skip

# Texts: RWKV-LM, RWKV-v7/RWKV7-G1x-templates.txt (b9563fc) and rwkv_v7_demo_rnn.py, spelled out. Ids: of the authors'
# own TRIE_TOKENIZER of PyPI `rwkv` for these texts.
OPEN, XXX = [261, 5585, 41693, 59], [59, 22790]
GOLDENS = {
    "user": ([USER], None, "User: xxx\n\nAssistant:", [24281, *XXX, *OPEN]),
    "two turns": (
        [USER, ANSWER, USER], None, "User: xxx\n\nAssistant: xxx\n\nUser: xxx\n\nAssistant:",
        [24281, 59, 22790, 261, 5585, 41693, 59, 22790, 261, 24281, 59, 22790, *OPEN],
    ),
    "system": (
        [SYSTEM, USER], None, "System: xxx\n\nUser: xxx\n\nAssistant:", [40812, 59, 22790, 261, 24281, *XXX, *OPEN]
    ),
    "system, two turns": (
        [SYSTEM, USER, ANSWER, USER], None,
        "System: xxx\n\nUser: xxx\n\nAssistant: xxx\n\nUser: xxx\n\nAssistant:",
        [40812, 59, 22790, 261, 24281, 59, 22790, 261, 5585, 41693, 59, 22790, 261, 24281, 59, 22790, *OPEN],
    ),
    "think": ([USER], "on", "User: xxx\n\nAssistant: <think", [24281, *XXX, *OPEN, 295, 35762]),
    "fake think": (
        [USER], "off", "User: xxx\n\nAssistant: <think>\n</think", [24281, *XXX, *OPEN, 295, 35762, 63, 11, 754, 35762]
    ),
    "think a bit": (
        [USER], "short", "User: xxx (think a bit)\n\nAssistant: <think",
        [24281, 59, 22790, 275, 35762, 332, 21365, 42, *OPEN, 295, 35762],
    ),
    "think a lot": (
        [USER], "long", "User: xxx (think a lot)\n\nAssistant: <think",
        [24281, 59, 22790, 275, 35762, 332, 22031, 42, *OPEN, 295, 35762],
    ),
    "system, think a bit": (
        [SYSTEM, USER], "short", "System: xxx\n\nUser: xxx (think a bit)\n\nAssistant: <think",
        [40812, 59, 22790, 261, 24281, 59, 22790, 275, 35762, 332, 21365, 42, *OPEN, 295, 35762],
    ),
    "the demo's": (
        [MARS], "on", "User: simulate SpaceX mars landing using python\n\nAssistant: <think",
        [24281, 59, 57236, 44898, 31377, 52092, 40085, 46966, *OPEN, 295, 35762],
    ),
    "empty lines": (
        [{"role": "user", "content": " one\r\n\r\n\r\ntwo\n"}], None, "User: one\ntwo\n\nAssistant:",
        [24281, 59, 22226, 11, 8851, *OPEN],
    ),
    "functions": (
        [{"role": "developer", "content": TOOLS}, {"role": "user", "content": RAIN}], None,
        f"System: {TOOLS}\n\nUser: {RAIN}\n\nAssistant:",
        [40812, 59, 37473, 59, 11, 46, 21751, 96, 49858, 41, 54136, 59, 47429, 45, 32343, 805, 269, 7220, 2184, 2243,
         35, 359, 269, 1866, 1930, 7467, 1848, 117, 381, 11, 46, 21751, 96, 35708, 96, 35430, 41, 42373, 59, 47429, 42,
         11, 46, 60668, 96, 27139, 41, 27139, 59, 47429, 45, 47506, 96, 54122, 59, 47429, 42, 11, 40721, 31581, 332,
         29141, 56292, 30380, 47, 261, 24281, 59, 59028, 269, 24332, 4601, 31820, 57439, 799, 31162, 55107, 47, *OPEN],
    ),
    "function output": (
        [{"role": "user", "content": SYNC}, CALL, {"role": "tool", "tool_call_id": "1", "content": FREE_SLOTS}], None,
        "User: Schedule a 30-minute sync with Bob on 2026-05-08 afternoon.\n\nAssistant: ```json\n"
        '{"name":"find_free_slots","arguments":{"date":"2026-05-08","duration_minutes":30,"time_window":"afternoon"}}\n'
        f"```\n\nUser: Function output:\n{FREE_SLOTS}\n\nAssistant:",
        [24281, 59, 55308, 332, 3503, 46, 41854, 32170, 32487, 19527, 4712, 3493, 646, 46, 625, 46, 628, 59106, 47,
         *OPEN, 21214, 26060, 11, 2364, 26290, 5181, 25423, 96, 25457, 96, 35662, 5178, 58155, 23259, 25107, 5181, 640,
         646, 46, 625, 46, 628, 5178, 53924, 96, 49417, 388, 650, 544, 27165, 96, 42521, 5181, 33661, 26328, 5200, 11,
         6884, 261, 24281, 59, 55049, 46731, 59, 11, 2364, 25457, 96, 35662, 5182, 2364, 35691, 5181, 640, 646, 46, 625,
         46, 628, 85, 635, 59, 620, 59, 620, 44, 629, 59, 620, 5178, 7463, 5181, 640, 646, 46, 625, 46, 628, 85, 635,
         59, 650, 59, 620, 44, 629, 59, 620, 399, 1685, 35, 7170, 96, 34284, 5181, 7170, 65, 49131, 47, 7272, 399,
         *OPEN],
    ),
    "Chinese": (
        [{"from": "human", "value": "你好。"}, {"from": "gpt", "value": "好的。"}, {"from": "human", "value": "谢谢"}],
        None, "User: 你好。\n\nAssistant: 好的。\n\nUser: 谢谢\n\nAssistant:",
        [24281, 59, 33, 10464, 11685, 28329, 11, 5585, 41693, 59, 33, 11685, 14734, 28329, 11, 24281, 59, 33, 16774,
         16774, *OPEN],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDENS)
def test_texts_and_ids_are_the_published_ones(name):
    messages, think, text, ids = GOLDENS[name]
    assert render(messages, think=think) == text
    assert load_tokenizer("world").encode(render(messages, think=think)) == ids


def test_answers_keep_their_empty_lines_but_not_before_a_header():
    answer = {"role": "assistant", "content": "<think>\none\n\ntwo\n</think>\nthree\r\n\r\nUser: no\n\nUsers\n"}
    kept = "Assistant: <think>\none\n\ntwo\n</think>\nthree\nUser: no\n\nUsers"
    assert render([answer], add_generation_prompt=False) == kept
    assert "\n\n" not in render([answer], add_generation_prompt=False, keep_empty_lines=False)


def test_a_user_says_how_its_answer_begins():
    short = {"role": "user", "content": "a", "think": "short"}
    assert render([short, ANSWER, USER], think="off") == (
        "User: a (think a bit)\n\nAssistant: xxx\n\nUser: xxx\n\nAssistant: <think>\n</think"
    )
    assert render([short], think="off") == "User: a (think a bit)\n\nAssistant: <think"
    assert render([USER, ANSWER], think="long", add_generation_prompt=False) == "User: xxx\n\nAssistant: xxx"


def test_parts_reasoning_and_empty_turns():
    parts = [{"type": "text", "text": "one "}, "two"]
    answer = {"role": "assistant", "content": "four", "reasoning_content": "three\n"}
    messages = [{"role": "system", "content": " "}, {"role": "user", "content": parts}, answer]
    assert render(messages, add_generation_prompt=False) == (
        "User: one two\n\nAssistant: <think>\nthree\n</think>\nfour"
    )
    assert render([{"role": "user", "content": None}]) == "User:\n\nAssistant:"
    assert render([]) == "Assistant:"


def test_spans_are_the_answers():
    messages = [SYSTEM, USER, {"role": "assistant", "content": "one\n\ntwo"}, {"role": "system", "content": ""}]
    messages += [USER, {"role": "assistant", "content": ""}, {"role": "user", "content": "Assistant: x"}, ANSWER]
    text, spans = assistant_spans(messages)
    assert [text[begin:end] for begin, end in spans] == [" one\ntwo", " xxx"]
    assert text == render(messages, add_generation_prompt=False, keep_empty_lines=False)
    kept, kept_spans = assistant_spans(messages, keep_empty_lines=True)
    assert kept == render(messages, add_generation_prompt=False)
    assert kept[slice(*kept_spans[0])] == " one\n\ntwo"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "admin", "content": "x"}, "message 2: the role 'admin' is not known; give one of system, developer"),
        ({"content": "x"}, "message 2: the role None"),
        ({"role": ["user"], "content": "x"}, "message 2: the role"),
        ({"role": "user", "content": 3}, "message 2: the content of 'user' must be text or text parts, not int"),
        ({"role": "user", "content": [3]}, "message 2: the content of 'user' has a part that is not text: 3"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "message 2: a chat turn has a part of type 'image_url'"),
        ({"role": "user", "content": "\ud800"}, "message 2: the content of 'user' has half characters"),
        ({"role": "user", "content": "x", "think": "hard"}, "message 2: think must be one of on, short, long, off"),
        ({"role": "assistant", "tool_calls": [3]}, "message 2: a tool call needs"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "message 2: the arguments of the tool call 'f' are not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": float("nan")}}}]},
            "message 2: the arguments of the tool call 'f' are not JSON",
        ),
    ],
)
def test_wrong_messages_are_named_in_one_line(message, error):
    for function in (render, assistant_spans):
        with pytest.raises(ValueError, match=re.escape(error)) as raised:
            function([USER, message])
        assert "\n" not in str(raised.value)


def test_an_answer_ends_before_the_header_of_any_turn():
    assert {stop.strip("\n") for stop in STOPS} == {"User:", "System:", "Assistant:"}
    assert all(stop.startswith("\n\n") for stop in STOPS)
    assert {answer_opening(think).partition(":")[0] for think in (None, *THINK_MODES)} == {"Assistant"}
