"""Search in state space: W chains of a prompt grow side by side, and the teacher's favourites are forked.

A chain's whole past is its recurrent state, so a fork is a gather of rows: of the student's states and of the
teacher's, which reads on from its own, only the new tokens. After every span of tokens each prompt's chains are
compared by the teacher's mean log-probability. Where they part by more than `part` nats per token, the lower half of
them is replaced by copies of the upper half; where they do not, all go on. The answer is the best chain that ended, or
the vote over all.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rwkv7_jax import functional
from rwkv7_jax.bucketing import padded_prompt_length
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.generate import SamplingParams, generate
from rwkv7_jax.generation.stop_strings import cut_at_first_complete, cut_tokens
from rwkv7_jax.model import RWKV7
from rwkv7_jax.state import State, zero_state
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core import surgery
from state_tuning.core.objective import Batch, Example, collate
from state_tuning.test_time_scaling.outcomes import Answer
from state_tuning.test_time_scaling.rollouts import Session
from state_tuning.test_time_scaling.selection import Pool
from state_tuning.test_time_scaling.signals import token_log_p
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher

CHUNK = 64
"""Positions whose logits exist at a time."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How chains are grown and forked."""

    beams: int = 8
    """W, chains of a prompt; even."""
    span: int = 8
    """Tokens between two comparisons."""
    part: float = 0.1
    """Least distance in nats per token, of the mean of the upper half from that of the lower half, at which they are
    forked."""

    def __post_init__(self):
        if self.beams < 2 or self.beams % 2 or self.span < 1:
            raise ValueError("beams must be an even number from 2, span at least 1")
        if not self.part >= 0:
            raise ValueError("part must not be negative")


class Found(NamedTuple):
    """The chains of each problem, with what they cost; forks share what they cost before."""

    pools: list[Pool]
    """Of the W chains of each problem; `tokens` are those that each row read or generated itself."""
    forks: list[int]
    """How often chains of each problem were forked."""


class _Beams(NamedTuple):
    """The W chains of B prompts, r = b W + w."""

    student: State
    teacher: State
    """Both before the last token of each chain, which is in `last`."""
    last: np.ndarray
    tokens: list[list[int]]
    score: np.ndarray
    """The teacher's log-probability of each chain, summed."""
    finished: np.ndarray
    """Whether a chain has ended: by its end token, by a stop string, or at the longest length."""


def search(session: Session, config: SearchConfig, answer: Answer) -> Found:
    """Grows and forks chains of each prompt.

    Args:
      session: student, teacher (in this process, with the student's tokens), open problems and settings.
      config: how chains are grown.
      answer: (position of the problem, text of a chain) -> its final answer, None if it has none.

    Returns:
      The chains, for `Pool.voted` or best-of-W.

    Raises:
      ValueError: the teacher is not in this process or reads other tokens, or the problems have choices.
    """
    lm, teacher, count = session.student.lm, session.teacher, len(session.problems)
    if not isinstance(teacher, InProcessTeacher) or not teacher.reads(lm):
        raise ValueError("search needs a teacher in this process that reads the student's tokens")
    if any(problem.choices for problem in session.problems):
        raise ValueError("search grows chains: it has no use for given choices")
    width, limit = config.beams, session.config.max_new_tokens
    spent = np.zeros((count * width, 2), int)
    beams, read = _start(session, teacher, width)
    # A prompt is read once by the teacher, whatever the number of its chains.
    spent[::width, 1] += read
    forks = np.zeros(count, int)
    for begin in range(0, limit, config.span):
        span, keys = min(config.span, limit - begin), _keys(session, width, begin)
        beams = _grow(session, teacher, beams, span, keys, spent)
        if beams.finished.all() or begin + span >= limit:
            break
        rows, forked = _forked(beams, width, config.part)
        forks += forked
        beams = _gathered(beams, rows) if forked.any() else beams
    return Found(_pools(session, beams, spent, width, answer), forks.tolist())


def _start(session: Session, teacher: InProcessTeacher, width: int) -> tuple[_Beams, list[int]]:
    """W copies of each prompt's states before its last token; and the prompts' tokens."""
    lm, prompts = session.student.lm, session.problems
    encoded = [lm.tokenizer.encode(problem.prompt) or [lm.tokenizer.eos_id] for problem in prompts]
    examples = [Example(np.asarray(ids, np.int32), 1, 0) for ids in encoded]
    longest = padded_prompt_length(max(2, *(len(ids) for ids in encoded)))
    batch = collate(examples, longest)
    delta = session.program.start(len(prompts)).delta
    own = session.program.states(session.student.state, delta, 1)
    own = _after(lm.model, lm.params, _like_compute(own, lm.model), batch)[0]
    theirs = _after(teacher.lm.model, teacher.lm.params, _rows(teacher, len(prompts)), batch)[0]
    last = np.repeat([ids[-1] for ids in encoded], width)
    rows = len(last)
    own, theirs = (jax.tree.map(lambda leaf: jnp.repeat(leaf, width, axis=1), one) for one in (own, theirs))
    beams = _Beams(own, theirs, last, [[] for _ in range(rows)], np.zeros(rows), np.zeros(rows, bool))
    return beams, [len(ids) for ids in encoded]


def _grow(
    session: Session, teacher: InProcessTeacher, beams: _Beams, span: int, keys: Array, spent: np.ndarray
) -> _Beams:
    """Chains longer by at most `span` tokens, read by the teacher; those that have ended stay as they are."""
    lm, stop, eos = session.student.lm, session.problems[0].stop, session.student.lm.tokenizer.eos_id
    settings = SamplingParams(temperature=session.config.temperature, max_new_tokens=span)
    prompts = [[int(token)] for token in beams.last]
    made = generate(lm.model, lm.params, prompts, beams.student, keys, settings, eos_id=eos)
    new = [[*ids, *([eos] if end else [])] for ids, end in zip(made.tokens, made.finished, strict=True)]
    finished, kept, count = beams.finished.copy(), list(beams.tokens), np.zeros((len(new), 2), int)
    for r, ids in enumerate(new):
        if finished[r]:
            new[r] = []
            continue
        finished[r], whole = _cut(lm.tokenizer, [*kept[r], *ids], made.finished[r], stop)
        new[r], kept[r] = whole[len(kept[r]) :], whole
        count[r] = len(ids), len(new[r])
    whole = ([token, *(ids or [0])] for token, ids in zip(beams.last, new, strict=True))
    examples = [Example(np.asarray(ids, np.int32), 1, 0) for ids in whole]
    batch = collate(examples, padded_prompt_length(span + 1))
    grew = np.asarray([bool(ids) for ids in new])
    for name in ("loss_mask", "valid"):
        batch[name] = np.where(grew[:, None], batch[name], np.zeros((), batch[name].dtype))
    own, _ = _after(lm.model, lm.params, beams.student, batch)
    theirs, log_q = _after(teacher.lm.model, teacher.lm.params, beams.teacher, batch)
    spent += count
    last = np.asarray([ids[-1] if ids else token for ids, token in zip(new, beams.last, strict=True)])
    return _Beams(own, theirs, last, kept, beams.score + np.asarray(log_q, np.float64), finished)


def _cut(tokenizer: Tokenizer, tokens: list[int], ended: bool, stop: tuple[str, ...]) -> tuple[bool, list[int]]:
    """(whether a chain has ended, its tokens up to a stop string)"""
    text = tokenizer.decode(tokens[:-1] if ended else tokens)
    cut = cut_at_first_complete(text, stop)
    return (ended, tokens) if cut == text else (True, cut_tokens(tokenizer, tokens, cut))


def _forked(beams: _Beams, width: int, part: float) -> tuple[np.ndarray, np.ndarray]:
    """(the row that goes on in place of each, whether each prompt was forked)"""
    length = np.maximum([len(ids) for ids in beams.tokens], 1)
    mean, going = (beams.score / length).reshape(-1, width), ~beams.finished.reshape(-1, width)
    rows, forked = np.arange(mean.size).reshape(mean.shape), np.zeros(len(mean), bool)
    for b, own in enumerate(mean):
        order = np.argsort(-own, kind="stable")
        upper, lower = order[: width // 2], order[width // 2 :]
        # Chains that have ended are neither copied nor replaced.
        pairs = [(high, low) for high, low in zip(upper, lower, strict=True) if going[b, high] and going[b, low]]
        if pairs and own[upper].mean() - own[lower].mean() > part:
            forked[b] = True
            for high, low in pairs:
                rows[b, low] = rows[b, high]
    return rows.ravel(), forked


def _gathered(beams: _Beams, rows: np.ndarray) -> _Beams:
    """Forks: each row goes on from the states and the tokens of another."""
    own, theirs = (jax.tree.map(lambda leaf: leaf[:, rows], one) for one in (beams.student, beams.teacher))
    tokens = [beams.tokens[r] for r in rows]
    return _Beams(own, theirs, beams.last[rows], tokens, beams.score[rows], beams.finished[rows])


def _pools(session: Session, beams: _Beams, spent: np.ndarray, width: int, answer: Answer) -> list[Pool]:
    lm, stop, found = session.student.lm, session.problems[0].stop, list[Pool]()
    for b in range(len(session.problems)):
        rows = range(b * width, (b + 1) * width)
        tokens = [[t for t in beams.tokens[r] if t != lm.tokenizer.eos_id] for r in rows]
        texts = [cut_at_first_complete(lm.tokenizer.decode(ids), stop) for ids in tokens]
        scores = [beams.score[r] / max(1, len(beams.tokens[r])) for r in rows]
        costs = [(int(spent[r, 0]), int(spent[r, 1])) for r in rows]
        found.append(Pool().plus(texts, [answer(b, text) for text in texts], scores, costs))
    return found


def _keys(session: Session, width: int, begin: int) -> Array:
    """One for each row, of its prompt's key, its number and the place in the chain."""
    beams = jnp.arange(width)
    fold = jax.random.fold_in
    return jax.vmap(lambda key: jax.vmap(lambda w: fold(fold(key, begin), w))(beams))(session.keys).reshape(-1)


def _rows(teacher: InProcessTeacher, count: int) -> State:
    return _like_compute(surgery.broadcast(teacher.state, count), teacher.lm.model)


def _like_compute(state: State, model: RWKV7) -> State:
    zero = zero_state(model.config, 1)
    return state._replace(
        att_shift=state.att_shift.astype(zero.att_shift.dtype), ffn_shift=state.ffn_shift.astype(zero.ffn_shift.dtype)
    )


@partial(jax.jit, static_argnums=0)
def _after(model: RWKV7, params: Params, state: State, batch: Batch) -> tuple[State, Float[Array, "R"]]:
    """The states before each row's last token, and the summed log-probability of the tokens that count."""
    data = {name: jnp.asarray(batch[name]) for name in ("tokens", "targets", "loss_mask", "valid")}
    hidden, after = functional.hidden(model, params, data["tokens"], state, valid=data["valid"])

    def head(x: Array) -> Array:
        return functional.logits(model, params, x)

    return after, token_log_p(hidden, head, data["targets"], data["loss_mask"], CHUNK).sum(-1)
