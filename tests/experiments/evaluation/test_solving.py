"""Verified solutions: only what the checker accepts is kept, one a problem, and samples do not depend on neighbours."""

import pytest

from experiments.config.overrides import UsageError
from experiments.evaluation.problems import Item
from experiments.evaluation.solving import Sampling, solve
from rwkv7_jax import zero_state
from state_tuning.test_time_scaling.rollouts import Problem


def item(number, correct, choices=()):
    return Item(Problem(f"say {number}:", choices, ("\n",)), correct, str.strip)


def accept(results):
    return 1.0


def refuse(results):
    return 0.0


@pytest.fixture(scope="module")
def sampling():
    return Sampling(wanted=3, samples=2, batch_size=4, max_new_tokens=160)


def test_what_is_accepted_is_kept_once_a_problem_until_there_are_enough(tiny, sampling):
    """Texts of a random model end by a newline byte or the end token, or not at all."""
    state = zero_state(tiny.model.config, None)
    items = [item(number, refuse if number == 1 else accept) for number in range(6)]
    ticks = []
    found = solve(tiny, state, items, sampling, tick=lambda drawn, count: ticks.append((drawn, count)))
    numbers = [one.problem for one in found.solutions]
    assert numbers == sorted(set(numbers))
    assert 1 not in numbers
    assert len(numbers) <= 3
    assert found.sampled == sum(drawn for drawn, _ in ticks)
    assert ticks[-1][1] == len(numbers)
    assert found.accepted >= len(numbers)
    assert all(one.completion.strip() and "\n" not in one.completion for one in found.solutions)
    assert all(one.prompt == f"say {one.problem}:" for one in found.solutions)
    assert solve(tiny, state, items, sampling) == found


def test_nothing_is_kept_of_what_is_refused_or_cut(tiny):
    state = zero_state(tiny.model.config, None)
    items = [item(number, refuse) for number in range(3)]
    found = solve(tiny, state, items, Sampling(2, 2, 4, max_new_tokens=4))
    assert found.solutions == []
    assert (found.sampled, found.accepted) == (6, 0)
    short = solve(tiny, state, [item(number, accept) for number in range(3)], Sampling(3, 1, 4, max_new_tokens=1))
    assert short.cut == 3
    assert short.solutions == []


def test_a_sample_does_not_depend_on_the_others(tiny):
    state = zero_state(tiny.model.config, None)
    seen = {}

    def seeing(number):
        def correct(results):
            seen.setdefault(number, []).append(results[0])
            return 0.0

        return correct

    settings = Sampling(9, 1, 2, max_new_tokens=40)
    solve(tiny, state, [item(number, seeing(number)) for number in range(5)], settings)
    whole = dict(seen)
    seen.clear()
    solve(tiny, state, [item(number, seeing(number)) for number in range(3)], settings)
    assert seen == {number: whole[number] for number in seen}


def test_problems_with_choices_ask_for_a_chain(tiny):
    state = zero_state(tiny.model.config, None)
    with pytest.raises(UsageError, match=r"add --data\.chain NAME"):
        solve(tiny, state, [item(0, accept, (("a", "b"),))], Sampling())
