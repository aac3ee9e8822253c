"""The choice of a phrasing: the best one, and the words that say so."""

import pytest

from experiments.choosing import phrasing
from experiments.choosing.phrasing import Tried
from experiments.config.overrides import UsageError
from experiments.tasks.phrasings import BY_TASK


def test_the_phrasing_with_the_most_right_answers_is_taken_and_the_others_are_told(capsys):
    shares = {"took": 0.75, "so": 0.8, "answer": 0.8, "wanted": 0.5, "short": 0.2, "why": 0.1}
    asked = []

    def measure(task, name):
        asked.append((task, name))
        return Tried(name, shares[name], 0.9 if name == "answer" else 0.85, 64)

    assert phrasing.choose("auto", ("pocket:mmlu",), measure) == "mmlu=answer"
    assert asked == [("pocket:mmlu", name) for name in BY_TASK["mmlu"]]
    others = "took 75%, so 80%, wanted 50%, short 20%, why 10%"
    line = f"data.chain auto: mmlu=answer (80% right on 64 validation records; {others})\n"
    assert capsys.readouterr().out == line


def test_of_equal_ones_the_first_is_taken():
    tried = [Tried("a", 0.5, 0.5, 4), Tried("b", 0.5, 0.5, 4)]
    assert phrasing.best(tried).name == "a"


def test_what_is_named_is_not_measured():
    def never(task, name):
        raise AssertionError

    assert phrasing.choose("mmlu=took,arc=so", ("mmlu", "arc", "gsm8k"), never) == "mmlu=took,arc=so"
    assert phrasing.choose(None, ("mmlu",), never) is None


def test_named_and_chosen_ones_go_together(capsys):
    measure = lambda task, name: Tried(name, float(name == "words"), 0.0, 8)  # noqa: E731
    chain = phrasing.choose("mmlu=took,gsm8k=auto", ("mmlu", "gsm8k", "arc"), measure)
    assert chain == "mmlu=took,gsm8k=words"
    assert phrasing.wants_choice("mmlu=took,gsm8k=auto", ("mmlu", "gsm8k", "arc")) == ["gsm8k"]


@pytest.mark.parametrize(
    ("chain", "line"), [("auto", "'mmlu_rwkv' has no phrasings"), ("x=y", "'x=y' is not BENCHMARK=PHRASING")]
)
def test_what_cannot_be_chosen_is_one_line(chain, line):
    with pytest.raises(UsageError, match=line):
        phrasing.wants_choice(chain, ("mmlu_rwkv",))
