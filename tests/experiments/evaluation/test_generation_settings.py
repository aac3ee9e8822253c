"""Generation arguments, read as the harness reads them."""

import pytest

from experiments.evaluation.generation_settings import LIMITS, Settings, read_settings
from rwkv7_jax.generation.sampling import SamplingParams


@pytest.mark.parametrize("name", LIMITS)
def test_every_name_of_the_longest_answer_counts(name):
    assert read_settings({"until": ["\n"], name: 5}, 256) == Settings(("\n",), 5, None)


def test_of_several_limits_the_harness_takes_the_first_of_its_list():
    assert read_settings({"max_completion_tokens": 4, "max_tokens": 3, "max_new_tokens": 2}, 256).limit == 2
    assert read_settings({"max_gen_toks": None, "max_tokens": 3}, 256).limit == 3


def test_null_is_not_given():
    names = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "num_beams", "seed", "anything")
    assert read_settings(dict.fromkeys(names), 7) == read_settings({}, 7) == Settings((), 7, None)


def test_settings_that_change_nothing_are_taken():
    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "presence_penalty": 0, "use_cache": True, "n": 1}
    assert read_settings(neutral | {"early_stopping": False, "top_k": -1}, 7) == Settings((), 7, None)


def test_sampling_is_asked_for_by_temperature_unless_it_is_switched_off():
    sampled = SamplingParams(temperature=0.5, top_p=0.9, top_k=3, max_new_tokens=7)
    asked = {"temperature": "0.5", "top_p": 0.9, "top_k": 3.0, "seed": 4}
    assert read_settings(asked, 7) == Settings((), 7, sampled, 4)
    assert read_settings(asked | {"do_sample": False}, 7).sampling is None
    assert read_settings({"do_sample": True}, 7).sampling is None


def test_stops_are_a_text_or_several():
    assert read_settings({"until": "a"}, 7).stops == ("a",)
    assert read_settings({"until": ["a", "", "b", "a"]}, 7).stops == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 4}, "num_beams 4: only 1"),
        ({"stop_words": "a"}, "'stop_words' is not known; known are until, max_gen_toks, max_new_tokens"),
        ({"temperature": -1}, "temperature -1: a number of at least 0"),
        ({"temperature": float("nan")}, "temperature nan: a number"),
        ({"top_p": 1.5}, "top_p 1.5: a number from 0 to 1"),
        ({"max_tokens": 0}, "max_gen_toks 0: a number of at least 1"),
        ({"max_tokens": "many"}, "max_gen_toks 'many': a number"),
        ({"until": [5]}, "until .*: a text or a list of texts"),
        ({"do_sample": "perhaps"}, "do_sample 'perhaps': true or false"),
    ],
)
def test_what_we_do_not_have_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(arguments, 256)
    assert "\n" not in str(caught.value)
