"""Adaptation by a model in this process: the gradient of the formula, units, votes, early ends, and compilations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rwkv7_jax import zero_state
from state_tuning.core.objective import Example
from state_tuning.test_time_scaling import adaptation, baselines, choices, policy_gradient, selection
from state_tuning.test_time_scaling.choices import GivenChoices
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig, Weights
from state_tuning.test_time_scaling.rollouts import Problem, SampledAnswers, batch_of, signal_of
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher
from tests.adapting import BYTES, PARAMS, SETTINGS, STUDENT, TEACHER, TEACHER_STATE, first_letter, session
from tests.helpers import CONFIG, MODEL, logits, random_state


def log_policy(batch, copies, delta=None, state=None):
    """Log-probabilities [R, T, V] in float64, from S_0 = 0 + Delta or from a state."""
    rows = len(batch["tokens"])
    start = zero_state(CONFIG, rows)
    if delta is not None:
        start = start._replace(wkv=jnp.asarray(np.repeat(delta, copies, axis=1)))
    if state is not None:
        start = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], rows, *x.shape[1:])), state)
    x = np.asarray(logits(PARAMS, batch["tokens"], start), np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def drawn():
    """A reading of random samples, 2 for each of 2 prompts."""
    rng = np.random.default_rng(1)
    examples = [Example(rng.integers(1, 255, 10).astype(np.int32), 4, 0) for _ in range(4)]
    batch = batch_of(examples)
    return examples, batch, TEACHER.read(BYTES, [""] * 4, [""] * 4, examples, batch)


def test_a_teacher_reads_the_students_own_tokens():
    examples, batch, reading = drawn()
    log_q, mask = log_policy(batch, 1, state=TEACHER_STATE), batch["loss_mask"]
    chosen = np.take_along_axis(log_q, batch["targets"][..., None], -1)[..., 0] * mask
    np.testing.assert_allclose(reading.sampled.log_q, chosen, atol=1e-3)
    np.testing.assert_allclose(reading.scores.log_probability, chosen.sum(1) / mask.sum(1), rtol=1e-4)
    assert reading.scores.length.tolist() == [6] * 4
    assert reading.scores.tokens.tolist() == [len(one.tokens) for one in examples]


@pytest.mark.parametrize("kind", ["reverse", "forward", "mixed"])
def test_a_step_of_distillation_is_the_gradient_of_the_formula(kind):
    """The formula's slope along the step is the step's length."""
    config = dataclasses.replace(SETTINGS, divergence=kind, clip_norm=0.0, norm_cap=1e6)
    prog = policy_gradient.make_program(MODEL, config, optax.sgd(1.0))
    _, batch, reading = drawn()
    share = np.float32([0.05, 0.1, 0.2, 0.05])
    delta = np.float32(0.2 * np.random.default_rng(2).normal(size=(2, 2, 2, 8, 8)))
    start = prog.start(2)._replace(delta=jnp.array(delta))
    adapted, metrics = prog.update(PARAMS, STUDENT.state, start, batch, Weights(share, share), reading.target)
    slope = delta - np.asarray(adapted.delta)
    log_q, mask = log_policy(batch, 1, state=TEACHER_STATE), batch["loss_mask"]

    def formula(delta):
        log_p = log_policy(batch, 2, delta=delta)
        p, q = np.exp(log_p), np.exp(log_q)
        log_m = np.log(0.5 * (p + q))
        forward, reverse = (q * (log_q - log_p)).sum(-1), (p * (log_p - log_q)).sum(-1)
        mixed = 0.5 * (q * (log_q - log_m)).sum(-1) + 0.5 * (p * (log_p - log_m)).sum(-1)
        each = {"forward": forward, "reverse": reverse, "mixed": mixed}[kind]
        return (share * (each * mask).sum(1)).reshape(2, 2).sum(1)

    length = np.sqrt(np.square(slope).sum((0, 2, 3, 4)))
    np.testing.assert_allclose(metrics["grad_norm"], length, rtol=1e-3)
    move = np.float32(0.01) * slope / length[:, None, None, None]
    np.testing.assert_allclose((formula(delta + move) - formula(delta - move)) / 0.02, length, rtol=0.03)


def divergence_after(config, steps):
    """KL(student | teacher) at each token of fresh samples, before and after."""
    s = session(dataclasses.replace(config, samples=8))
    explorer, adapted, found = SampledAnswers(s), s.program.start(4), []
    for step in range(steps + 1):
        if step in (0, steps):
            samples = explorer.sample(adapted.delta, 1000, 8)
            batch = batch_of(samples.examples)
            states = np.asarray(adapted.delta)
            log_p = log_policy(batch, 8, states)
            kl = np.exp(log_p) * (log_p - log_policy(batch, 1, state=TEACHER_STATE))
            found.append((kl.sum(-1) * batch["loss_mask"]).sum() / batch["loss_mask"].sum())
        explored = explorer.explore(adapted.delta, step)
        known = explored.batch, explored.weights, explored.signal
        adapted, _ = s.program.update(PARAMS, s.student.state, adapted, *known)
    return found


@pytest.mark.parametrize("signal", ["distillation", "token"])
def test_the_student_comes_nearer_to_the_teacher(signal):
    before, after = divergence_after(dataclasses.replace(SETTINGS, signal=signal), 10)
    assert after < (0.7 if signal == "distillation" else 0.95) * before


def test_rates_and_caps_are_parts_of_the_state():
    state = random_state(3, 0.5)._replace(wkv=random_state(3, 0.5).wkv.at[1].set(0.0))
    config = dataclasses.replace(SETTINGS, units="state", rate=0.1, norm_cap=0.15, floor=0.2)
    prog = policy_gradient.make_program(MODEL, config)
    unit = np.asarray(policy_gradient.units(state, 0.2))[:, 0, :, 0, 0]
    rms = np.sqrt(np.square(np.asarray(state.wkv)).mean((-2, -1)))
    np.testing.assert_allclose(unit[0], rms[0], rtol=1e-5)
    np.testing.assert_allclose(unit[1], 0.2)
    _, batch, reading = drawn()
    share = np.full(4, 0.1, np.float32)
    adapted = prog.start(2)
    moved = []
    for _ in range(4):
        adapted, _ = prog.update(PARAMS, state, adapted, batch, Weights(share, share), reading.target)
        grafted = np.asarray(prog.states(state, adapted.delta, 1).wkv) - np.asarray(state.wkv)[:, None]
        moved.append(grafted / unit[:, None, :, None, None])
    first = np.abs(moved[0])
    np.testing.assert_allclose(np.quantile(first, 0.9), 0.1, rtol=0.02)
    size = np.sqrt(np.square(moved[-1]).mean((0, 2, 3, 4)))
    np.testing.assert_allclose(size, 0.15, rtol=1e-3)


def test_nothing_is_compiled_after_the_second_step():
    s = session(dataclasses.replace(SETTINGS, temperature=1.001))
    prog = s.program._replace()
    adaptation.adapt_and_vote(s._replace(config=dataclasses.replace(s.config, steps=2)), first_letter)
    known = prog.update._cache_size(), prog.states._cache_size()
    adaptation.adapt_and_vote(s._replace(config=dataclasses.replace(s.config, steps=5)), first_letter)
    assert (prog.update._cache_size(), prog.states._cache_size()) == known


def test_the_vote_is_over_all_samples_and_the_answer():
    s = session()
    found, explorer = adaptation.adapt_and_vote(s, first_letter), SampledAnswers(s)
    assert [len(rounds) for rounds in found] == [3, 3, 3]
    assert [len(pool.texts) for pool in found.pools[2]] == [9] * 4
    plain = adaptation.adapt(s)
    assert [[a.results for a in row] for row in plain] == [[a.results for a in row] for row in found.greedy]
    first = explorer.weigh(explorer.sample(s.program.start(4).delta, 0, 4))
    scores, texts = first.rewards.reshape(4, 4), np.asarray(first.samples.texts, object).reshape(4, 4)
    for b in range(4):
        ours, vote, pool = found.greedy[1][b], found.voted[1][b], found.pools[1][b]
        assert pool.texts == (*texts[b], ours.results[0])
        assert pool.answers == tuple(first_letter(b, text) for text in pool.texts)
        np.testing.assert_allclose(pool.scores[:4], scores[b], rtol=1e-4)
        assert vote.results == [pool.texts[selection.weighted_vote(pool.answers, pool.scores, s.config.vote)]]
        assert vote.cost.student_tokens == ours.cost.student_tokens
        assert vote.cost.teacher_tokens == ours.cost.teacher_tokens + pool.tokens[-1][1]
        assert vote.cost[:2] == tuple(map(sum, zip(*pool.tokens, strict=True)))
    assert found.voted[0][0].results == found.greedy[0][0].results


class Asked(InProcessTeacher):
    """Notes how many samples it reads."""

    def read(self, tokenizer, prompts, samples, examples, batch):
        self.count = getattr(self, "count", 0) + len(samples)
        return super().read(tokenizer, prompts, samples, examples, batch)


@pytest.mark.parametrize("ends", [(0,), (0, 2, 3), (0, 1, 2, 3)])
def test_prompts_whose_samples_agree_end_and_the_others_go_on_as_ever(ends):
    config = dataclasses.replace(SETTINGS, steps=3, rate=1e-3)
    plain = adaptation.adapt_and_vote(session(config), first_letter)

    def agreed(b, text):
        return "same" if b in ends else text

    teacher = Asked(TEACHER.lm, state=TEACHER_STATE, batch_size=8)
    early = adaptation.adapt_and_vote(session(dataclasses.replace(config, agreement=1.0), teacher=teacher), agreed)
    going = [b for b in range(4) if b not in ends]
    for b in going:
        for step in range(4):
            ours, theirs = early.greedy[step][b], plain.greedy[step][b]
            assert ours.results == theirs.results
            assert ours.cost[:2] == theirs.cost[:2]
            np.testing.assert_allclose(ours.rewards, theirs.rewards, rtol=1e-3)
    drawn = SampledAnswers(session(config)).sample(session(config).program.start(4).delta, 0, 4)
    for b in ends:
        for step in (1, 2, 3):
            last = early.greedy[step][b]
            assert last == early.voted[step][b] == early.greedy[1][b]
            assert last.results == [drawn.texts[4 * b]]
            assert last.cost[:2] == (sum(drawn.cost[4 * b : 4 * b + 4]), 0)
    assert teacher.count == 4 + 3 * (4 + 1) * len(going)


def test_without_agreement_nothing_ends():
    config = dataclasses.replace(SETTINGS, steps=1)
    found = adaptation.adapt_and_vote(session(config), lambda b, text: "same")
    assert all(a.cost.teacher_tokens > 0 for a in found.greedy[1])


def test_the_end_counts_in_the_teachers_score():
    plain, ended = TEACHER.score(["ab"], [" cd"]), TEACHER.score(["ab"], [" cd"], False, [True])
    tokens = jnp.asarray([BYTES.encode("ab cd")], jnp.int32)
    last = log_policy({"tokens": tokens}, 1, state=TEACHER_STATE)[0, -1, BYTES.eos_id]
    assert ended.length[0] == plain.length[0] + 1
    assert ended.tokens[0] == plain.tokens[0] + 1
    whole = (3 * plain.log_probability[0] + last) / 4
    np.testing.assert_allclose(ended.log_probability[0], whole, rtol=1e-4)


def test_a_signal_that_the_teacher_does_not_give_is_refused():
    class Scorer:
        def score(self, prompts, samples, margin=False, ended=None):
            raise AssertionError

    assert signal_of(session()) == "distillation"
    assert signal_of(session(dataclasses.replace(SETTINGS, reward="margin"))) == "reward"
    assert signal_of(session(teacher=Scorer())) == "reward"
    with pytest.raises(ValueError, match="signal token: the teacher gives no distributions"):
        signal_of(session(dataclasses.replace(SETTINGS, signal="token"), teacher=Scorer()))
    with pytest.raises(ValueError, match="agreement must lie between 0 and 1"):
        AdaptConfig(agreement=2.0)


CHOICES = [Problem("a", (("a:", " x"), ("a:", " yy"), ("a:", " z"))), Problem("b", (("b?", " x"), ("bb?", " w")))]


@pytest.mark.parametrize("kind", ["reverse", "forward", "mixed"])
def test_the_slope_over_choices_is_that_of_the_divergence(kind):
    rng = np.random.default_rng(0)
    scores, q = rng.normal(size=4), rng.dirichlet(np.ones(4))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    def divergence(x):
        p, b = softmax(x), 0.3
        m = b * q + (1 - b) * p
        kl = lambda a, c: (a * np.log(a / c)).sum()  # noqa: E731
        return {"reverse": kl(p, q), "forward": kl(q, p), "mixed": b * kl(q, m) + (1 - b) * kl(p, m)}[kind]

    found = choices.slope(softmax(scores)[None], q[None], kind, 0.3)[0]
    wanted = [(divergence(scores + h) - divergence(scores - h)) / 2e-5 for h in 1e-5 * np.eye(4)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_choices_move_towards_the_teachers_and_its_scores_can_be_added():
    s = session(dataclasses.replace(SETTINGS, steps=4), CHOICES)
    found = adaptation.adapt_and_vote(s, lambda b, text: text)
    explorer = GivenChoices(s)
    student, teacher = explorer.log_likelihoods(s.program.start(2).delta), explorer.teacher_sums()
    for b, count in enumerate((3, 2)):
        both = student[b, :count] + s.config.choice_weight * teacher[b, :count]
        np.testing.assert_allclose(found.voted[0][b].results, both, rtol=1e-5)
        assert found.voted[0][b].cost.teacher_tokens > 0
        read = found.voted[0][b].cost.teacher_tokens
        assert [answers[b].cost.teacher_tokens for answers in found.greedy] == [0, read, read, read, read]
        assert [answers[b].cost.teacher_tokens for answers in found.voted] == [read] * 5
    added = baselines.controls(s, [3], lambda b, text: text)["added"][1]
    assert [a.results for a in added] == [a.results for a in found.voted[0]]

    def distance(results, b):
        p, q = (np.exp(x - np.logaddexp.reduce(x)) for x in (np.asarray(results), teacher[b, : len(results)]))
        return (p * np.log(p / q)).sum()

    for b in range(2):
        assert distance(found.greedy[-1][b].results, b) < distance(found.greedy[0][b].results, b)
