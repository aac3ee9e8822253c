"""The loop of test-time scaling: explore, ask the teacher, move every prompt's Delta, answer, vote over all samples.

What happens to a prompt depends on its own key, not on its batch. No gold label is used.
"""

import warnings
from typing import NamedTuple

import jax
import numpy as np

from state_tuning.core.train import Metrics
from state_tuning.test_time_scaling import selection
from state_tuning.test_time_scaling.choices import GivenChoices
from state_tuning.test_time_scaling.cost import Clock, Cost
from state_tuning.test_time_scaling.outcomes import Answer, Answered, explorer_of
from state_tuning.test_time_scaling.policy_gradient import Adapted, Weights
from state_tuning.test_time_scaling.rollouts import SampledAnswers, Samples, Session, batch_of, reward

__all__ = ["Adaptation", "adapt", "adapt_and_vote"]

PER_PROMPT = 5
"""Axes of an array with a part for each prompt, [L, B, H, V, K]; all others are shared."""


class Adaptation(NamedTuple):
    """Answers before adaptation and after each step, `[steps + 1][B]`."""

    greedy: list[list[Answered]]
    """The adapted model's own answer."""
    voted: list[list[Answered]]
    """The vote over all samples drawn so far and that answer, weighted by the teacher's scores. Of given choices the
    adapted model's log-likelihoods, with the teacher's added."""
    pools: list[list[selection.Pool]]
    """What the votes are over; of given choices nothing."""


def adapt(session: Session) -> list[list[Answered]]:
    """Adapts the initial state to each prompt.

    Args:
      session: model, teacher, problems and settings.

    Returns:
      The answers before adaptation and after each gradient step, `[steps + 1][B]`. A cost holds all exploration up to
      its answer, and that answer, but none of the earlier answers. A warning names the prompts of which a gradient was
      not finite: their Delta stays as it was.

    Raises:
      ValueError: the problems are of both kinds, or have different stops; or the teacher does not give the signal.
    """
    return _Run(session, None).rounds().greedy


def adapt_and_vote(session: Session, answer: Answer) -> Adaptation:
    """Adapts as `adapt`, and votes over all samples that were drawn on the way: they were scored anyway.

    With `agreement` above 0 a prompt ends once so many of a step's samples have one answer: that is its answer, both
    ways, and costs nothing further.

    Args:
      session: model, teacher, problems and settings.
      answer: (position of the problem, text of a sample) -> its final answer, None if it has none.

    Returns:
      Both answers. The vote's cost is that of the answer, and the teacher's reading of it.

    Raises:
      ValueError: as `adapt`.
    """
    return _Run(session, answer).rounds()


class _Run:
    """The problems of a session while they adapt; those that ended early leave the batch when half of it has."""

    def __init__(self, session: Session, answer: Answer | None):
        self.answer, self.whole, self.s = answer, session, session
        self.explorer = explorer_of(session)
        count = len(session.problems)
        self.adapted = session.program.start(count)
        self.spent, self.clock = [Cost()] * count, Clock(count)
        self.rewards: list[tuple[float, ...]] = [()] * count
        self.pools = [selection.Pool() for _ in range(count)]
        self.asked = list(self.pools)
        """The same, with the last answer."""
        self.row_of = {b: b for b in range(count)}
        """Rows of the batch by problem, of those that go on."""
        self.ended: dict[int, Answered] = {}

    def rounds(self) -> Adaptation:
        """Returns the answers of all rounds."""
        if self.s.config.chain_steps:
            self.adapted, cost = _imitate(self.s, self.explorer, self.adapted)
            self.spent = self.clock.charge(self.spent, cost)
        found = Adaptation([], [], [])
        for step in range(self.s.config.steps + 1):
            greedy, voted = self._answers()
            found.greedy.append(greedy)
            found.voted.append(voted)
            found.pools.append(list(self.asked))
            if step == self.s.config.steps:
                break
            self._step(step)
        return found

    def _answers(self) -> tuple[list[Answered], list[Answered]]:
        greedy, voted = dict(self.ended), dict(self.ended)
        if self.row_of:
            own = self._choice_answers() if isinstance(self.explorer, GivenChoices) else self._text_answers()
            greedy, voted = greedy | own[0], voted | own[1]
        places = range(len(self.whole.problems))
        return [greedy[b] for b in places], [voted[b] for b in places] if self.answer else []

    def _choice_answers(self) -> tuple[dict[int, Answered], dict[int, Answered]]:
        explorer = self.explorer
        assert isinstance(explorer, GivenChoices)
        results, cost = explorer.answer(self.adapted.delta)
        costs = self.clock.charge(self.spent, cost)
        greedy = {b: Answered(*row) for b, row in enumerate(zip(results, costs, self.rewards, strict=True))}
        if self.answer is None or self.s.config.reward == "margin":
            return greedy, greedy
        results, cost = explorer.added(self.adapted.delta, asked=explorer.charged)
        voted = self.clock.charge(self.spent, cost)
        return greedy, {b: Answered(*row) for b, row in enumerate(zip(results, voted, self.rewards, strict=True))}

    def _text_answers(self) -> tuple[dict[int, Answered], dict[int, Answered]]:
        explorer = self.explorer
        assert isinstance(explorer, SampledAnswers)
        samples = explorer.greedy(self.adapted.delta)
        lap, greedy = Cost(seconds=self.clock.lap()), dict[int, Answered]()
        for b, row in self.row_of.items():
            cost = self.spent[b].plus(Cost(samples.cost[row])).plus(lap)
            greedy[b] = Answered([samples.texts[row]], cost, self.rewards[b])
        if self.answer is None:
            return greedy, greedy
        scores = explorer.judge(samples)
        rewards, lap, voted = reward(scores, self.s.config), Cost(seconds=self.clock.lap()), dict[int, Answered]()
        for b, row in self.row_of.items():
            text, read = samples.texts[row], int(scores.tokens[row])
            tokens = [(samples.cost[row], read)]
            self.asked[b] = self.pools[b].plus([text], [self.answer(b, text)], [rewards[row]], tokens)
            cost = greedy[b].cost.plus(Cost(0, read)).plus(lap)
            voted[b] = Answered([self.asked[b].voted(self.s.config.vote)], cost, self.rewards[b])
        return greedy, voted

    def _step(self, step: int) -> None:
        """Explores, and moves the Delta of every prompt that goes on."""
        student, program, config = self.s.student, self.s.program, self.s.config
        if not self.row_of:
            return
        if isinstance(self.explorer, GivenChoices):
            found = self.explorer.explore(self.adapted.delta, step)
        else:
            samples = self.explorer.sample(self.adapted.delta, step * config.samples, config.samples)
            samples = self._end_early(samples)
            if samples is None:
                return
            found = self.explorer.weigh(samples)
        self.adapted, metrics = program.update(
            student.lm.params, student.state, self.adapted, found.batch, found.weights, found.signal
        )
        jax.block_until_ready(self.adapted.delta)
        _tell_what_stays(metrics, f"step {step + 1}")
        self._keep(found.samples, found.rewards, found.cost, found.read)

    def _end_early(self, samples: Samples) -> Samples | None:
        """Ends the prompts whose samples agree, before they are scored; returns the samples of all others."""
        size, least = len(samples.texts) // len(self.s.problems), self.s.config.agreement
        if not least or self.answer is None:
            return samples
        lap = Cost(seconds=self.clock.lap())
        for b, row in list(self.row_of.items()):
            own = slice(row * size, (row + 1) * size)
            texts, spent = samples.texts[own], samples.cost[own]
            answers = [self.answer(b, text) for text in texts]
            self.spent[b] = self.spent[b].plus(lap)
            if selection.agreement(answers) >= least:
                cost = self.spent[b].plus(Cost(sum(spent)))
                self.ended[b] = Answered([texts[selection.majority(answers)]], cost, self.rewards[b])
                del self.row_of[b]
        if len(self.row_of) == len(self.s.problems):
            return samples
        if not self.row_of:
            return None
        rows = self._narrow()
        return samples.of(rows, size)

    def _narrow(self) -> list[int]:
        """Brings the prompts that go on to the front of a batch of a half, a quarter, ... of the first one's size.

        Few sizes occur, so that few programs are compiled. Rows behind them repeat the first and count nowhere.
        """
        live, size = list(self.row_of.values()), len(self.s.problems)
        while size % 2 == 0 and size // 2 >= len(live):
            size //= 2
        rows = live + live[:1] * (size - len(live))
        at = np.asarray(rows)
        self.adapted = jax.tree.map(lambda leaf: leaf[:, at] if leaf.ndim == PER_PROMPT else leaf, self.adapted)
        self.s = self.s._replace(problems=[self.s.problems[row] for row in rows], keys=self.s.keys[at])
        self.explorer = SampledAnswers(self.s, len(live))
        self.row_of = {b: place for place, b in enumerate(self.row_of)}
        return rows

    def _keep(self, samples: Samples, rewards: np.ndarray, cost: list[Cost], read: np.ndarray) -> None:
        """Charges a step to its prompts, and adds its samples to their pools."""
        lap, groups = Cost(seconds=self.clock.lap()), rewards.reshape(len(self.s.problems), -1)
        size = groups.shape[1]
        for b, row in self.row_of.items():
            self.spent[b] = self.spent[b].plus(cost[row]).plus(lap)
            self.rewards[b] = tuple(map(float, groups[row]))
            if self.answer and not self.s.problems[0].choices:
                own = slice(row * size, (row + 1) * size)
                texts, tokens = samples.texts[own], list(zip(samples.cost[own], read[own].tolist(), strict=True))
                self.pools[b] = self.pools[b].plus(texts, [self.answer(b, text) for text in texts], groups[row], tokens)


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
            stacklevel=4,
        )
