"""Benchmarks after a chain of thought: prompts, completions and scores, on examples made by hand."""

import pytest

from experiments.pocket import benchmarks
from experiments.tasks import TASKS, Generate
from experiments.tasks.chains import chained, without_notes
from experiments.tasks.phrasings import BY_TASK

MMLU = {"question": " Which? \n", "choices": ["w", "x", "y", "z"], "answer": 2, "subject": "physics"}
ARC = {
    "id": "1", "question": "Why?", "answerKey": "3",
    "choices": {"text": ["because it is so", "no", "yes"], "label": ["1", "2", "3"]},
}  # fmt: skip
WINOGRANDE = {
    "sentence": "Ann paid Bea because _ had the bill.", "option1": "Ann", "option2": "Bea", "answer": "2",
}  # fmt: skip
GSM8K = {"question": "How many?", "answer": "It is 600 + 634 = <<600+634=1234>>1,234.\n#### 1,234"}


def test_mmlu_keeps_the_exact_prompt_and_the_chain_names_the_choice_then_the_letter():
    task = chained("mmlu", "took")
    prompt, _ = TASKS["mmlu"].to_example(MMLU)
    assert task.to_example(MMLU) == (prompt, " It is y, so Tom took C")
    assert task.requests(MMLU) == [Generate(prompt, ("\n", "</s>", "<|im_end|>"))]
    head = task.description(MMLU)
    body = prompt.removeprefix(head)
    shot = f"{body} It is y, so Tom took C\n\n"
    assert task.requests(MMLU, [MMLU, MMLU])[0].context == f"{head}{shot}{shot}{body}"


def test_arc_and_winogrande_list_their_choices():
    assert chained("arc", "answer").to_example(ARC) == (
        "Question: Why?\n1. because it is so\n2. no\n3. yes\nAnswer:",
        " It is yes. The answer is 3",
    )
    assert chained("winogrande", "so").to_example(WINOGRANDE) == (
        "Ann paid Bea because _ had the bill.\nA. Ann\nB. Bea\nAnswer:",
        " Bea, so the choice was B",
    )


@pytest.mark.parametrize(
    ("text", "strict", "flexible", "chain"),
    [
        (" It is y, so Tom took C", 1, 1, 1),
        (" It is x, so Tom took C", 1, 1, 0),
        (" It is y, so Tom took B", 0, 0, 1),
        (" It is y, so I took C.", 0, 1, 0),
        (" y", 0, 1, 0),
        (" A thing, no: y", 0, 1, 0),
        (" C or D", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_scores_of_choices(text, strict, flexible, chain):
    task = chained("mmlu", "took")
    assert task.score(MMLU, [text]) == {"strict_match": strict, "flexible_extract": flexible, "chain_right": chain}


def test_votes_are_counted_by_the_choice_or_the_number():
    task = chained("mmlu", "took")
    assert [task.answer(MMLU, text) for text in (" It is w, so Tom took B", "so D", "it is z", "?")] == [1, 3, 3, None]
    numbers = chained("gsm8k", "gold")
    assert [numbers.answer(GSM8K, text) for text in ("#### 1,234.", "so 1234", "none")] == ["1234", "1234", None]


def test_the_gold_chain_of_gsm8k_is_the_exact_protocols_example_on_every_record():
    for record in benchmarks.load("gsm8k", "validation"):
        assert chained("gsm8k", "gold").to_example(record) == TASKS["gsm8k"].to_example(record)
    assert chained("gsm8k", "gold").to_example(GSM8K) == TASKS["gsm8k"].to_example(GSM8K)


def test_other_phrasings_of_gsm8k_leave_the_calculator_out():
    assert chained("gsm8k", "plain").to_example(GSM8K)[1] == " It is 600 + 634 = 1,234.\n#### 1,234"
    assert chained("gsm8k", "words").to_example(GSM8K)[1] == " It is 600 + 634 = 1,234.\nThe answer is 1,234"
    assert without_notes("a <<1+1=2>>b <<") == "a b "


@pytest.mark.parametrize(
    ("text", "strict", "flexible", "chain"),
    [
        (" 600 + 634 = 1234\n#### 1234", 1, 1, 1),
        (" 600 + 634 = 1234\n1234 - 1 = 1233", 0, 0, 1),
        (" It is 1,234.", 0, 1, 0),
        ("#### 1234 #### 5", 1, 0, 0),
    ],
)
def test_a_chain_may_be_solved_and_end_wrongly(text, strict, flexible, chain):
    task = chained("gsm8k", "gold")
    assert task.score(GSM8K, [text]) == {"strict_match": strict, "flexible_extract": flexible, "chain_right": chain}


def test_without_equations_the_chain_is_as_right_as_its_answer():
    record = {"question": "?", "answer": "It is seven.\n#### 7"}
    assert chained("gsm8k", "gold").score(record, ["#### 7"])["chain_right"] == 1.0
    assert chained("gsm8k", "gold").score(record, ["#### 8"])["chain_right"] == 0.0
    with pytest.raises(ValueError, match="has no line `#### n`"):
        chained("gsm8k", "gold").to_example({"question": "?", "answer": "7"})


@pytest.mark.parametrize("name", ["mmlu", "gsm8k", "winogrande", "arc"])
def test_the_own_completion_of_every_record_gets_full_marks_in_every_phrasing(name):
    for wanted in BY_TASK[name]:
        task = chained(name, wanted)
        for record in benchmarks.load(name, "validation")[:60]:
            prompt, completion = task.to_example(record)
            assert task.score(record, [completion])["strict_match"] == 1.0
            assert task.score(record, [completion])["chain_right"] == 1.0
            assert task.requests(record)[0].context == prompt
            assert not any(stop in completion for stop in task.stop)
