"""A sample is a prompt without its answer."""

from hypothesis import given
from hypothesis import strategies as st

from experiments.data.jsonl import Pair
from experiments.data.samples import LONGEST, prompt_and_answer


def test_a_conversation_is_asked_its_first_question():
    text = "System: s\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d"
    assert prompt_and_answer(Pair("", text)) == ("System: s\n\nUser: a\n\nAssistant:", " b\n\n")
    assert prompt_and_answer(Pair("p", "c")) == ("p", "c")


@given(st.text("ab \n", min_size=2, max_size=400))
def test_of_a_text_a_part_is_left_to_continue(text):
    prompt, wanted = prompt_and_answer(Pair("", text))
    assert prompt
    assert wanted
    assert text.startswith(prompt + wanted)
    assert len(prompt) <= LONGEST
