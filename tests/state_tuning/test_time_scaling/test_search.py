"""Search in state space: forks go on from the states that they copy, and every token is counted once."""

import dataclasses

import numpy as np
import pytest

from state_tuning.core.objective import Example
from state_tuning.test_time_scaling.rollouts import Problem, SampledAnswers, batch_of
from state_tuning.test_time_scaling.search import SearchConfig, search
from tests.adapting import BYTES, SETTINGS, TEACHER, first_letter, session

LONG = dataclasses.replace(SETTINGS, max_new_tokens=7)
NEVER, ALWAYS = SearchConfig(4, 2, 1e9), SearchConfig(4, 2, 0.0)


@pytest.fixture(scope="module")
def found():
    return {config: search(session(LONG), config, first_letter) for config in (NEVER, ALWAYS)}


def whole(problem, pool, ended):
    """Chains as examples, their ends included."""
    context = BYTES.encode(problem.prompt)
    ends = [[BYTES.eos_id] if end else [] for end in ended]
    rows = [[*context, *BYTES.encode(text), *end] for text, end in zip(pool.texts, ends, strict=True)]
    return [Example(np.asarray(row, np.int32), len(context), 0) for row in rows]


@pytest.mark.parametrize("config", [NEVER, ALWAYS])
def test_a_chains_score_is_what_the_teacher_says_of_the_whole_of_it(found, config):
    """However often its states were copied from another row."""
    for problem, pool in zip(session(LONG).problems, found[config].pools, strict=True):
        if any("\ufffd" in text for text in pool.texts):
            continue
        plain = [len(text.encode()) < 7 for text in pool.texts]
        examples = whole(problem, pool, plain)
        reading = TEACHER.read(BYTES, [""] * 4, [""] * 4, examples, batch_of(examples))
        np.testing.assert_allclose(pool.scores, reading.scores.log_probability, rtol=2e-3)


def test_a_cold_search_is_the_greedy_answer():
    cold = session(dataclasses.replace(LONG, temperature=1e-4))
    greedy = SampledAnswers(cold).greedy(cold.program.start(4).delta)
    for text, pool in zip(greedy.texts, search(cold, ALWAYS, first_letter).pools, strict=True):
        assert set(pool.texts) == {text}


def test_chains_are_forked_where_the_score_parts(found):
    assert found[NEVER].forks == [0] * 4
    assert min(found[ALWAYS].forks) >= 1
    shared = [len({text[:2] for text in pool.texts}) for pool in found[ALWAYS].pools]
    apart = [len({text[:2] for text in pool.texts}) for pool in found[NEVER].pools]
    assert sum(shared) < sum(apart)
    best = [np.mean([max(pool.scores) for pool in found[config].pools]) for config in (NEVER, ALWAYS)]
    assert best[1] > best[0] - 0.5


def test_the_teacher_reads_a_prompt_once_and_each_token_once(found):
    for problem, pool in zip(session(LONG).problems, found[NEVER].pools, strict=True):
        student, teacher = np.asarray(pool.tokens).sum(0)
        assert teacher == student + len(BYTES.encode(problem.prompt))
        assert student <= 4 * 7
    for pool in found[ALWAYS].pools:
        assert all(tokens[0] <= 7 for tokens in pool.tokens)


def test_chains_end_before_a_stop_string():
    plain = search(session(LONG), NEVER, first_letter).pools[0].texts
    letter = next(char for text in plain for char in text[1:])
    s = session(LONG, [p._replace(stop=(letter,)) for p in session(LONG).problems])
    texts = search(s, NEVER, first_letter).pools[0].texts
    assert all(letter not in text for text in texts)
    assert [text.split(letter)[0] for text in plain] == list(texts)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="needs a teacher in this process"):
        search(session(LONG, teacher=object()), NEVER, first_letter)
    with pytest.raises(ValueError, match="no use for given choices"):
        search(session(LONG, [Problem("a", (("a", "b"), ("a", "c")))]), NEVER, first_letter)
    for wrong in ({"beams": 3}, {"span": 0}, {"part": -1.0}):
        with pytest.raises(ValueError, match="must"):
            SearchConfig(**wrong)
