"""What is measured of a frozen model from any state: held-out losses, log-likelihoods, greedy answers, scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from experiments.data.batching import padded
from experiments.evaluation.answering import Answerer, StateRequest, no_tick
from experiments.tasks import Loglikelihood, Record, Request, Task
from experiments.tasks.types import Result
from rwkv7_jax import RWKV7, State
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.functional import Params
from rwkv7_jax.inference.scoring import Tick
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.sharding import host
from state_tuning.core import surgery, train
from state_tuning.core.objective import Batch, Example


class Scorer(NamedTuple):
    """The model's jitted loss; make it once, states and weights are arguments."""

    nll: Callable[[Params, State, Batch], tuple[Array, Array]]
    """(params, unbatched state, batch) -> (summed completion NLL [B] in nats, completion tokens [B])"""


def make_scorer(model: RWKV7) -> Scorer:
    """Returns the jitted loss of a model."""
    start = train.Method(init=lambda: None, graft=surgery.broadcast)
    return Scorer(train.make_eval_step(model, train.TuneConfig(), start, per_row=True))


class Evaluator(NamedTuple):
    """A model with its scorer, sequences at once, and the longest answer in tokens."""

    lm: LanguageModel
    scorer: Scorer
    batch_size: int
    max_new_tokens: int = 96
    tick: Tick = no_tick
    """Called with the number of sequences done after each batch."""

    @property
    def answerer(self) -> Answerer:
        """A new one, with its own count of tokens."""
        return Answerer(self.lm, self.batch_size)

    def losses(
        self, state: State, examples: Sequence[Example]
    ) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """Returns (summed completion NLL in nats, completion tokens), float64 [N] each, in the order of `examples`.

        Raises:
          NonFiniteLogitsError: a `ValueError`; a loss is not finite.
        """
        nll, count = np.zeros(len(examples)), np.zeros(len(examples))
        for chosen, batch in padded(examples, self.batch_size):
            sums, tokens = host(self.scorer.nll(self.lm.params, state, batch))
            nll[chosen], count[chosen] = sums[: len(chosen)], tokens[: len(chosen)]
            if not np.isfinite(nll[chosen]).all():
                with cause_named(self.lm.params, [state]):
                    raise NonFiniteLogitsError("held-out losses are not finite")
            self.tick(len(chosen))
        return nll, count

    def log_likelihoods(self, state: State, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Returns log P(continuation | context) in nats for each pair, tokens as in the harness."""
        return self.answerer.log_likelihoods([(Loglikelihood(*pair), 0) for pair in pairs], [state], (), self.tick)

    def answers(self, state: State, prompts: Sequence[str], stop: Sequence[str], max_tokens: int) -> list[str]:
        """Returns greedy continuations, cut before the first stop string."""
        return self.answerer.texts([(prompt, 0) for prompt in prompts], [state], stop, max_tokens, (), self.tick)

    def results(self, state: State, requests: Sequence[Request]) -> list[Result]:
        """Returns the answer to each request of benchmark tasks, in order (see `Answerer.answer`)."""
        asked = [StateRequest(request) for request in requests]
        return self.answerer.answer(asked, [state], self.max_new_tokens, (), self.tick)

    def scores(self, state: State, task: Task, records: Sequence[Record]) -> dict[str, list[float]]:
        """Returns each metric of a benchmark, record by record."""
        requests = [task.requests(record) for record in records]
        answers = iter(self.results(state, [request for group in requests for request in group]))
        grouped = [[next(answers) for _ in group] for group in requests]
        scored = [task.score(record, given) for record, given in zip(records, grouped, strict=True)]
        return {metric: [one[metric] for one in scored] for metric in task.metrics}
