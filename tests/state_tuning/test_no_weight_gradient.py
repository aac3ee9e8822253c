"""No gradient with respect to a weight is computed: shown on the jaxpr of the step.

The gradient of a linear weight [out, in] is a matrix product that sums over batch and time; a step that differentiates
weights must contain one of that shape for every weight. All sizes below differ from each other and from B and T, so
shapes identify operations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from rwkv7_jax import RWKV7, RWKV7Config, zero_state
from rwkv7_jax.wkv_state import Streams
from state_tuning import upscale
from state_tuning.baselines import methods
from state_tuning.baselines.adapters import AdaptedRWKV7
from state_tuning.core import objective, train
from state_tuning.dbp import correlations as probe
from state_tuning.dbp import literal
from state_tuning.dbp import transform as dbp
from state_tuning.objectives import distillation, preference
from state_tuning.objectives.divergences import Listed
from state_tuning.observer import distill
from state_tuning.test_time_scaling import policy_gradient

CONFIG = RWKV7Config(
    vocab_size=37, n_layer=3, n_embd=24, head_size=8, dim_ffn=44, decay_lora=5, aaa_lora=6, mv_lora=7, gate_lora=9
)
MODEL = RWKV7(CONFIG)
ROWS, LENGTH = 2, 13


@pytest.fixture(scope="module")
def params():
    def init(key):
        return MODEL.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(CONFIG, 1))["params"]

    return jax.eval_shape(init, jax.random.key(0))


def batch(rows=ROWS):
    example = objective.Example(np.arange(LENGTH + 1, dtype=np.int32), completion_start=1, truncated=0)
    return objective.collate([example] * rows, LENGTH)


def matrix_shapes(params) -> set[tuple[int, ...]]:
    """The shapes of all weight matrices, one layer at a time, in both orientations."""
    stacked = [leaf.shape[1:] for leaf in jax.tree.leaves(params["blocks"])]
    single = [leaf.shape for leaf in jax.tree.leaves({k: v for k, v in params.items() if k != "blocks"})]
    matrices = {shape for shape in stacked + single if len(shape) == 2} - {(CONFIG.n_head, CONFIG.head_size)}
    return matrices | {shape[::-1] for shape in matrices}


def products(jaxpr, shapes):
    """Output shapes of the matrix products in a jaxpr, inner ones included, that look like a weight's gradient."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.shape in shapes:
            found.append(eqn.outvars[0].aval.shape)
        for inner in jaxprs_in_params(eqn.params):
            found.extend(products(inner, shapes))
    return found


def count_products(jaxpr) -> int:
    """The number of matrix products in a jaxpr, inner ones included."""
    own = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
    return own + sum(count_products(inner) for eqn in jaxpr.eqns for inner in jaxprs_in_params(eqn.params))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_the_step_computes_no_weight_gradient(params, accumulate, remat):
    model = RWKV7(RWKV7Config(**{**vars(CONFIG), "remat": remat}))
    tune = train.TuneConfig(accumulate=accumulate, loss_chunk=4)
    optimizer = train.make_optimizer(tune)
    tuned = train.init(optimizer, train.init_trainable(CONFIG, tune))
    step = train.make_train_step(model, optimizer, tune)
    jaxpr = jax.make_jaxpr(step)(params, tuned, batch(ROWS * accumulate)).jaxpr
    assert products(jaxpr, matrix_shapes(params)) == []
    assert count_products(jaxpr) > 20


TUNE = train.TuneConfig(loss_chunk=4)


def tuning(method, optimizer=None, model=MODEL, correlate=None):
    """The train step of a method, and all its arguments but the weights."""
    optimizer = optimizer or train.make_optimizer(TUNE)
    step = train.make_train_step(model, optimizer, TUNE, method, correlate)
    return step, train.init(optimizer, method.init()), batch()


def decorrelated(transform, method):
    return tuning(method, transform(train.make_optimizer(TUNE)), correlate=probe.make_correlate(MODEL, method, 0.5))


def upscaled(kind):
    """On a map of zeros: no text is read to fit it."""
    setting, size = upscale.Upscale(map=kind), 19
    z = jax.ShapeDtypeStruct((CONFIG.n_layer, 40, CONFIG.n_head, CONFIG.head_size), jnp.float32)
    shapes = jax.eval_shape(
        lambda *streams: upscale.lift(CONFIG, Streams(*streams), setting, size, jax.random.key(0)), *[z] * 6
    )
    state = zero_state(CONFIG, None)._replace(wkv=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    return tuning(upscale.method(upscale.Fitted(state, None), TUNE, setting))


def distilled(rank):
    start, optimizer = zero_state(CONFIG, None), train.make_optimizer(TUNE)
    method = distill.method(MODEL, start, TUNE, rank)
    return distill.make_step(MODEL, optimizer, TUNE, method), start, train.init(optimizer, method.init()), batch()


def adapted():
    program, count = (
        policy_gradient.make_program(MODEL, policy_gradient.AdaptConfig(loss_chunk=4)),
        np.ones(2 * ROWS, np.float32),
    )
    weights = policy_gradient.Weights(count, count)
    return program.update, zero_state(CONFIG, None), program.start(ROWS), batch(2 * ROWS), weights


def listed(rows):
    """What a server lists of every token."""
    ids, shape = np.arange(5, dtype=np.int32), (rows, LENGTH, 5)
    return Listed(np.broadcast_to(ids, shape), np.full(shape, -2.0, np.float32), np.ones(shape[:2], np.float32))


def taught():
    step, *others = adapted()
    return step, *others, listed(2 * ROWS)


def larger_model():
    method, optimizer = train.standard(CONFIG, TUNE), train.make_optimizer(TUNE)
    step = distillation.make_distillation_step(MODEL, optimizer, TUNE, method, hard=0.5)
    return step, train.init(optimizer, method.init()), batch(), listed(ROWS)


def preferred():
    method, optimizer = train.standard(CONFIG, TUNE), train.make_optimizer(TUNE)
    step = preference.make_preference_step(MODEL, optimizer, TUNE, method)
    return step, train.init(optimizer, method.init()), batch(), np.ones(ROWS, np.float32)


def offset():
    baseline = methods.build("state_offset", MODEL, {}, TUNE, jax.random.key(0))
    return tuning(baseline.method, model=baseline.model)


STEPS = {
    "residual": lambda: upscaled("residual"),
    "recurrent": lambda: upscaled("recurrent"),
    "literal": lambda: upscaled("literal"),
    "dbp": lambda: decorrelated(dbp.decorrelated, train.standard(CONFIG, TUNE)),
    "literal dbp": lambda: decorrelated(literal.decorrelated, literal.method(train.standard(CONFIG, TUNE))),
    "state_offset": offset,
    "prefix": lambda: tuning(train.Method(lambda: jnp.ones((11, 24)), methods.Prefix), model=AdaptedRWKV7(CONFIG)),
    "distill": lambda: distilled(None),
    "distill, factors": lambda: distilled(2),
    "test_time": adapted,
    "test_time, distillation": taught,
    "a larger model": larger_model,
    "preferences": preferred,
}


@pytest.mark.parametrize("name", STEPS)
def test_no_method_computes_a_weight_gradient(params, name):
    step, *others = STEPS[name]()
    jaxpr = jax.make_jaxpr(step)(params, *others).jaxpr
    assert products(jaxpr, matrix_shapes(params)) == []
    assert count_products(jaxpr) > 20


def test_the_check_finds_the_weight_gradients_of_a_step_that_has_them(params):
    data = jax.tree.map(jnp.asarray, batch())

    def loss(params, trainable):
        state = train.standard(CONFIG, train.TuneConfig()).graft(trainable, ROWS)
        logits, _ = MODEL.apply({"params": params}, data["tokens"], state, valid=data["valid"])
        return objective.completion_loss(logits, data["targets"], data["loss_mask"])

    trainable = train.init_trainable(CONFIG, train.TuneConfig())
    shapes = matrix_shapes(params)
    with_weights = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, trainable).jaxpr
    without = jax.make_jaxpr(jax.grad(loss, argnums=1))(params, trainable).jaxpr
    found = {tuple(sorted(shape)) for shape in products(with_weights, shapes)}
    embedding = tuple(sorted(params["emb"]["weight"].shape))
    assert found == {tuple(sorted(shape)) for shape in shapes} - ({embedding} - found)
    assert products(without, shapes) == []
    weights_per_block = 6 + 8
    assert count_products(with_weights) - count_products(without) >= weights_per_block
