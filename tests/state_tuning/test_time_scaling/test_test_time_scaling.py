"""Test-time scaling: expected reward rises, prompts stay apart, limits hold, and every token is counted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax import zero_state
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.generation.generate import SamplingParams, generate_text
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import ByteTokenizer
from rwkv7_jax.wkv_state import Literal
from state_tuning.core.objective import Example
from state_tuning.test_time_scaling import adaptation, baselines, outcomes, policy_gradient, selection
from state_tuning.test_time_scaling.choices import GivenChoices
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig, Weights
from state_tuning.test_time_scaling.rollouts import (
    Problem,
    SampledAnswers,
    Samples,
    Session,
    Student,
    batch_of,
)
from state_tuning.test_time_scaling.teacher.in_process import Generated, Scores
from tests.helpers import CONFIG, MODEL, logits, random_state, weights

BYTES = ByteTokenizer()
SETTINGS = AdaptConfig(
    samples=8, steps=3, rate=0.1, kl=0.001, norm_cap=6.0, max_new_tokens=3, loss_chunk=4, signal="reward",
    baseline="group", units="absolute",
)  # fmt: skip


def strengthened(path, leaf):
    """Weights of a model whose time mix, and so its initial state, has much to say about the next token."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return leaf * {"head/weight": 3.0}.get(name, 8.0 if name.endswith("att/output/weight") else 1.0)


PARAMS = jax.tree_util.tree_map_with_path(strengthened, weights())
STUDENT = Student(LanguageModel(MODEL, PARAMS, BYTES), zero_state(CONFIG, None))
PROBLEMS = [Problem("one"), Problem("and two"), Problem("3")]
CHOICES = [
    Problem("a", (("a:", " x"), ("a:", " yy"), ("a:", " z"))),
    Problem("b", (("b?", " x"), ("bb?", " w"))),
]


class ToyTeacher:
    """Likes samples whose characters come early; 10 tokens to score a sample, 7 to write one. Notes all calls."""

    def __init__(self):
        self.asked = 0

    def score(self, prompts, samples, margin=False, ended=None):
        assert len(prompts) == len(samples)
        self.asked += len(samples)
        value = np.asarray([np.mean([c < "p" for c in sample] or [0.0]) for sample in samples])
        length = np.asarray([len(sample.encode()) for sample in samples])
        return Scores(value, value, length, np.full(len(samples), 10))

    def generate(self, prompts, max_tokens, stop=(), seed=None):
        return Generated(["abc"] * len(prompts), np.full(len(prompts), 7))


def session(config=SETTINGS, problems=PROBLEMS, numbers=None, student=STUDENT):
    numbers = range(len(problems)) if numbers is None else numbers
    keys = jnp.stack([jax.random.fold_in(jax.random.key(5), i) for i in numbers])
    return Session(student, program(config), ToyTeacher(), problems, keys, config)


PROGRAMS = {}


def program(config):
    """Numbers of steps and samples are not compiled in."""
    key = dataclasses.replace(config, samples=1, steps=1, chain_steps=0)
    return PROGRAMS.setdefault(key, policy_gradient.make_program(MODEL, config))


@functools.cache
def descent():
    """A program with gradient steps: Adam makes steps of any size out of rounding differences."""
    return policy_gradient.make_program(MODEL, SETTINGS, optax.sgd(0.3))


def mean_reward(s, delta):
    """Of 48 samples that were not seen."""
    parts = [SampledAnswers(s).sample(delta, first, 8) for first in range(1000, 1048, 8)]
    scores = [s.teacher.score(part.contexts, part.texts).log_probability for part in parts]
    return np.concatenate([score.reshape(len(s.problems), -1) for score in scores], axis=1).mean(1)


@functools.cache
def summit():
    """Delta after 20 steps."""
    return climb(session(), 20)


def climb(s, steps):
    """Delta after so many steps."""
    explorer, adapted = SampledAnswers(s), s.program.start(len(s.problems))
    for step in range(steps):
        found = explorer.explore(adapted.delta, step)
        adapted, metrics = s.program.update(
            s.student.lm.params, s.student.state, adapted, batch_of(found.samples.examples), found.weights
        )
        assert bool(metrics["applied"].all())
    return adapted.delta


def test_the_expected_reward_rises_for_every_prompt():
    s = session()
    before, after = mean_reward(s, s.program.start(3).delta), mean_reward(s, summit())
    assert (after > before + 0.1).all(), (before, after)


def test_prompts_adapt_side_by_side_as_one_by_one():
    together = climb(session()._replace(program=descent()), 2)
    for i in (0, 2):
        apart = climb(session(problems=[PROBLEMS[i]], numbers=[i])._replace(program=descent()), 2)
        np.testing.assert_allclose(together[:, i], apart[:, 0], atol=1e-5)
    assert float(jnp.abs(together).max()) > 0.02


def norms(delta):
    return np.sqrt(np.square(np.asarray(delta)).sum((0, 2, 3, 4)))


def formula(delta, batch, weights):
    """Of each prompt, sum_k [- w_k log pi(c_k) + kl u_k sum_t KL(pi_t | pi_t at Delta = 0)], in float64."""
    copies = len(weights.policy) // delta.shape[1]

    def log_policy(delta):
        state = zero_state(CONFIG, len(weights.policy))._replace(wkv=jnp.asarray(np.repeat(delta, copies, axis=1)))
        x = np.asarray(logits(PARAMS, batch["tokens"], state), np.float64)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    now, before = log_policy(delta), log_policy(0 * delta)
    chosen = np.take_along_axis(now, batch["targets"][..., None], axis=-1)[..., 0]
    kl = (np.exp(now) * (now - before)).sum(-1)
    each = -weights.policy[:, None] * chosen + SETTINGS.kl * weights.kl[:, None] * kl
    return (each * batch["loss_mask"]).sum(1).reshape(delta.shape[1], copies).sum(1)


def descended(policy, kl):
    """(Delta of 3 prompts, batch, weights, the slope that a gradient step took, metrics), samples random."""
    rng = np.random.default_rng(1)
    batch = batch_of([Example(rng.integers(1, 255, 10).astype(np.int32), 4, 0) for _ in range(24)])
    share = Weights(*(rng.uniform(0.005, 0.02, 24) for _ in range(2)))
    used = Weights(np.float32(share.policy * np.repeat(policy, 8)), np.float32(share.kl * np.repeat(kl, 8)))
    delta = np.float32(0.2 * rng.normal(size=(2, 3, 2, 8, 8)))
    start = descent().start(3)._replace(delta=jnp.array(delta))
    adapted, metrics = descent().update(PARAMS, STUDENT.state, start, batch, used)
    return delta, batch, used, (delta - np.asarray(adapted.delta)) / np.float32(0.3), metrics


@pytest.mark.parametrize(("policy", "kl"), [([1.0, -1.0, 1.0], [0.0] * 3), ([0.0] * 3, [1e3] * 3)])
def test_a_step_is_the_gradient_of_the_formula(policy, kl):
    """The formula's slope along the step is the step's length, for the policy and for the KL."""
    delta, batch, used, slope, metrics = descended(policy, kl)
    length = norms(slope)
    assert (length < SETTINGS.clip_norm).all()
    np.testing.assert_allclose(metrics["grad_norm"], length, rtol=1e-3)
    move = np.float32(0.01) * slope / length[:, None, None, None]
    found = (formula(delta + move, batch, used) - formula(delta - move, batch, used)) / 0.02
    np.testing.assert_allclose(found, length, rtol=0.02)


def test_the_gradient_of_each_prompt_is_cut_by_itself():
    usual, large = (descended([weight, 1.0, 1.0], [0.0] * 3) for weight in (1.0, 1e3))
    usual[3][:, 0] *= SETTINGS.clip_norm / norms(usual[3])[0]
    np.testing.assert_allclose(large[3], usual[3], atol=1e-5)
    np.testing.assert_allclose(large[4]["grad_norm"], usual[4]["grad_norm"] * np.float32([1e3, 1, 1]), rtol=1e-4)


class Judge(ToyTeacher):
    """Gives its rewards, whatever it reads."""

    def __init__(self, rewards):
        self.rewards = np.asarray(rewards, np.float64)

    def score(self, prompts, samples, margin=False, ended=None):
        count = np.full(len(self.rewards), 1)
        return Scores(self.rewards, self.rewards, count, count)


class Given(SampledAnswers):
    """Samples of 1, 2, 4 and 3, 3, 5 tokens, not sampled."""

    def sample(self, delta, first, count):
        examples = [Example(np.ones(2 + n, np.int32), 2, 0) for n in (1, 2, 4, 3, 3, 5)]
        return Samples(examples, [""] * 6, [""] * 6, [1] * 6, [False] * 6)


def test_a_chain_weighs_its_advantage_over_its_length():
    """- 1/K A_k log pi(c_k) / |c_k|, A_k = (reward_k - mean) / deviation among the samples of its prompt."""
    rewards, length = np.asarray([[0.1, 0.7, 0.3], [2.0, -1.0, 0.0]]), np.asarray([[1, 2, 4], [3, 3, 5]])
    s = session(dataclasses.replace(SETTINGS, samples=3), PROBLEMS[:2])._replace(teacher=Judge(rewards.ravel()))
    found = Given(s).explore(s.program.start(2).delta, 0).weights
    gain = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    np.testing.assert_allclose(found.policy.reshape(2, 3), gain / (3 * length), rtol=1e-6)
    np.testing.assert_allclose(found.kl.reshape(2, 3), 1 / (3 * length), rtol=1e-6)


def test_a_chain_weighs_its_reward_less_the_others_mean():
    """- 1/K (reward_k - mean of the other rewards) log pi(c_k): neither deviation nor length."""
    rewards = np.asarray([[0.1, 0.7, 0.3], [2.0, -1.0, 0.0]])
    s = session(dataclasses.replace(SETTINGS, samples=3, baseline="leave_one_out"), PROBLEMS[:2])
    found = Given(s._replace(teacher=Judge(rewards.ravel()))).explore(s.program.start(2).delta, 0).weights
    others = (rewards.sum(1, keepdims=True) - rewards) / 2
    np.testing.assert_allclose(found.policy.reshape(2, 3), (rewards - others) / 3, rtol=1e-6)


def test_choices_weigh_as_the_gradient_of_the_expected_reward(monkeypatch):
    """d/d log pi_i of sum_j p_j r_j = p_i (r_i - sum_j p_j r_j), over the deviation of r under p; KL: p_i / |c_i|."""
    scores = np.asarray([[-1.0, -2.5, -0.4], [-3.0, -2.0, -np.inf]])
    monkeypatch.setattr(GivenChoices, "log_likelihoods", lambda self, delta: scores)
    s = session(problems=CHOICES)._replace(teacher=Judge([0.3, 0.9, -0.5, 1.0, 0.0]))
    found = GivenChoices(s).explore(s.program.start(2).delta, 0).weights
    rewards, length = np.asarray([[0.3, 0.9, -0.5], [1.0, 0.0, 0.0]]), np.asarray([[2, 3, 2], [2, 2, 1]])
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    centred = rewards - (p * rewards).sum(1, keepdims=True)
    deviation = np.sqrt((p * centred**2).sum(1, keepdims=True))
    np.testing.assert_allclose(found.policy.reshape(2, 3), p * centred / deviation, rtol=1e-5)
    np.testing.assert_allclose(found.kl.reshape(2, 3), p / length, rtol=1e-5)


def test_with_rate_zero_it_is_the_greedy_student():
    still = dataclasses.replace(SETTINGS, steps=1, rate=0.0)
    rounds = adaptation.adapt(session(still))
    prompts = [p.prompt for p in PROBLEMS]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=3)
    wanted = generate_text(MODEL, PARAMS, BYTES, prompts, None, jax.random.key(0), greedy).texts
    assert [a.results for a in rounds[0]] == [a.results for a in rounds[1]] == [[text] for text in wanted]


@pytest.mark.parametrize(("chain_steps", "steps", "where"), [(0, 1, "step 1"), (1, 0, "chain step 1")])
def test_a_gradient_that_is_not_finite_is_told(chain_steps, steps, where):
    s = session(dataclasses.replace(SETTINGS, steps=steps, chain_steps=chain_steps))

    def update(*args):
        return args[2], {"applied": jnp.asarray([True, False, True])}

    with pytest.warns(UserWarning, match=rf"^{where}: the gradient of 1 prompts \(numbers 1 of the batch\)"):
        adaptation.adapt(s._replace(program=s.program._replace(update=update)))


def test_student_tokens_and_teacher_tokens_are_counted_exactly():
    s = session()
    rounds = adaptation.adapt(s)
    drawn = [SampledAnswers(s).sample(s.program.start(3).delta, 0, SETTINGS.samples)]
    first = np.asarray(drawn[0].cost).reshape(3, -1).sum(1)
    for b in range(3):
        tokens = [rounds[step][b].cost for step in range(4)]
        assert [t.teacher_tokens for t in tokens] == [0, 80, 160, 240]
        assert 1 <= tokens[0].student_tokens <= 3
        answer = tokens[1].student_tokens - first[b]
        assert 1 <= answer <= 3
        assert all(one.seconds > 0 for one in tokens)
    assert s.teacher.asked == 3 * 3 * SETTINGS.samples
    assert [len(a.rewards) for a in rounds[1]] == [SETTINGS.samples] * 3


def test_a_chain_costs_its_tokens_and_its_end():
    """Of a student that likes to end: its last norm leans towards the end token."""
    toward = PARAMS["head"]["weight"][BYTES.eos_id]
    norm = PARAMS["ln_out"] | {"bias": PARAMS["ln_out"]["bias"] + 10 * toward / jnp.sum(jnp.square(toward))}
    s = session(student=STUDENT._replace(lm=STUDENT.lm.replace(params=PARAMS | {"ln_out": norm})))
    samples = SampledAnswers(s).sample(s.program.start(3).delta, 0, 8)
    assert {1, 2, 3} == set(samples.cost)
    for example, text, cost in zip(samples.examples, samples.texts, samples.cost, strict=True):
        ended = example.tokens[-1] == BYTES.eos_id and len(example.tokens) > example.completion_start
        assert cost == len(example.tokens) - example.completion_start
        assert cost <= 3
        assert ended or cost == 3
        assert len(text) <= 3


def test_the_norm_cap_holds():
    norms = np.sqrt(np.square(np.asarray(summit())).sum((0, 2, 3, 4)))
    assert (norms <= SETTINGS.norm_cap * (1 + 1e-5)).all()
    np.testing.assert_allclose(norms.max(), SETTINGS.norm_cap, rtol=1e-5)
    small = 0.01 * jax.random.normal(jax.random.key(0), (2, 3, 2, 8, 8))
    np.testing.assert_array_equal(policy_gradient.capped(small, 20.0), small)


def test_the_kl_holds_back():
    example = [Example(np.asarray([1, 40 + i, 41, 42], np.int32), 2, 0) for i in range(3)]
    norm = {}
    for kl in (0.0, 1e4):
        prog, weigh = program(SETTINGS), Weights(np.full(3, 1.0, np.float32), np.full(3, kl, np.float32))
        adapted = prog.start(3)
        for _ in range(4):
            adapted, metrics = prog.update(PARAMS, STUDENT.state, adapted, batch_of(example), weigh)
        norm[kl] = np.asarray(metrics["norm"])
    assert (norm[1e4] < norm[0.0]).all()


def test_a_prompt_whose_gradient_is_not_finite_stays_and_the_others_move():
    """At the first step, and after a good one, when Adam has moments: those stay too."""
    prog, example = program(SETTINGS), [Example(np.asarray([1, 40, 41, 42], np.int32), 2, 0)] * 3
    kl = np.full(3, 0.3, np.float32)
    good, wrong = (Weights(np.asarray([0.5, x, 0.5], np.float32), kl) for x in (0.5, np.nan))
    after, _ = prog.update(PARAMS, STUDENT.state, prog.start(3), batch_of(example), good)
    for start in (prog.start(3), after):
        before = [np.array(leaf) for leaf in jax.tree.leaves(start)]
        adapted, metrics = prog.update(PARAMS, STUDENT.state, start, batch_of(example), wrong)
        np.testing.assert_array_equal(metrics["applied"], [True, False, True])
        moved = [np.asarray(a) != b for a, b in zip(jax.tree.leaves(adapted), before, strict=True) if b.ndim]
        assert len(moved) == 3
        for leaf in moved:
            np.testing.assert_array_equal(leaf.any((0, 2, 3, 4)), [True, False, True])


def test_the_tuned_state_is_where_every_prompt_starts():
    tuned = STUDENT._replace(state=random_state(2, 0.5))
    state = program(SETTINGS).states(tuned.state, program(SETTINGS).start(2).delta, 3)
    assert state.wkv.shape == (2, 6, 2, 8, 8)
    for row in range(6):
        jax.tree.map(lambda a, b, r=row: np.testing.assert_array_equal(a[:, r], b), state, tuned.state)


def test_the_teachers_chain_becomes_likelier():
    config = dataclasses.replace(SETTINGS, steps=0, chain_steps=10)
    s = session(config)
    (answers,) = adaptation.adapt(s)
    assert all(a.cost.teacher_tokens == 7 for a in answers)
    explorer, start = SampledAnswers(s), s.program.start(3)
    batch = batch_of(explorer.teacher_answers()[0])
    before = s.program.nll(PARAMS, STUDENT.state, start.delta, batch)
    adapted, _ = adaptation._imitate(s, explorer, start)
    assert (s.program.nll(PARAMS, STUDENT.state, adapted.delta, batch) < before).all()


def test_given_choices_are_scored_once_and_counted_at_every_look():
    s = session(problems=CHOICES)
    rounds = adaptation.adapt(s)
    assert s.teacher.asked == 5
    assert [len(a.results) for a in rounds[0]] == [3, 2]
    assert [round_[0].cost.teacher_tokens for round_ in rounds] == [0, 30, 30, 30]
    assert [round_[0].cost.student_tokens for round_ in rounds] == [7, 14, 21, 28]
    assert [round_[1].cost.student_tokens for round_ in rounds] == [4, 8, 12, 16]


def test_a_choice_that_the_teacher_prefers_gains_on_the_others():
    problems = [
        Problem("a", (("a:", " xx"), ("a:", " bb"), ("a:", " yy"))),
        Problem("c", (("c:", " zz"), ("c:", " aa"))),
    ]
    rounds = adaptation.adapt(session(problems=problems))

    def share(results):
        return float(jax.nn.softmax(jnp.asarray(results))[1])

    for b in range(2):
        assert share(rounds[-1][b].results) > share(rounds[0][b].results)


@pytest.mark.parametrize("problems", [PROBLEMS, CHOICES])
def test_controls_use_the_same_chains_at_the_same_budget(problems):
    s = session(problems=problems)
    found = baselines.controls(s, (1, 9), lambda b, text: text[:1] or None)
    assert set(found) == {"self_consistency", "best_of_n", "added" if problems[0].choices else "weighted_vote"}
    for b in range(len(problems)):
        vote, best = found["self_consistency"][9][b], found["best_of_n"][9][b]
        assert vote.cost.student_tokens == best.cost.student_tokens > found["best_of_n"][1][b].cost.student_tokens
        assert vote.cost.teacher_tokens == 0
        assert best.cost.teacher_tokens == 10 * (9 if not problems[0].choices else best.cost.teacher_tokens // 10)
        assert found["self_consistency"][1][b].results == found["best_of_n"][1][b].results
    if not problems[0].choices:
        samples = SampledAnswers(s).sample(s.program.start(3).delta, 0, 9)
        rewards = s.teacher.score(samples.contexts, samples.texts).log_probability.reshape(3, 9)
        picked = [samples.texts[9 * b + int(rewards[b].argmax())] for b in range(3)]
        assert [a.results[0] for a in found["best_of_n"][9]] == picked


def test_the_larger_model_alone():
    assert [a.results for a in baselines.teacher_alone(session())] == [["abc"]] * 3
    found = baselines.teacher_alone(session(problems=CHOICES))
    np.testing.assert_allclose(found[0].results, [1.0, 1.0, 1.0])
    assert [a.cost.teacher_tokens for a in found] == [30, 20]
    assert found[0].cost.student_tokens == 0


def test_a_student_whose_map_does_not_read_s0_is_refused():
    none = jnp.zeros((2, 2, 1))
    wkv = Literal(STUDENT.state.wkv, jnp.zeros((2, 2, 9, 9)), jnp.zeros((2, 2, 6, 9, 8)), none, jnp.zeros((2, 2, 8, 9)))
    s = session(student=STUDENT._replace(state=STUDENT.state._replace(wkv=wkv)))
    for problems in (PROBLEMS, CHOICES):
        with pytest.raises(ValueError, match="does not read S_0"):
            outcomes.explorer_of(s._replace(problems=problems))
    with pytest.raises(ValueError, match="does not read S_0"):
        s.program.states(s.student.state, s.program.start(3).delta, 1)


def test_mixed_batches_and_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="must all be open"):
        outcomes.explorer_of(session(problems=[PROBLEMS[0], CHOICES[0]]))
    for wrong in ({"samples": 0}, {"rate": -1.0}, {"norm_cap": 0.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError):  # noqa: PT011
            AdaptConfig(**wrong)


@settings(max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(-3, 3), st.floats(0.1, 4))
def test_advantages_have_mean_zero_and_do_not_see_shift_or_scale(rewards, shift, factor):
    x = np.asarray(rewards)
    gain = selection.advantages(x)
    assert abs(gain.mean()) < 1e-6
    if gain.any():
        np.testing.assert_allclose(np.square(gain).mean(), 1.0, rtol=1e-6)
    if np.std(x) > 1e-2:
        np.testing.assert_allclose(selection.advantages(factor * x + shift), gain, atol=1e-6)
    p = np.full(len(x), 1 / len(x))
    np.testing.assert_allclose(selection.advantages(x, p), gain, atol=1e-9)


def test_votes_and_best():
    assert selection.majority(["b", "a", "a", None]) == 1
    assert selection.majority([None, None]) == 0
    assert selection.majority(["x", "y"]) == 0
    assert selection.best([1.0, 3.0, 3.0, float("nan")]) == 1
    np.testing.assert_array_equal(selection.advantages([1.0, float("nan")]), [0.0, 0.0])
    assert selection.majority(["b", float("nan"), float("nan"), "a", "a"]) == 3
    assert Cost(1, 2, 3.0).plus(Cost(1, 1, 0.5)) == Cost(2, 3, 3.5)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf])
def test_nothing_is_chosen_by_a_reward_that_is_not_finite(wrong):
    for choose in (selection.best, selection.advantages):
        with pytest.raises(ValueError, match=f"the reward of sample 1 of 3 is {wrong}"):
            choose([1.0, wrong, 2.0])
    with pytest.raises(ValueError, match="none of 2 samples has a reward"):
        selection.best([np.nan, np.nan])
    with pytest.raises(ValueError, match="probabilities of a group are not finite"):
        selection.advantages([1.0, 2.0], [0.5, np.nan])


def broken_student():
    params = {**PARAMS, "head": {"weight": PARAMS["head"]["weight"].at[3, 0].set(jnp.nan)}}
    return Student(STUDENT.lm.replace(params=params), STUDENT.state)


@pytest.mark.parametrize("problems", [CHOICES, PROBLEMS])
def test_a_broken_student_is_an_error(problems):
    config = dataclasses.replace(SETTINGS, samples=2, steps=1)
    broken = session(config, problems, student=broken_student())
    with pytest.raises(NonFiniteLogitsError, match=r"not finite.*weights head\.weight"):
        adaptation.adapt(broken)
    with pytest.raises(NonFiniteLogitsError, match=r"not finite.*weights head\.weight"):
        baselines.controls(broken, [2], lambda b, text: text)


def test_without_a_reward_of_any_sample_the_first_stands_and_nothing_is_imitated():
    class Silent(ToyTeacher):
        def score(self, prompts, samples, margin=False, ended=None):
            found = super().score(prompts, samples, margin)
            return found._replace(log_probability=np.where([s in (" x", " w") for s in samples], np.nan, 1.0))

    config = dataclasses.replace(SETTINGS, samples=2, steps=1, chain_steps=1)
    silent = session(config, [Problem("b", (("b?", " x"), ("bb?", " w"))), CHOICES[0]])._replace(teacher=Silent())
    examples, _ = GivenChoices(silent).teacher_answers()
    assert len(examples[0].tokens) == examples[0].completion_start
    assert BYTES.decode(examples[1].tokens.tolist()) == "a: yy"
    drawn = baselines.controls(silent, [3], lambda b, text: text)["best_of_n"][3]
    assert drawn[0].results.count(0.0) == 1
    infinite = session(config, CHOICES)
    infinite.teacher.score = lambda *asked: ToyTeacher().score(*asked)._replace(log_probability=np.full(5, np.inf))
    with pytest.raises(ValueError, match="log_probability of a sample is inf"):
        GivenChoices(infinite).explore(infinite.program.start(2).delta, 0)
