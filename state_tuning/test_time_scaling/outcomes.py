"""What one problem was answered, at what cost; and which explorer tries answers to a batch of problems."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from state_tuning.test_time_scaling.choices import GivenChoices
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.rollouts import Results, SampledAnswers, Session


class Answered(NamedTuple):
    """What one problem was answered, at what cost."""

    results: Results
    """[text], or the log-likelihood of each given choice, nats."""
    cost: Cost
    """Of the answer and of all exploration before it."""
    rewards: tuple[float, ...] = ()
    """Of the samples of the step before."""


Answer = Callable[[int, str], Hashable]
"""(position of the problem, text of a sample) -> its final answer, which votes are counted by; None if it has none."""


def explorer_of(session: Session) -> SampledAnswers | GivenChoices:
    """Returns the explorer for the session's problems.

    Raises:
      ValueError: they are of both kinds, or have different stops.
    """
    kinds = {(bool(problem.choices), problem.stop) for problem in session.problems}
    if len(kinds) != 1:
        raise ValueError("the problems of a batch must all be open, with the same stops, or all have choices")
    return GivenChoices(session) if session.problems[0].choices else SampledAnswers(session)
