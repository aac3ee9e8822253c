"""Phrasings of answers after a chain: which there are, and what is read out of odd texts."""

import pytest

from experiments.tasks import phrasings
from experiments.tasks.phrasings import answer_pattern, last_choice, last_label, number_pattern, phrasing

TOOK = phrasings.CHOICES["took"]


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (
            "nothing",
            r"mmlu has no phrasing 'nothing' \(there are: took, so, answer, wanted, short, why, or a template\)",
        ),
        (
            "so {letter}",
            r"the template 'so \{letter\}' needs \{value\} or \{why\} and, once and after them, \{letter\}",
        ),
        ("{letter} is {value}", "needs"),
        ("{value}", "needs"),
        ("{value} {letter} {letter}", "needs"),
        ("{value} {answer} {letter}", r"has a field 'answer' \(of mmlu: value, why, letter\)"),
        ("{value} {letter", "cannot be read"),
    ],
)
def test_a_template_without_chain_or_answer_is_refused_in_one_line(wanted, line):
    with pytest.raises(ValueError, match=line) as error:
        phrasing("mmlu", wanted)
    assert "\n" not in str(error.value)


def test_a_template_of_ones_own_begins_with_a_space():
    assert phrasing("mmlu", "{value}: {letter}") == ("own", " {value}: {letter}")
    assert phrasing("gsm8k", "\n{steps} = {answer}").template == "\n{steps} = {answer}"
    assert phrasing("arc", "took") == ("took", TOOK)


@pytest.mark.parametrize(
    ("spec", "by_task"),
    [
        (None, (None, None)),
        ("auto", ("auto", "auto")),
        ("mmlu=took, gsm8k=auto", ("took", "auto")),
        ("mmlu=took", ("took", None)),
        ("{value} = {letter}", ("{value} = {letter}", "{value} = {letter}")),
    ],
)
def test_one_setting_says_it_for_all_benchmarks_or_each(spec, by_task):
    assert (phrasings.chosen(spec, "mmlu"), phrasings.chosen(spec, "gsm8k")) == by_task


def test_a_setting_for_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match=r"'mmul=took' is not BENCHMARK=PHRASING \(benchmarks: mmlu, gsm8k"):
        phrasings.chosen("mmul=took,gsm8k=gold", "mmlu")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" It is red, so Tom took B", ("red", "B")),
        ("It is red, so Tom took B and left.", ("red", "B")),
        ("\n It is a red, red rose, so Tom took D", ("a red, red rose", "D")),
        (" It is red, so Tom took Bread", None),
        (" It is red, so Tom took E", None),
        (" Well, it is red, so Tom took B", None),
        (" It is so Tom took B", None),
        (" It is red. so Tom took B", None),
        ("", None),
        (" It is x, so Tom took A, so Tom took B", ("x", "A")),
    ],
)
def test_the_whole_text_up_to_the_label_has_the_form(text, found):
    match = answer_pattern(TOOK, "ABCD").match(text)
    assert (match and (match["value"], match["letter"])) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (" It is red, so Tom took B", ""),
        ("It is red, so Tom took B", ""),
        (" A rose is red. It is red, so Tom took B", "A rose is red."),
    ],
)
def test_a_reason_may_be_there_or_not(text, why):
    match = answer_pattern(phrasings.CHOICES["why"], "ABCD").match(text)
    assert match is not None
    assert (match["why"].strip(), match["value"], match["letter"]) == (why, "red", "B")


def test_signs_of_regular_expressions_in_a_template_and_in_labels_are_plain_text():
    match = answer_pattern(" ({value})? [{letter}]", ("1", "2+")).match(" (x.y)? [2+]")
    assert match is not None
    assert match["letter"] == "2+"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("so B, no: C", "C"),
        ("A", "A"),
        ("took A", "A"),
        ("A dog", None),
        ("It is B. A dog barks", "B"),
        ("B\nA dog", "B"),
        ("it was A and not more", "A"),
        ("(A) or (D)!", "D"),
        ("Vitamin C2, ABC, d", None),
        ("don't D'Artagnan", "D"),
        ("", None),
    ],
)
def test_the_last_label_that_stands_alone_counts_and_an_article_does_not(text, label):
    assert last_label(text, "ABCD") == label


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a red rose", 1),
        ("red, then blue", 2),
        ("reddish", None),
        ("red rose or red", 0),
        ("nothing", None),
        ("rose", None),
        ("BLUE", None),
    ],
)
def test_the_choice_whose_text_stands_last_counts_the_longer_of_two_that_end_there(text, place):
    assert last_choice(text, ["red", "red rose", "blue", "", " "]) == place


def test_two_equal_choices_are_no_choice():
    assert last_choice("it is red", ["red", "red", "blue"]) is None


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("gold", "1 + 1 = 2\n#### 2", "2"),
        ("gold", "#### -1,200.5 and #### 3", "-1,200.5"),
        ("gold", "####2", None),
        ("words", "So it is.\nThe answer is 17.", "17."),
        ("words", "#### 17", None),
    ],
)
def test_the_number_stands_behind_the_words_of_the_template(name, text, number):
    match = number_pattern(phrasings.NUMBERS[name]).search(text)
    assert (match and match.group(1)) == number
