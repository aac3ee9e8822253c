"""The fact behind a pocket question: found for every question that one decides, and it names the answer's kind."""

import pytest

from experiments.pocket import benchmarks, question_kinds
from experiments.pocket.rationales import rationale
from experiments.pocket.world import default_world
from experiments.tasks.chains import chained

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_of_arc_has_its_rule_and_the_rule_leads_to_the_answer(split):
    for record in benchmarks.load("arc", split):
        told = rationale("arc", record)
        right = record["choices"]["text"][record["choices"]["label"].index(record["answerKey"])]
        assert told.endswith(".")
        wanted = "looks for" in record["question"]
        subject = right.removeprefix("the ").removeprefix("a ") if wanted else right
        assert subject in told, (record, told)


@pytest.mark.parametrize("split", SPLITS)
def test_facts_decide_sentences_of_common_sense_and_no_others(split):
    kinds = {True: 0, False: 0}
    for record in benchmarks.load("winogrande", split):
        told = rationale("winogrande", record)
        by_fact = question_kinds.kind("winogrande", record) == "common sense"
        assert bool(told) == by_fact, (record, told)
        assert not told or record[f"option{record['answer']}"] in told
        kinds[by_fact] += 1
    assert min(kinds.values()) > 0


def test_facts_are_true():
    world = default_world()
    stated = {(fact.entity, fact.value) for fact in world.base}
    for record in benchmarks.load("winogrande", "test"):
        told = rationale("winogrande", record)
        entity = record[f"option{record['answer']}"]
        assert not told or any(value in told for who, value in stated if who == entity)


def test_other_benchmarks_and_unknown_questions_have_none():
    assert rationale("mmlu", benchmarks.load("mmlu", "test")[0]) == ""
    unknown = {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    assert rationale("arc", unknown) == ""
    public = {"sentence": "Ann paid Bea because _ was late.", "option1": "Ann", "option2": "Bea", "answer": "2"}
    assert rationale("winogrande", public) == ""


def test_a_chain_tells_why_where_something_is_known_and_a_record_may_bring_its_own():
    unknown = {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    assert chained("arc", "why").to_example(unknown)[1] == " It is y, so Tom took B"
    for record in benchmarks.load("arc", "validation")[:40]:
        _, completion = chained("arc", "why", rationale).to_example(record)
        assert completion.startswith(f" {rationale('arc', record)} It is ")
        assert chained("arc", "why", rationale).score(record, [completion])["strict_match"] == 1.0
    own = {**unknown, "rationale": "Because z."}
    assert chained("arc", "why").to_example(own)[1] == " Because z. It is y, so Tom took B"
    score = chained("arc", "why").score(own, [" Whatever. It is y, so Tom took B"])
    assert score == {"strict_match": 1.0, "flexible_extract": 1.0, "chain_right": 1.0}
