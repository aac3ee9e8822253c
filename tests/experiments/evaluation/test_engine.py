"""Stored portions whose results are not finite are computed again; a broken model gives an error and keeps nothing."""

import math

import jax.numpy as jnp
import pytest

from experiments.evaluation import suite
from experiments.evaluation.engine import Engine
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.reporting.result_store import Store
from rwkv7_jax import zero_state
from rwkv7_jax.finite import NonFiniteLogitsError
from state_tuning.core.objective import encode_example


@pytest.fixture(scope="module")
def bench():
    return suite.load(["pocket:winogrande"], suite.Options(limit=4))[0]


@pytest.fixture(scope="module")
def zero(tiny):
    return zero_state(tiny.model.config, None)


def broken(tiny):
    head = tiny.params["head"]["weight"]
    return tiny.replace(params={**tiny.params, "head": {"weight": head.at[7, 0].set(jnp.nan)}})


def test_a_broken_model_is_an_error_in_one_line(tiny, zero, bench, tmp_path):
    store = Store(tmp_path / "x.jsonl", "id")
    with pytest.raises(NonFiniteLogitsError, match=r"the model's logits are not finite: .* weights head\.weight"):
        Engine(broken(tiny), {"none": zero}, 4, 5).run(bench, store, lambda count: None)
    assert not store.done
    evaluator = Evaluator(broken(tiny), make_scorer(tiny.model), batch_size=2)
    with pytest.raises(NonFiniteLogitsError, match=r"held-out losses are not finite: .* weights head\.weight"):
        evaluator.losses(zero, [encode_example(tiny.tokenizer, "ab", " cd")])


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_stored_results_that_are_not_finite_are_computed_again(tiny, zero, bench, tmp_path, wrong):
    engine = Engine(tiny, {"none": zero}, 4, 5)
    wanted = engine.run(bench, Store(tmp_path / "a.jsonl", "id"), lambda count: None)
    key = f"{bench.name}/0"
    spoilt = Store(tmp_path / "b.jsonl", "id")
    spoilt.add(key, [{**one, "results": [wrong, -1.0]} for one in wanted])
    assert engine.run(bench, Store(tmp_path / "b.jsonl", "id"), lambda count: None) == wanted
    assert Store(tmp_path / "b.jsonl", "id").done[key] == wanted
