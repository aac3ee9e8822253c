"""What adaptation has to beat: votes and best-of-N without it, the teacher's scores added, and the teacher alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from state_tuning.test_time_scaling import selection
from state_tuning.test_time_scaling.choices import GivenChoices
from state_tuning.test_time_scaling.cost import Clock, Cost
from state_tuning.test_time_scaling.outcomes import Answer, Answered, explorer_of
from state_tuning.test_time_scaling.rollouts import NOT_CHOSEN, Problem, Results, Samples, Session, reward
from state_tuning.test_time_scaling.teacher.in_process import Scores

Choose = Callable[[Sequence[object], np.ndarray], int]
"""(answers of some samples, their scores) -> the place of the chosen one"""


def controls(session: Session, sizes: Sequence[int], answer: Answer) -> dict[str, dict[int, list[Answered]]]:
    """Answers by votes and best-of-N, without adaptation.

    The N samples are the first of the same max(sizes), of which the first K are those of the adaptation's first step.
    The scorer is the adaptation's; best-of-N takes the first sample where it scores none of them. Choices are drawn
    from their policy, and the vote is between them.

    Args:
      session: model, teacher, problems and settings.
      sizes: the N, numbers of samples.
      answer: (position of the problem, text of a sample) -> its final answer, None if it has none.

    Returns:
      {"self_consistency", "best_of_n", "weighted_vote"} -> N -> the answer of each problem. Given choices have "added"
      instead of the last, at N = 1: the teacher's log-likelihoods, times `choice_weight`, added to the student's.
    """
    pool, drawn = _pool(session, max(sizes))
    weight = session.config.vote
    methods: dict[str, Choose] = {
        "self_consistency": lambda votes, scores: selection.majority(list(votes)),  # pyright: ignore[reportArgumentType]
        "best_of_n": lambda votes, scores: 0 if np.isnan(scores).all() else selection.best(scores),
    }
    chosen = bool(session.problems[0].choices)
    if not chosen:
        methods["weighted_vote"] = lambda votes, scores: selection.weighted_vote(
            list(votes),
            scores,
            weight,  # pyright: ignore[reportArgumentType]
        )
    found: dict[str, dict[int, list[Answered]]] = {name: {size: [] for size in sizes} for name in methods}
    for size in sizes:
        for b, problem in enumerate(session.problems):
            members = drawn[b, :size].tolist()
            votes = [r if problem.choices else answer(b, pool.samples.texts[r]) for r in members]
            sampled = pool.sampling(members)
            first = int(b * len(pool.samples.texts) / len(session.problems))
            for name, choose in methods.items():
                best = members[choose(votes, pool.rewards[members])]
                cost = sampled if name == "self_consistency" else sampled.plus(pool.scoring(members))
                found[name][size].append(Answered(_chosen(problem, pool.samples, best, first), cost))
    return found | ({"added": {1: added(session)}} if chosen and session.config.reward == "log_probability" else {})


def sample_pools(session: Session, count: int, answer: Answer) -> list[selection.Pool]:
    """Draws and scores `count` samples of each problem without adaptation; the first of them are those of `controls`.

    Args:
      session: model, teacher, open problems and settings.
      count: samples of each.
      answer: (position of the problem, text of a sample) -> its final answer, None if it has none.

    Returns:
      The samples of each problem.
    """
    pool, drawn = _pool(session, count)
    found = list[selection.Pool]()
    for b, members in enumerate(drawn):
        texts = [pool.samples.texts[r] for r in members]
        tokens = [(pool.samples.cost[r], int(pool.scores.tokens[r])) for r in members]
        answers = [answer(b, text) for text in texts]
        found.append(selection.Pool().plus(texts, answers, pool.rewards[members], tokens))
    return found


def added(session: Session) -> list[Answered]:
    """Answers by the student's log-likelihoods of given choices plus `choice_weight` times the teacher's.

    Args:
      session: model, teacher, problems with choices, and settings.

    Returns:
      The answer of each problem.
    """
    explorer, clock = explorer_of(session), Clock(len(session.problems))
    assert isinstance(explorer, GivenChoices)
    delta = session.program.start(len(session.problems)).delta
    results, cost = explorer.added(delta)
    return [Answered(*row) for row in zip(results, clock.charge([Cost()] * len(cost), cost), strict=True)]


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
    explorer, clock = explorer_of(session), Clock(len(session.problems))
    teacher, problems = session.teacher, session.problems
    results: list[Results]
    if isinstance(explorer, GivenChoices):
        scores = explorer.score()
        sums = (scores.log_probability * scores.length).reshape(len(problems), -1)
        pairs = zip(sums, scores.margin.reshape(sums.shape), problems, strict=True)
        results = [_preferred(row[: len(p.choices)], margin[: len(p.choices)]) for row, margin, p in pairs]
        tokens = scores.tokens.reshape(len(problems), -1).sum(1)
    else:
        found = teacher.generate([p.prompt for p in problems], session.config.max_new_tokens, problems[0].stop)
        results = [[text] for text in found.texts]
        tokens = found.tokens
    cost = clock.charge([Cost()] * len(problems), [Cost(0, int(n)) for n in tokens])
    return [Answered(*pair) for pair in zip(results, cost, strict=True)]


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


def _pool(session: Session, count: int) -> tuple[_Pool, np.ndarray]:
    """`count` samples a prompt without adaptation, with their scores; and their places [B, count]."""
    explorer, clock = explorer_of(session), Clock(len(session.problems))
    delta = session.program.start(len(session.problems)).delta
    if isinstance(explorer, GivenChoices):
        samples, drawn = explorer.samples, explorer.draw(delta, count)
    else:
        samples = explorer.sample(delta, 0, count)
        drawn = np.arange(count * len(session.problems)).reshape(-1, count)
    sampling = clock.lap()
    scores = explorer.score() if isinstance(explorer, GivenChoices) else explorer.judge(samples)
    rewards = reward(scores, session.config)
    return _Pool(samples, scores, rewards, sampling / count, clock.lap() / count), drawn


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
