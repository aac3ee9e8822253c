"""The loop of test-time scaling: explore, ask the teacher, move every prompt's Delta, answer; and its controls.

What happens to a prompt depends on its own key, not on its batch. No gold label is used.
"""

import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from state_tuning.core.train import Metrics
from state_tuning.test_time_scaling import selection
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.policy_gradient import Adapted, Weights
from state_tuning.test_time_scaling.rollouts import (
    NOT_CHOSEN,
    GivenChoices,
    Problem,
    Results,
    SampledAnswers,
    Samples,
    Session,
    batch_of,
    reward,
)
from state_tuning.test_time_scaling.teacher.in_process import Scores


class Answered(NamedTuple):
    """What one problem was answered, at what cost."""

    results: Results
    cost: Cost
    rewards: tuple[float, ...] = ()
    """Of the samples of the step before."""


Answer = Callable[[int, str], Hashable]
"""(position of the problem, text of a sample) -> its final answer, which self-consistency counts; None if none."""


def adapt(session: Session) -> list[list[Answered]]:
    """Adapts the initial state to each prompt.

    Args:
      session: model, teacher, problems and settings.

    Returns:
      The answers before adaptation and after each policy-gradient step, [steps + 1][B]. A cost holds all exploration
      up to its answer, and that answer, but none of the earlier answers. A warning names the prompts of which a
      gradient was not finite: their Delta stays as it was.

    Raises:
      ValueError: the problems are of both kinds, or have different stops.
    """
    explorer, clock = explorer_of(session), _Clock(len(session.problems))
    student, program, config = session.student, session.program, session.config
    none = [Cost()] * len(session.problems)
    adapted, spent, rewards = program.start(len(none)), none, [()] * len(none)
    if config.chain_steps:
        adapted, cost = _imitate(session, explorer, adapted)
        spent = clock.charge(spent, cost)
    rounds = []
    for step in range(config.steps + 1):
        results, cost = explorer.answer(adapted.delta)
        rounds.append([Answered(*row) for row in zip(results, clock.charge(spent, cost), rewards, strict=True)])
        if step == config.steps:
            break
        found = explorer.explore(adapted.delta, step)
        batch = batch_of(found.samples.examples)
        adapted, metrics = program.update(student.lm.params, student.state, adapted, batch, found.weights)
        jax.block_until_ready(adapted.delta)
        _tell_what_stays(metrics, f"step {step + 1}")
        spent = clock.charge(spent, found.cost)
        rewards = [tuple(map(float, row)) for row in found.rewards.reshape(len(none), -1)]
    return rounds


def controls(session: Session, sizes: Sequence[int], answer: Answer) -> dict[str, dict[int, list[Answered]]]:
    """Answers by self-consistency and best-of-N, without adaptation.

    The N samples are the first of the same max(sizes), of which the first K are those of the adaptation's first step.
    The scorer of best-of-N is the adaptation's; the first sample stands where it scores none of them. Choices are drawn
    from their policy, and the vote is between them.

    Args:
      session: model, teacher, problems and settings.
      sizes: the N, numbers of samples.
      answer: (position of the problem, text of a sample) -> its final answer, None if it has none.

    Returns:
      {"self_consistency", "best_of_n"} -> N -> the answer of each problem.
    """
    explorer, clock, count = explorer_of(session), _Clock(len(session.problems)), max(sizes)
    delta = session.program.start(len(session.problems)).delta
    if isinstance(explorer, GivenChoices):
        samples, drawn = explorer.samples, _draw(explorer, delta, count)
    else:
        samples = explorer.sample(delta, 0, count)
        drawn = np.arange(count * len(session.problems)).reshape(-1, count)
    sampling = clock.lap()
    scores = explorer.score() if isinstance(explorer, GivenChoices) else explorer.score(samples)
    spent = _Pool(samples, scores, reward(scores, session.config), sampling / count, clock.lap() / count)
    found: dict[str, dict[int, list[Answered]]] = {"self_consistency": {}, "best_of_n": {}}
    for size in sizes:
        for b, problem in enumerate(session.problems):
            members = drawn[b, :size].tolist()
            votes = [r if problem.choices else answer(b, samples.texts[r]) for r in members]
            by_vote, by_score = members[selection.majority(votes)], _best(members, spent.rewards)
            first = int(b * len(samples.texts) / len(session.problems))
            sampled = spent.sampling(members)
            voted = Answered(_chosen(problem, samples, by_vote, first), sampled)
            scored = Answered(_chosen(problem, samples, by_score, first), sampled.plus(spent.scoring(members)))
            found["self_consistency"].setdefault(size, []).append(voted)
            found["best_of_n"].setdefault(size, []).append(scored)
    return found


def teacher_alone(session: Session) -> list[Answered]:
    """Answers by the larger model itself: its greedy text, or its log-likelihood of each choice.

    Of choices without log-likelihoods (a chat endpoint) it chooses the one with the largest margin.

    Args:
      session: teacher, problems and settings.

    Returns:
      The answer of each problem.

    Raises:
      ValueError: the teacher gives neither.
    """
    explorer, clock = explorer_of(session), _Clock(len(session.problems))
    teacher, problems = session.teacher, session.problems
    results: list[Results]
    if isinstance(explorer, GivenChoices):
        scores = explorer.score()
        sums = (scores.log_probability * scores.length).reshape(len(problems), -1)
        pairs = zip(sums, scores.margin.reshape(sums.shape), problems, strict=True)
        results: list[Results] = [
            _preferred(row[: len(p.choices)], margin[: len(p.choices)]) for row, margin, p in pairs
        ]
        tokens = scores.tokens.reshape(len(problems), -1).sum(1)
    else:
        found = teacher.generate([p.prompt for p in problems], session.config.max_new_tokens, problems[0].stop)
        results = [[text] for text in found.texts]
        tokens = found.tokens
    cost = clock.charge([Cost()] * len(problems), [Cost(0, int(n)) for n in tokens])
    return [Answered(*pair) for pair in zip(results, cost, strict=True)]


def explorer_of(session: Session) -> SampledAnswers | GivenChoices:
    """Returns the explorer for the session's problems.

    Raises:
      ValueError: they are of both kinds, or have different stops.
    """
    kinds = {(bool(problem.choices), problem.stop) for problem in session.problems}
    if len(kinds) != 1:
        raise ValueError("the problems of a batch must all be open, with the same stops, or all have choices")
    return GivenChoices(session) if session.problems[0].choices else SampledAnswers(session)


class _Pool(NamedTuple):
    """Samples with rewards; seconds per sample of a prompt, to draw it and to score it."""

    samples: Samples
    scores: Scores
    rewards: np.ndarray
    sampling_seconds: float
    scoring_seconds: float

    def sampling(self, members: Sequence[int]) -> Cost:
        """Returns the cost of drawing these samples."""
        return Cost(sum(self.samples.cost[r] for r in members), 0, self.sampling_seconds * len(members))

    def scoring(self, members: Sequence[int]) -> Cost:
        """Returns the cost of scoring these samples, each different one once."""
        tokens = sum(int(self.scores.tokens[r]) for r in set(members))
        return Cost(0, tokens, self.scoring_seconds * len(members))


class _Clock:
    """Wall-clock seconds per prompt since the last lap."""

    def __init__(self, prompts: int):
        self.prompts, self.last = prompts, time.perf_counter()

    def lap(self) -> float:
        """Returns the seconds per prompt since the last lap."""
        now = time.perf_counter()
        seconds, self.last = (now - self.last) / self.prompts, now
        return seconds

    def charge(self, spent: Sequence[Cost], cost: Sequence[Cost]) -> list[Cost]:
        """Returns spent + cost + the seconds since the last lap, prompt by prompt."""
        seconds = Cost(seconds=self.lap())
        return [a.plus(b).plus(seconds) for a, b in zip(spent, cost, strict=True)]


def _imitate(session: Session, explorer: SampledAnswers | GivenChoices, adapted: Adapted) -> tuple[Adapted, list[Cost]]:
    """The chain-of-thought channel: NLL steps on one answer of the teacher for each prompt."""
    examples, cost = explorer.teacher_answers()
    share = np.asarray([1.0 / max(1, len(e.tokens) - e.completion_start) for e in examples], np.float32)
    student, batch = session.student, batch_of(examples)
    for step in range(session.config.chain_steps):
        adapted, metrics = session.program.update(
            student.lm.params, student.state, adapted, batch, Weights(share, share)
        )
        _tell_what_stays(metrics, f"chain step {step + 1}")
    return adapted, cost


def _tell_what_stays(metrics: Metrics, step: str) -> None:
    """Warns of prompts whose gradient was not finite, so that their Delta stays as it was."""
    kept = np.flatnonzero(~np.asarray(jax.device_get(metrics["applied"])))
    if kept.size:
        numbers = ", ".join(map(str, kept[:4])) + (", ..." if kept.size > 4 else "")
        warnings.warn(
            f"{step}: the gradient of {kept.size} prompts (numbers {numbers} of the batch) is not finite, so that "
            "their states stay as they were; check the weights, or lower adapt.rate",
            stacklevel=3,
        )


def _draw(explorer: GivenChoices, delta: Array, count: int) -> Int[np.ndarray, "B N"]:
    """Positions of choices [B, count], drawn from the policy."""
    log_p = explorer.log_likelihoods(delta).astype(np.float32)
    drawn = jax.vmap(lambda key, row: jax.random.categorical(key, row, shape=(count,)))(explorer.s.keys, log_p)
    return np.asarray(drawn) + np.arange(len(log_p))[:, None] * explorer.width


def _best(members: Sequence[int], rewards: np.ndarray) -> int:
    """The member of the largest reward, the first one if none has one."""
    found = rewards[list(members)]
    return members[0 if np.isnan(found).all() else selection.best(found)]


def _preferred(likely: np.ndarray, margin: np.ndarray) -> list[float]:
    """Log-likelihoods as they are; without all of them, the choice with the largest margin, a missing one aside."""
    if not np.isnan(likely).any():
        return likely.tolist()
    if np.isnan(margin).all():
        raise ValueError("the teacher gives no log_probability of a choice; choose reward margin, or another interface")
    chosen = selection.best(margin)
    return [0.0 if k == chosen else NOT_CHOSEN for k in range(len(margin))]


def _chosen(problem: Problem, samples: Samples, chosen: int, first: int) -> Results:
    """The sample at `chosen` as the answer to a problem whose samples begin at `first`."""
    if not problem.choices:
        return [samples.texts[chosen]]
    return [0.0 if first + k == chosen else NOT_CHOSEN for k in range(len(problem.choices))]
