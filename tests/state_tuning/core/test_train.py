"""The tuning step: it learns, only the trainable tree is differentiated, and nothing non-finite is ever applied."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv7_jax import RWKV7, RWKV7Config, State, zero_state
from state_tuning.core import non_finite, objective, surgery, train
from state_tuning.core.train import TuneConfig

CONFIG = RWKV7Config(
    vocab_size=32, n_layer=3, n_embd=24, head_size=8, dim_ffn=40, decay_lora=5, aaa_lora=6, mv_lora=7, gate_lora=9
)
TUNE = TuneConfig(learning_rate=0.3, steps=30, warmup=3, loss_chunk=7)
MODEL = RWKV7(CONFIG)
REFERENCE = RWKV7(dataclasses.replace(CONFIG, wkv_implementation="scan"))
SGD = optax.sgd(1.0)
SHIFTS = dataclasses.replace(TUNE, tune_shifts=True, alpha=0.5, l2=0.01)


@pytest.fixture(scope="module")
def params():
    """Random weights, none at zero (the official initialisation silences every block); scales of norms near one."""

    def init(key):
        return MODEL.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(CONFIG, 1))["params"]

    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        norm = name.endswith("weight") and "ln" in name
        return jnp.asarray(norm + 0.25 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))


@pytest.fixture(scope="module")
def step(params):
    return train.make_train_step(MODEL, train.make_optimizer(TUNE), TUNE)


def make_batch(seed=0, rows=4, length=20):
    """Ragged random rows with unequal completions."""
    rng = np.random.default_rng(seed)
    examples = []
    for row in range(rows):
        n = int(rng.integers(8, length + 1))
        tokens = rng.integers(1, CONFIG.vocab_size, n + 1).astype(np.int32)
        examples.append(objective.Example(tokens, completion_start=2 + row, truncated=0))
    return jax.tree.map(jnp.asarray, objective.collate(examples, length))


def start(tune=TUNE, trainable=None):
    trainable = train.init_trainable(CONFIG, tune) if trainable is None else trainable
    return train.init(train.make_optimizer(tune), trainable)


def random_trainable(seed=3, tune=TUNE, size=0.3):
    leaves, structure = jax.tree.flatten(train.init_trainable(CONFIG, tune))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [size * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


@functools.partial(jax.jit, static_argnums=3)
def plain_loss(params, trainable, batch, tune):
    """The same loss in the open: graft by hand, all logits at once."""
    state = surgery.broadcast(train.full_state(CONFIG, trainable, tune), batch["tokens"].shape[0])
    logits, _ = REFERENCE.apply({"params": params}, batch["tokens"], state, valid=batch["valid"])
    return objective.completion_loss(logits, batch["targets"], batch["loss_mask"])


@functools.cache
def sgd_step(accumulate):
    """A step of plain SGD at rate one, which takes the gradient off the trainable tree."""
    return train.make_train_step(MODEL, SGD, dataclasses.replace(SHIFTS, accumulate=accumulate))


@functools.cache
def row_sums():
    return train.make_eval_step(MODEL, TUNE, per_row=True)


def assert_same(x, y):
    jax.tree.map(np.testing.assert_array_equal, x, y)


def copy(tree):
    return jax.tree.map(np.array, tree)


def test_the_trainable_tree_is_float32_zeros_with_holes():
    only_wkv = train.init_trainable(CONFIG, TUNE)
    assert only_wkv.att_shift is None
    assert only_wkv.ffn_shift is None
    assert only_wkv.wkv.shape == (3, 3, 8, 8)
    everything = train.init_trainable(CONFIG, dataclasses.replace(TUNE, tune_shifts=True))
    assert jax.tree.map(jnp.shape, everything) == jax.tree.map(jnp.shape, zero_state(CONFIG, None))
    assert all(leaf.dtype == jnp.float32 and not leaf.any() for leaf in jax.tree.leaves((only_wkv, everything)))


def test_a_zero_state_is_the_vanilla_model_and_rows_are_summed_apart(params):
    batch = make_batch()
    trainable, zero = train.init_trainable(CONFIG, TUNE), zero_state(CONFIG, 4)
    forward = jax.jit(lambda: REFERENCE.apply({"params": params}, batch["tokens"], zero, valid=batch["valid"])[0])
    logits = forward()
    nll, count = objective.completion_sums(logits, batch["targets"], batch["loss_mask"])
    rows, tokens = row_sums()(params, trainable, batch)
    np.testing.assert_allclose(rows, nll, rtol=1e-5)
    np.testing.assert_array_equal(tokens, count)
    total, all_tokens = train.make_eval_step(MODEL, TUNE)(params, trainable, batch)
    np.testing.assert_allclose(total, nll.sum(), rtol=1e-5)
    assert all_tokens == count.sum()


def test_loss_falls_and_only_one_program_is_compiled(params, step):
    before = copy(params)
    batch, tuned = make_batch(), start()
    early = jnp.zeros_like(batch["loss_mask"]).at[:, :3].set(1.0)
    batch |= {"targets": jnp.full_like(batch["targets"], 7), "loss_mask": early}
    losses = []
    for index in range(TUNE.steps):
        tuned, metrics = step(params, tuned, batch)
        losses.append(float(metrics["loss"]))
        assert non_finite.check_finite(metrics, index) is None
    assert losses[-1] < 0.8 * losses[0]
    assert step._cache_size() == 1
    assert int(tuned.step) == TUNE.steps
    assert metrics["tokens"] == batch["loss_mask"].sum()
    assert metrics["grad_finite"].shape == (CONFIG.n_layer,)
    assert plain_loss(params, tuned.trainable, batch, TUNE) < losses[-1] + 1e-3
    assert_same(params, before)


def test_the_state_is_donated_and_the_weights_are_not(params, step):
    given = train.init_trainable(CONFIG, TUNE)
    tuned = start(trainable=given)
    step(params, tuned, make_batch())
    assert tuned.trainable.wkv.is_deleted()
    assert not given.wkv.is_deleted(), "init copies what it is given"
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_the_gradient_is_that_of_the_plain_loss(params):
    trainable, batch = random_trainable(tune=SHIFTS), make_batch(1)

    def objective_of(tree):
        squares = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree))
        return plain_loss(params, tree, batch, SHIFTS) + 0.01 * squares

    loss, expected = jax.jit(jax.value_and_grad(objective_of))(trainable)
    tuned, metrics = sgd_step(1)(params, train.init(SGD, trainable), batch)
    moved = surgery.diff(trainable, tuned.trainable)
    assert len(jax.tree.leaves(moved)) == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), moved, expected)
    np.testing.assert_allclose(metrics["loss"] + metrics["penalty"], loss, rtol=1e-5)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(expected)))
    np.testing.assert_allclose([metrics["grad_norm"], metrics["update_norm"]], [norm, norm], rtol=1e-4)


def test_accumulation_equals_the_large_batch(params):
    trainable, batch = random_trainable(tune=SHIFTS), make_batch(2)
    parts = np.asarray(batch["loss_mask"]).reshape(2, -1).sum(1)
    assert parts[0] != parts[1], "unequal token counts tell a token-weighted mean from a mean of means"
    results = []
    for accumulate in (1, 2):
        tuned, metrics = sgd_step(accumulate)(params, train.init(SGD, trainable), batch)
        results.append((tuned.trainable, metrics["loss"], metrics["tokens"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *results)
    with pytest.raises(ValueError, match="4 rows cannot be cut into 3 equal parts"):
        sgd_step(3)(params, train.init(SGD, trainable), batch)


def poisoned(params, layer, path):
    """The weights with one NaN in `path` of `layer`."""
    params = copy(params)
    block = params["block_0"] if layer == 0 else params["blocks"]
    leaf = block[path[0]][path[1]]
    leaf[(layer - 1, 0) if layer else 0] = np.nan
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize(
    ("layer", "path", "message"),
    [
        (0, ("att", "w0"), "in the time mix of layer 0"),
        (1, ("att", "w0"), "in the time mix of layer 1"),
        (1, ("att", "g2"), "in the output of the time mix of layer 1"),
        (1, ("ffn", "x_k"), "in the input of layer 2"),
        (2, ("ffn", "x_k"), "after the time mix of layer 2, the last"),
    ],
)
def test_the_guard_keeps_the_old_state_bit_for_bit_and_names_the_place(params, step, layer, path, message):
    tuned, _ = step(params, start(trainable=random_trainable()), make_batch())
    before = copy(tuned)
    bad = poisoned(params, layer, path)
    for count in (1, 2):
        tuned, metrics = step(bad, tuned, make_batch())
        assert not metrics["applied"]
        assert_same((tuned.trainable, tuned.opt_state), (before.trainable, before.opt_state))
        assert (int(tuned.step), int(tuned.skipped), int(tuned.consecutive)) == (1 + count, count, count)
        text = non_finite.check_finite(metrics, 40 + count, limit=3)
        assert text.startswith(f"step {40 + count}: update skipped, first non-finite value {message}")
    tuned, metrics = step(bad, tuned, make_batch())
    with pytest.raises(
        non_finite.NonFiniteError, match=f"^step 7: .* {message}.*; 3 in a row: lower the learning rate"
    ):
        non_finite.check_finite(metrics, 7, limit=3)
    tuned, metrics = step(params, tuned, make_batch())
    assert non_finite.check_finite(metrics, 8) is None
    assert (int(tuned.skipped), int(tuned.consecutive)) == (3, 0)
    assert np.abs(tuned.trainable.wkv - before.trainable.wkv).max() > 0
    assert step._cache_size() == 1


def test_the_guard_sees_bad_data_in_one_micro_batch(params):
    trainable, batch = random_trainable(tune=SHIFTS), make_batch()
    spoilt = batch | {"loss_mask": batch["loss_mask"].at[3, 6].set(jnp.inf)}
    tuned, metrics = sgd_step(2)(params, train.init(SGD, trainable), spoilt)
    assert_same(tuned.trainable, trainable)
    assert int(tuned.skipped) == 1
    bad = params | {"emb": {"weight": params["emb"]["weight"].at[batch["tokens"][3, 0]].set(jnp.nan)}}
    tuned, metrics = sgd_step(2)(bad, tuned, batch)
    assert_same(tuned.trainable, trainable)
    assert "layer 0" in non_finite.check_finite(metrics, 0)


def test_the_guard_catches_an_optimiser_that_overflows(params, step):
    trainable = random_trainable()
    tuned = start(trainable=trainable)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf) if leaf.ndim else leaf, tuned.opt_state)
    tuned, metrics = step(params, tuned._replace(opt_state=broken), make_batch())
    assert_same(tuned.trainable, trainable)
    assert "in the optimiser's update, of finite gradients" in non_finite.check_finite(metrics, 0)


def test_padding_and_rows_of_padding_change_nothing(params):
    batch = make_batch(5)
    wide = {name: jnp.pad(leaf, ((0, 2), (0, 3))) for name, leaf in batch.items()}
    trainable = random_trainable()
    narrow_nll, narrow_tokens = row_sums()(params, trainable, batch)
    wide_nll, wide_tokens = row_sums()(params, trainable, wide)
    np.testing.assert_allclose(wide_nll[:4], narrow_nll, rtol=1e-5)
    np.testing.assert_array_equal(wide_tokens[:4], narrow_tokens)
    assert not wide_nll[4:].any()
    assert not wide_tokens[4:].any()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_warms_up_and_decays(schedule):
    rate = train.make_schedule(TuneConfig(learning_rate=2.0, schedule=schedule, warmup=4, steps=10, final_fraction=0.1))
    values = [float(rate(count)) for count in range(12)]
    np.testing.assert_allclose(values[:4], [0.5, 1.0, 1.5, 2.0])
    middle, last = {"constant": (2.0, 2.0), "linear": (1.1, 0.2), "cosine": (1.1, 0.2)}[schedule]
    np.testing.assert_allclose([values[7], values[10], values[11]], [middle, last, last], rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [2.0, 0.0])
def test_the_optimiser_is_adam_of_clipped_gradients(clip_norm):
    """Gradients of norms beyond and below the clip; at one norm alone Adam would hide it."""
    tune = TuneConfig(learning_rate=0.5, schedule="constant", warmup=0, b1=0.6, b2=0.8, eps=0.1, clip_norm=clip_norm)
    optimizer = train.make_optimizer(tune)
    state, mean, square = optimizer.init(jnp.zeros(2)), np.zeros(2), np.zeros(2)
    for i, g in enumerate(np.array([[3.0, 4.0], [0.6, -0.8], [0.3, 0.4]]), start=1):
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update(jnp.asarray(g, jnp.float32), state)
        clipped = g * min(1.0, clip_norm / np.linalg.norm(g)) if clip_norm else g
        mean, square = 0.6 * mean + 0.4 * clipped, 0.8 * square + 0.2 * np.square(clipped)
        expected = -0.5 * (mean / (1 - 0.6**i)) / (np.sqrt(square / (1 - 0.8**i)) + 0.1)
        np.testing.assert_allclose(update, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"steps": 0}, "steps is 0"), ({"accumulate": -1}, "accumulate is -1"), ({"l2": -1.0}, "l2 is -1.0")],
)
def test_config_refuses_nonsense(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TUNE, **wrong)


def test_another_method_plugs_in_by_type(params):
    """Factored S_0 = U W, trained through the same step."""
    rank = 2

    def init():
        u, w = (jnp.full((3, 3, *shape), 0.1, jnp.float32) for shape in ((8, rank), (rank, 8)))
        return {"u": u, "w": w}

    def graft(trainable, batch_size):
        zero = zero_state(CONFIG, None)
        factored = surgery.FactoredState(zero.att_shift, zero.ffn_shift, **trainable)
        return surgery.broadcast(surgery.expand(factored), batch_size)

    method = train.Method(init, graft)
    optimizer = train.make_optimizer(TUNE)
    take = train.make_train_step(MODEL, optimizer, TUNE, method)
    tuned, batch = train.init(optimizer, method.init()), make_batch()
    tuned, first = take(params, tuned, batch)
    for _ in range(10):
        tuned, last = take(params, tuned, batch)
    assert last["loss"] < first["loss"]
    tuned_state = surgery.expand(surgery.FactoredState(jnp.zeros((3, 24)), jnp.zeros((3, 24)), **tuned.trainable))
    assert np.linalg.matrix_rank(np.asarray(tuned_state.wkv), tol=1e-5).max() <= rank
    assert isinstance(tuned_state, State)
