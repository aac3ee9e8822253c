"""The loop of test-time scaling: explore, ask the teacher, move every prompt's Delta, answer; and its controls.

What happens to a prompt depends on its own key, not on its batch. Gold labels appear nowhere in here.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from state_tuning.test_time_scaling import selection
from state_tuning.test_time_scaling.cost import Budget
from state_tuning.test_time_scaling.policy_gradient import Adapted, Weights
from state_tuning.test_time_scaling.rollouts import NOT_CHOSEN, Chains, Closed, Open, Problem, Session, batch_of, reward
from state_tuning.test_time_scaling.teacher.in_process import Scores


class Answered(NamedTuple):
    """What one problem was answered, at what cost."""

    results: list[Any]
    """As benchmark tasks take them: [text], or the log-likelihood of each choice."""
    budget: Budget
    rewards: tuple[float, ...] = ()
    """Of the chains of the step before."""


Answer = Callable[[int, str], Hashable]
"""(position of the problem, text of a chain) -> its final answer, None if it has none: what self-consistency counts."""


def adapt(session: Session) -> list[list[Answered]]:
    """The answers before adaptation and after each policy-gradient step: [steps + 1][B].

    A budget holds all exploration up to its answer, and that answer, but none of the earlier answers: who takes so many
    steps asks for one. Raises: ValueError if the problems are of both kinds, or have different stops.
    """
    explorer, clock = explorer_of(session), _Clock(len(session.problems))
    student, program, config = session.student, session.program, session.config
    none = [Budget()] * len(session.problems)
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
        batch = batch_of(found.chains.examples)
        adapted, _ = program.update(student.params, student.state, adapted, batch, found.weights)
        jax.block_until_ready(adapted.delta)
        spent = clock.charge(spent, found.cost)
        rewards = [tuple(map(float, row)) for row in found.rewards.reshape(len(none), -1)]
    return rounds


def controls(session: Session, sizes: Sequence[int], answer: Answer) -> dict[str, dict[int, list[Answered]]]:
    """Without adaptation: {"self_consistency", "best_of_n"} -> N -> the answer of each problem.

    N are the first of the same max(sizes) chains, of which the first K are those of the adaptation's first step. The
    scorer of best-of-N is the adaptation's. Choices are drawn from their policy, and the vote is between them.
    """
    explorer, clock, count = explorer_of(session), _Clock(len(session.problems)), max(sizes)
    delta = session.program.start(len(session.problems)).delta
    if isinstance(explorer, Closed):
        chains, drawn = explorer.chains, _draw(explorer, delta, count)
    else:
        chains = explorer.sample(delta, 0, count)
        drawn = np.arange(count * len(session.problems)).reshape(-1, count)
    sampling = clock.lap()
    scores = explorer.score() if isinstance(explorer, Closed) else explorer.score(chains)
    spent = _Pool(chains, scores, reward(scores, session.config), sampling / count, clock.lap() / count)
    found: dict[str, dict[int, list[Answered]]] = {"self_consistency": {}, "best_of_n": {}}
    for size in sizes:
        for b, problem in enumerate(session.problems):
            members = drawn[b, :size].tolist()
            votes = [r if problem.choices else answer(b, chains.texts[r]) for r in members]
            by_vote, by_score = members[selection.majority(votes)], members[selection.best(spent.rewards[members])]
            first = int(b * len(chains.texts) / len(session.problems))
            voted = Answered(_chosen(problem, chains, by_vote, first), spent.written(members))
            scored = Answered(
                _chosen(problem, chains, by_score, first), spent.written(members).plus(spent.read(members))
            )
            found["self_consistency"].setdefault(size, []).append(voted)
            found["best_of_n"].setdefault(size, []).append(scored)
    return found


def alone(session: Session) -> list[Answered]:
    """The larger model itself: its greedy answer, or its log-likelihood of each choice.

    Of choices without log-likelihoods (a chat endpoint) it chooses the one with the largest margin. Raises: ValueError
    if it gives neither.
    """
    explorer, clock = explorer_of(session), _Clock(len(session.problems))
    teacher, problems = session.teacher, session.problems
    if isinstance(explorer, Closed):
        scores = explorer.score()
        sums = (scores.log_probability * scores.length).reshape(len(problems), -1)
        pairs = zip(sums, scores.margin.reshape(sums.shape), problems, strict=True)
        results = [_preferred(row[: len(p.choices)], margin[: len(p.choices)]) for row, margin, p in pairs]
        tokens = scores.tokens.reshape(len(problems), -1).sum(1)
    else:
        written = teacher.write([p.prompt for p in problems], session.config.max_new_tokens, problems[0].stop)
        results, tokens = [[text] for text in written.texts], written.tokens
    cost = clock.charge([Budget()] * len(problems), [Budget(0, int(n)) for n in tokens])
    return [Answered(*pair) for pair in zip(results, cost, strict=True)]


def explorer_of(session: Session) -> Open | Closed:
    """The explorer for the session's problems. Raises: ValueError if they are of both kinds or have different stops."""
    kinds = {(bool(problem.choices), problem.stop) for problem in session.problems}
    if len(kinds) != 1:
        raise ValueError("the problems of a batch must all be open, with the same stops, or all have choices")
    return Closed(session) if session.problems[0].choices else Open(session)


class _Pool(NamedTuple):
    """Chains with rewards; seconds per chain of a prompt, to write it and to score it."""

    chains: Chains
    scores: Scores
    rewards: np.ndarray
    writing: float
    scoring: float

    def written(self, members: Sequence[int]) -> Budget:
        return Budget(sum(self.chains.cost[r] for r in members), 0, self.writing * len(members))

    def read(self, members: Sequence[int]) -> Budget:
        """Each different chain is scored once."""
        tokens = sum(int(self.scores.tokens[r]) for r in set(members))
        return Budget(0, tokens, self.scoring * len(members))


class _Clock:
    """Wall-clock seconds per prompt since the last look."""

    def __init__(self, prompts: int):
        self.prompts, self.last = prompts, time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.last = (now - self.last) / self.prompts, now
        return seconds

    def charge(self, spent: Sequence[Budget], cost: Sequence[Budget]) -> list[Budget]:
        """Prompt by prompt, spent + cost + the seconds since the last look."""
        seconds = Budget(seconds=self.lap())
        return [a.plus(b).plus(seconds) for a, b in zip(spent, cost, strict=True)]


def _imitate(session: Session, explorer: Open | Closed, adapted: Adapted) -> tuple[Adapted, list[Budget]]:
    """The chain-of-thought channel: NLL steps on one chain of the teacher's for each prompt."""
    examples, cost = explorer.written()
    share = np.asarray([1.0 / max(1, len(e.tokens) - e.completion_start) for e in examples], np.float32)
    student, batch = session.student, batch_of(examples)
    for _ in range(session.config.chain_steps):
        adapted, _ = session.program.update(student.params, student.state, adapted, batch, Weights(share, share))
    return adapted, cost


def _draw(explorer: Closed, delta: Array, count: int) -> np.ndarray:
    """Rows of choices [B, count], drawn from the policy."""
    log_p = explorer.log_likelihoods(delta).astype(np.float32)
    drawn = jax.vmap(lambda key, row: jax.random.categorical(key, row, shape=(count,)))(explorer.s.keys, log_p)
    return np.asarray(drawn) + np.arange(len(log_p))[:, None] * explorer.width


def _preferred(likely: np.ndarray, margin: np.ndarray) -> list[float]:
    """Log-likelihoods as they are; without all of them, the choice with the largest margin."""
    if not np.isnan(likely).any():
        return likely.tolist()
    if np.isnan(margin).any():
        raise ValueError("the teacher gives no log_probability of a choice; choose reward margin, or another interface")
    return [0.0 if k == margin.argmax() else NOT_CHOSEN for k in range(len(margin))]


def _chosen(problem: Problem, chains: Chains, row: int, first: int) -> list[Any]:
    """The chain at `row` as the answer to a problem whose rows begin at `first`."""
    if not problem.choices:
        return [chains.texts[row]]
    return [0.0 if first + k == row else NOT_CHOSEN for k in range(len(problem.choices))]
