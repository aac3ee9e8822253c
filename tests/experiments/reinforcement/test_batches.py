"""The prompts of each step: every prompt once a pass, and the same ones after a position is restored."""

import numpy as np
import pytest

from experiments.config.overrides import UsageError
from experiments.reinforcement.batches import prompt_batches
from state_tuning.reinforcement.sampling import pad_prompts

PROMPTS = pad_prompts([[i + 1] for i in range(6)])


def seen(batches, count):
    return [(next(batches).index.tolist()) for _ in range(count)]


def test_a_pass_has_every_prompt_once():
    batches = prompt_batches(PROMPTS, 2, 0)
    first = seen(batches, 3)
    assert sorted(i for index in first for i in index) == list(range(6))
    one = next(batches)
    assert int(one.number) == 3
    np.testing.assert_array_equal(one.prompts.tokens, PROMPTS.tokens[one.index])


def test_a_position_can_be_restored():
    batches = prompt_batches(PROMPTS, 4, 1)
    seen(batches, 2)
    state = batches.get_state()
    wanted = [next(batches) for _ in range(3)]
    again = prompt_batches(PROMPTS, 4, 1)
    again.set_state(state)
    for one, other in zip(wanted, (next(again) for _ in range(3)), strict=True):
        assert (one.index.tolist(), int(one.number)) == (other.index.tolist(), int(other.number))


def test_more_prompts_a_batch_than_there_are():
    assert len(next(prompt_batches(PROMPTS, 16, 0)).index) == 16


def test_no_prompts_are_one_line():
    with pytest.raises(UsageError, match="no prompts"):
        prompt_batches(PROMPTS.take(np.zeros(0, np.int64)), 2, 0)
