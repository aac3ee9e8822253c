"""Benchmark tasks: the exact prompts and scores of lm-evaluation-harness, on examples made by hand."""

import math

import pytest

from experiments.pocket import benchmarks
from experiments.tasks import PROTOCOLS, TASKS, Fewshot, Generate, Loglikelihood
from experiments.tasks.fewshot import choose
from experiments.tasks.gsm8k import flexible, strict

MMLU = {"question": " Which? \n", "choices": ["w", "x", "y", "z"], "answer": 2, "subject": "high_school_physics"}
ARC = {
    "id": "1", "question": "Why?", "answerKey": "3",
    "choices": {"text": ["because it is so", "no", "yes"], "label": ["1", "2", "3"]},
}  # fmt: skip
WINOGRANDE = {
    "sentence": "Ann paid Bea because _ had the bill.", "option1": "Ann", "option2": "Bea", "answer": "2",
}  # fmt: skip
GSM8K = {"question": "How many?", "answer": "It is 600 + 634 = <<600+634=1234>>1,234.\n#### 1,234"}


def test_mmlu_prompts() -> None:
    task = TASKS["mmlu"]
    head = "The following are multiple choice questions (with answers) about high school physics.\n\n"
    body = "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert task.requests(MMLU) == [Loglikelihood(head + body, f" {letter}") for letter in "ABCD"]
    context = task.requests(MMLU, [MMLU, MMLU])[0].context
    assert context == f"{head}{body} C\n\n{body} C\n\n{body}"
    assert task.to_example(MMLU) == (head + body, " C")


def test_mmlu_score() -> None:
    assert TASKS["mmlu"].score(MMLU, [-2.0, -3.0, -1.0, -4.0]) == {"acc": 1.0}
    assert TASKS["mmlu"].score(MMLU, [-1.0, -3.0, -1.0, -4.0]) == {"acc": 0.0}


def test_rwkv_mmlu_prompt() -> None:
    task = PROTOCOLS["mmlu_rwkv"]
    head = "User: You are a very talented expert in high school physics. Answer this question:\n"
    body = "\nA. w\nB. x\nC. y\nD. z\n\nAssistant: The answer is"
    record = {**MMLU, "question": "Why\r\nso?"}
    assert task.requests(record) == [Loglikelihood(f"{head}Why\nso?{body}", f" {letter}") for letter in "ABCD"]
    assert task.prefix == (0,)
    with pytest.raises(ValueError, match="zero-shot"):
        task.requests(record, [record])


POOL = [{"n": n} for n in range(40)]


def test_seeded_shots_are_those_of_the_harness() -> None:
    """The draws of Random(1234).sample, one record after the other, as `ContextSampler` makes them."""
    numbers = [[shot["n"] for shot in shots] for shots in choose(Fewshot("train", "seeded"), POOL, POOL[:2], 5)]
    assert numbers == [[28, 7, 0, 5, 37], [2, 5, 6, 22, 15]]
    assert choose(Fewshot("train", "seeded"), POOL, POOL[:3], 5)[:2] == choose(
        Fewshot("train", "seeded"), POOL, POOL[:2], 5
    )


def test_a_record_is_never_its_own_example() -> None:
    fewshot = Fewshot("train", "seeded", drops_equal=True)
    pool = POOL[:6] + POOL[:1] * 2
    for record, shots in zip(pool, choose(fewshot, pool, pool, 5), strict=True):
        assert record not in shots
        assert len(shots) == 5


def test_first_shots_keep_their_order_and_too_few_are_told() -> None:
    fewshot = Fewshot("dev", "first_n")
    assert choose(fewshot, POOL, POOL[:2], 3) == [POOL[:3]] * 2
    assert choose(fewshot, [], POOL[:2], 0) == [[], []]
    with pytest.raises(ValueError, match="5 shots need 5 examples of split dev, there are 4"):
        choose(fewshot, POOL[:4], POOL, 5)
    with pytest.raises(ValueError, match="5 shots need 6 examples"):
        choose(Fewshot("train", "seeded", drops_equal=True), POOL[:5], POOL, 5)


def test_arc_prompts_and_shots() -> None:
    task = TASKS["arc"]
    body = "Question: Why?\nAnswer:"
    assert task.requests(ARC) == [Loglikelihood(body, f" {text}") for text in ARC["choices"]["text"]]
    assert task.requests(ARC, [ARC])[1] == Loglikelihood(f"{body} yes\n\n{body}", " no")
    assert task.to_example(ARC) == (body, " yes")


def test_arc_norm_divides_by_characters_of_the_choice() -> None:
    scores = TASKS["arc"].score(ARC, [-4.0, -3.0, -2.0])
    assert scores == {"acc": 1.0, "acc_norm": 0.0}
    umlauts = {**ARC, "answerKey": "1", "choices": {"text": ["äö", "abc"], "label": ["1", "2"]}}
    assert TASKS["arc"].score(umlauts, [-2.2, -3.0]) == {"acc": 1.0, "acc_norm": 0.0}


def test_winogrande_scores_the_shared_suffix() -> None:
    task = TASKS["winogrande"]
    assert task.requests(WINOGRANDE) == [
        Loglikelihood("Ann paid Bea because Ann", " had the bill."),
        Loglikelihood("Ann paid Bea because Bea", " had the bill."),
    ]
    whole = "Ann paid Bea because Bea had the bill."
    assert task.requests(WINOGRANDE, [WINOGRANDE])[0].context == f"{whole}\n\nAnn paid Bea because Ann"
    assert "".join(task.to_example(WINOGRANDE)) == whole
    assert task.score(WINOGRANDE, [-1.0, -0.5]) == {"acc": 1.0}
    assert task.score(WINOGRANDE, [-1.0, -1.0]) == {"acc": 0.0}


def test_winogrande_gap_before_a_stop_and_second_gap() -> None:
    record = {**WINOGRANDE, "sentence": "It was _."}
    assert TASKS["winogrande"].requests(record)[0] == Loglikelihood("It was Ann", " .")
    record = {**WINOGRANDE, "sentence": "It was _ or _."}
    assert TASKS["winogrande"].requests(record)[0] == Loglikelihood("It was Ann", " or _.")


def test_gsm8k_prompt() -> None:
    task = TASKS["gsm8k"]
    stop = ("Question:", "</s>", "<|im_end|>")
    assert task.requests(GSM8K) == [Generate("Question: How many?\nAnswer:", stop)]
    shot = f"Question: How many?\nAnswer: {GSM8K['answer']}\n\n"
    assert task.requests(GSM8K, [GSM8K])[0].context == f"{shot}Question: How many?\nAnswer:"
    assert task.to_example(GSM8K) == ("Question: How many?\nAnswer:", f" {GSM8K['answer']}")


@pytest.mark.parametrize(
    ("generated", "expected_strict", "expected_flexible"),
    [
        ("600 + 634 = 1234\n#### 1234", 1, 1),
        ("#### 1,234", 1, 1),
        ("#### $1,234", 0, 1),
        ("so it is $1,234.", 0, 1),
        ("#### 1234.", 1, 1),
        ("#### 1234\n#### 7", 1, 0),
        ("#### 7\n\n1234", 0, 1),
        ("#### 1234.00", 0, 0),
        ("####1234", 0, 1),
        ("1234 plums, of 2 kinds", 0, 0),
        ("", 0, 0),
        ("none", 0, 0),
    ],
)
def test_gsm8k_extraction(generated: str, expected_strict: int, expected_flexible: int) -> None:
    scores = TASKS["gsm8k"].score(GSM8K, [generated])
    assert scores == {"strict_match": expected_strict, "flexible_extract": expected_flexible}


def test_gsm8k_matches_the_patterns_of_the_harness() -> None:
    assert strict("a #### -3 b #### 4") == "-3"
    assert strict("no mark 3") == "[invalid]"
    assert flexible("5 - 3 = 2") == "2"
    assert flexible("at -7") == "-7"
    assert flexible("cost 3. Then ...") == "..."
    assert TASKS["gsm8k"].score({"question": "", "answer": "#### -3"}, ["#### -3"])["strict_match"] == 1


@pytest.mark.parametrize("name", list(TASKS))
def test_gold_answers_score_full_marks_and_others_none(name: str) -> None:
    task = TASKS[name]
    for record in benchmarks.load(name, "validation")[:20]:
        _, completion = task.to_example(record)
        if name == "gsm8k":
            assert set(task.score(record, [completion]).values()) == {1.0}
            assert set(task.score(record, ["0 of 99999"]).values()) == {0.0}
            continue
        requests = task.requests(record)
        example = "".join(task.to_example(record))
        right = [float(f"{r[0]}{r[1]}" == example) for r in requests]
        assert sum(right) == 1
        assert set(task.score(record, [100 * (x - 1) for x in right]).values()) == {1.0}
        assert set(task.score(record, [-100 * x for x in right]).values()) == {0.0}


@pytest.mark.parametrize("name", list(TASKS))
def test_declared_metrics_and_missing_fields(name: str) -> None:
    task = TASKS[name]
    record = benchmarks.load(name, "validation")[0]
    results = ["1"] if name == "gsm8k" else [0.0] * len(task.requests(record))
    assert tuple(task.score(record, results)) == task.metrics
    assert task.headline in task.metrics
    assert task.name == name
    with pytest.raises(ValueError, match=f"a {name} record lacks"):
        task.requests({"text": "x"})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["mmlu", "winogrande", "arc", "mmlu_rwkv"])
def test_nothing_is_chosen_from_a_score_that_is_not_finite(name: str, wrong: float) -> None:
    task, record = PROTOCOLS[name], benchmarks.load(name.removesuffix("_rwkv"), "validation")[0]
    scores = [-1.0] * len(task.requests(record))
    for place in range(len(scores)):
        with pytest.raises(ValueError, match=f"the score of choice {place + 1} of {len(scores)} is {wrong}"):
            task.score(record, [wrong if i == place else x for i, x in enumerate(scores)])


def test_an_empty_choice_of_arc_is_never_the_likeliest_by_length() -> None:
    record = {"question": "q", "answerKey": "B", "choices": {"text": ["", "long"], "label": ["A", "B"]}}
    assert TASKS["arc"].score(record, [-1.0, -50.0]) == {"acc": 0.0, "acc_norm": 1.0}
