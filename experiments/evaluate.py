"""Jitted evaluation of a frozen model from any initial state: log-likelihoods, held-out losses, greedy answers.

Rows are padded to a few lengths (`data.bucket_of`) and scored independently of their batch. Continuations of one token
that share a context, like the letters of a multiple choice, are read from the context's last logits, in one pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.build import Built
from experiments.data import padded
from experiments.tasks import Generate, Loglikelihood, Record, Request, Task
from rwkv7_jax import RWKV7, State
from rwkv7_jax.sampling import SamplingConfig, generate_text
from state_tuning import surgery, train
from state_tuning.objective import Example, encode_example

Tick = Callable[[int], None]


def _no_tick(count: int) -> None:
    """Nobody is watching."""


class Scorer(NamedTuple):
    """The model's two jitted passes; make it once, states and weights are arguments."""

    nll: Callable[..., Any]
    """(params, unbatched state, Batch) -> (summed completion NLL [B] in nats, completion tokens [B])"""
    choices: Callable[..., Any]
    """(params, unbatched state, tokens [B,T], valid [B,T], ids [B,C]) -> log-probability [B,C] of these next tokens"""


def make_scorer(model: RWKV7) -> Scorer:
    """The jitted passes of a model."""
    start = train.Method(init=lambda: None, graft=surgery.broadcast)
    nll = train.make_eval_step(model, train.TuneConfig(), start, per_row=True)

    def choices(params: Any, state: State, tokens: Any, valid: Any, ids: Any) -> Any:
        batched = surgery.broadcast(state, tokens.shape[0])
        logits, _ = model.apply({"params": params}, tokens, batched, valid=valid, last_only=True)
        return jnp.take_along_axis(jax.nn.log_softmax(logits[:, 0]), ids, axis=1)

    return Scorer(nll, jax.jit(choices))


class Evaluator(NamedTuple):
    """A built model with its scorer, rows at once, and the longest answer in tokens."""

    built: Built
    scorer: Scorer
    batch_size: int
    max_new_tokens: int = 96
    tick: Tick = _no_tick
    """Called with the number of sequences done after each batch."""

    def losses(self, state: State, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """(summed completion NLL in nats, completion tokens), float64 [N] each, in the order of `examples`."""
        nll, count = np.zeros(len(examples)), np.zeros(len(examples))
        for chosen, batch in padded(examples, self.batch_size):
            rows, tokens = jax.device_get(self.scorer.nll(self.built.params, state, batch))
            nll[chosen], count[chosen] = rows[: len(chosen)], tokens[: len(chosen)]
            self.tick(len(chosen))
        return nll, count

    def log_likelihoods(self, state: State, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """log P(continuation | context) in nats for each (context, continuation), encoded apart as in training."""
        examples = [encode_example(self.built.tokenizer, *pair, eos=False) for pair in pairs]
        single = [i for i, example in enumerate(examples) if example.completion_start == len(example.tokens) - 1]
        scores = np.zeros(len(examples))
        scores[single] = self._next_token(state, [examples[i].tokens for i in single])
        longer = sorted(set(range(len(examples))) - set(single))
        scores[longer] = -self.losses(state, [examples[i] for i in longer])[0]
        return scores.tolist()

    def _next_token(self, state: State, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Log-probability [N] of each sequence's last token, one forward row for each different context."""
        groups: dict[bytes, list[int]] = {}
        for index, tokens in enumerate(sequences):
            groups.setdefault(tokens[:-1].tobytes(), []).append(index)
        width = 1 << (max(map(len, groups.values()), default=1) - 1).bit_length()
        members = list(groups.values())
        examples = [Example(sequences[group[0]], len(sequences[group[0]]) - 1, 0) for group in members]
        scores = np.zeros(len(sequences))
        for chosen, batch in padded(examples, self.batch_size):
            ids = np.zeros((self.batch_size, width), np.int32)
            for row, index in enumerate(chosen):
                ids[row, : len(members[index])] = [sequences[i][-1] for i in members[index]]
            out = self.scorer.choices(self.built.params, state, batch["tokens"], batch["valid"], ids)
            for row, index in zip(np.asarray(out), chosen, strict=False):
                scores[members[index]] = row[: len(members[index])]
            self.tick(sum(len(members[index]) for index in chosen))
        return scores

    def answers(self, state: State, prompts: Sequence[str], stop: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy continuations, cut before the first stop string."""
        built, out = self.built, [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: (len(built.tokenizer.encode(prompts[i])), i))
        settings = SamplingConfig(temperature=0.0, max_new_tokens=max_tokens)
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            rows = [prompts[i] for i in chosen] + [prompts[chosen[-1]]] * (self.batch_size - len(chosen))
            result = generate_text(
                built.model, built.params, built.tokenizer, rows, state, jax.random.key(0), settings, stop=stop
            )  # fmt: skip
            for index, text in zip(chosen, result.texts, strict=False):
                out[index] = text
            self.tick(len(chosen))
        return out

    def results(self, state: State, requests: Sequence[Request]) -> list[Any]:
        """The answer to each request of benchmark tasks, in order: a float to a Loglikelihood, a str to a Generate."""
        out: list[Any] = [None] * len(requests)
        pairs = [i for i, request in enumerate(requests) if isinstance(request, Loglikelihood)]
        asked = [(request.context, request.continuation) for request in requests if isinstance(request, Loglikelihood)]
        for i, value in zip(pairs, self.log_likelihoods(state, asked), strict=True):
            out[i] = value
        by_stop: dict[tuple[str, ...], list[int]] = {}
        for i, request in enumerate(requests):
            if isinstance(request, Generate):
                by_stop.setdefault(request.stop, []).append(i)
        for stop, members in by_stop.items():
            texts = self.answers(state, [requests[i].context for i in members], stop, self.max_new_tokens)
            for i, text in zip(members, texts, strict=True):
                out[i] = text
        return out

    def scores(self, state: State, task: Task, records: Sequence[Record]) -> dict[str, list[float]]:
        """Each metric of a benchmark, record by record."""
        requests = [task.requests(record) for record in records]
        answers = iter(self.results(state, [request for group in requests for request in group]))
        grouped = [[next(answers) for _ in group] for group in requests]
        rows = [task.score(*pair) for pair in zip(records, grouped, strict=True)]
        return {metric: [row[metric] for row in rows] for metric in task.metrics}
