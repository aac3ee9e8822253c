"""Pass rates: batches of one shape, paired changes, and their means against plain ones."""

import jax
import numpy as np
import pytest

from experiments.reinforcement import passes
from experiments.reinforcement.passes import Measurer, Passes
from state_tuning.reinforcement.sampling import Drawn, pad_prompts

PROMPTS = pad_prompts([[i + 1] for i in range(5)])


class Echo:
    """A sampler whose answers say which prompt they are of, and which sample."""

    def __init__(self):
        self.shapes = []

    def draw(self, prompts, state, keys, copies=1):
        self.shapes.append((len(prompts.tokens), copies, len(keys)))
        texts = [f"{row[-1]}.{k}" for row in prompts.tokens for k in range(copies)]
        return Drawn(np.zeros((len(texts), 1), np.int32), np.ones((len(texts), 1), np.float32), texts, np.ones(1, bool))


def measurer(samples=4, rows=8):
    def judge(index, texts):
        assert [text.split(".")[0] for text in texts] == [str(i + 1) for i in index]
        return np.asarray([float(text.endswith(".0") and int(text[0]) > 1) for text in texts])

    done = []
    made = Measurer(
        Echo(), Echo(), lambda tree, rows: tree, judge, PROMPTS, samples, rows, jax.random.key(0), done.append
    )
    return made, done


def test_batches_have_one_shape_and_each_prompt_counts_once():
    made, done = measurer()
    found = made.passes(None, 2)
    assert found.greedy == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert found.sampled == [[0.0] * 4, *([[1.0, 0.0, 0.0, 0.0]] * 4)]
    assert found.texts == ["1.0", "2.0"]
    assert set(made.greedy.shapes) == {(8, 1, 8)}
    assert set(made.sampler.shapes) == {(2, 4, 8)}
    assert sum(done) == 10


def test_the_first_prompts_alone():
    made, _ = measurer()
    assert made.rewards(None, 3)[0] == [0.0, 1.0, 1.0]


def test_means_and_changes():
    before = Passes([0.0, 1.0], [[0.0, 0.0], [1.0, 0.0]], [])
    after = Passes([1.0, 1.0], [[0.0, 1.0], [1.0, 1.0]], [])
    found, change = passes.summarise(after, 1.0, 2, 0), passes.change(before, after, 1.0, 2, 0)
    assert (found["reward"].mean, found["greedy"].mean) == (1.0, 1.0)
    assert (found["pass_1"].mean, found["pass_k"].mean) == (0.75, 1.0)
    assert change["reward"].mean == pytest.approx(0.5)
    assert (change["pass_1"].mean, change["pass_k"].mean) == (0.5, 0.5)


def test_what_counts_as_right_is_a_setting():
    found = Passes([0.4, 0.6], [[0.4, 0.6], [0.4, 0.4]], [])
    assert passes.rights(found, 0.5, 2)["greedy"] == [0.0, 1.0]
    assert passes.rights(found, 0.5, 2)["pass_k"] == [1.0, 0.0]
    assert passes.rights(found, 0.5, 2)["reward"] == [0.4, 0.6]
