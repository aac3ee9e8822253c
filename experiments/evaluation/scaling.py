"""Test-time scaling: each problem answered by the adapted model and its controls at every budget, kept on disk."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.build import load_model
from experiments.config.overrides import UsageError
from experiments.config.schema import ModelConfig, digest
from experiments.evaluation.problems import Item
from experiments.reporting import json_file, jsonl_store
from experiments.reporting.accuracy_curve import FILES, BudgetOutcome, Problem
from experiments.training.checkpoint import check_identity
from experiments.training.metrics_log import progress_bar
from experiments.training.preemption import Interrupt
from experiments.training.run_folder import RUN_FILE, read, throw_away
from rwkv7_jax import locks, zero_state
from rwkv7_jax.checkpoint import load_state
from rwkv7_jax.checkpoint.state_hash import state_hash
from state_tuning.test_time_scaling import adaptation, baselines, outcomes
from state_tuning.test_time_scaling.cost import Clock, Cost
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig, make_program
from state_tuning.test_time_scaling.rollouts import Session, Student
from state_tuning.test_time_scaling.search import SearchConfig
from state_tuning.test_time_scaling.search import search as find
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher, Teacher

ANSWERS = "answers.jsonl"
LARGEST = 1e15
"""No number of an outcome is larger; a whole number may be too large for a float."""


class Answered(Problem):
    """A problem with the outcomes of all methods, and its number."""

    index: int


def load_student(model: ModelConfig, state_file: str | None) -> Student:
    """Returns the model to adapt, from a tuned state or (None) from the zero state."""
    lm = load_model(model)
    state = zero_state(lm.model.config, None)
    if state_file:
        state = load_state(state_file, config=lm.model.config, base_model_hash=lm.weights_hash).state
    return Student(lm, state)


def load_teacher(model: ModelConfig, state_file: str | None = None) -> tuple[InProcessTeacher, str]:
    """Returns a larger model as teacher in this process, from a tuned state or (None) from the zero state, and the hash
    of its weights and state."""
    lm = load_model(model)
    if not state_file:
        return InProcessTeacher(lm), lm.identity
    state = load_state(state_file, config=lm.model.config, base_model_hash=lm.weights_hash).state
    parts = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    return InProcessTeacher(lm, state=state), digest([lm.identity, state_hash(parts)])


def answer(session: Session, items: Sequence[Item], search: SearchConfig | None = None) -> list[list[BudgetOutcome]]:
    """Returns the outcomes of every method and budget for each problem of a session, and of a search if asked for."""
    config = session.config
    sizes = [config.samples * step + 1 for step in range(1, config.steps + 1)]

    def answer_of(b: int, text: str) -> Hashable:
        return items[b].answer(text)

    rounds = adaptation.adapt_and_vote(session, answer_of)
    found = [("adapted", size, answers) for size, answers in zip(sizes, rounds.greedy[1:], strict=True)]
    found += [("adapted_vote", size, answers) for size, answers in zip(sizes, rounds.voted[1:], strict=True)]
    if not config.chain_steps:
        found.insert(0, ("greedy", 1, rounds.greedy[0]))
    others = baselines.controls(session, sizes, answer_of) if sizes else {}
    found += [(name, size, answers) for name, by_size in others.items() for size, answers in by_size.items()]
    if search:
        found.append(("search", search.beams, searched(session, search, answer_of)))
    found.append(("larger", 1, baselines.teacher_alone(session)))
    return [
        [_outcome(name, n, item.correct(answers[b].results), answers[b]) for name, n, answers in found]
        for b, item in enumerate(items)
    ]


def searched(session: Session, search: SearchConfig, answer_of: outcomes.Answer) -> list[outcomes.Answered]:
    """Returns the vote over the chains that a search finds, weighted as the other votes."""
    clock = Clock(len(session.problems))
    pools = find(session, search, answer_of).pools
    costs = [Cost(*map(sum, zip(*pool.tokens, strict=True))) for pool in pools]
    charged = clock.charge([Cost()] * len(pools), costs)
    return [
        outcomes.Answered([pool.voted(session.config.vote)], cost) for pool, cost in zip(pools, charged, strict=True)
    ]


def _outcome(method: str, n: int, correct: float, answered: outcomes.Answered) -> BudgetOutcome:
    student_tokens, teacher_tokens, seconds = answered.cost
    return {
        "method": method, "n": n, "correct": correct,
        "student_tokens": student_tokens, "teacher_tokens": teacher_tokens, "seconds": seconds,
    }  # fmt: skip


class AnswerLog:
    """The answered problems of a run, a line each, in a folder that is claimed when the first of them is added.

    described: what run.json says of the run, with its `identity`. option: the name of the folder's setting.

    Raises:
      UsageError: the folder holds something else.
    """

    def __init__(self, folder: Path, described: dict[str, object], overwrite: bool, option: str):
        self.folder, self._described = folder, described
        self.done = _earlier(folder, str(described["identity"]), overwrite, option)

    def add(self, answered: Sequence[Answered]) -> None:
        """Appends answered problems."""
        if not self.done:
            self._claim()
        self.done |= {one["index"]: one for one in answered}
        jsonl_store.append(self.folder / ANSWERS, *answered)

    def in_order(self) -> list[Answered]:
        """Returns all answered problems by index."""
        return [self.done[index] for index in sorted(self.done)]

    def _claim(self) -> None:
        """Throws away what an earlier run wrote, and nothing else, and describes this one."""
        throw_away(self.folder, (ANSWERS, *FILES))
        json_file.write(self.folder / RUN_FILE, self._described)


def _earlier(folder: Path, identity: str, overwrite: bool, option: str) -> dict[int, Answered]:
    """What an equal earlier run answered, a last line that was cut off dropped; a run without answers may be replaced.

    Raises:
      UsageError: the folder holds something else.
    """
    log = folder / ANSWERS
    found = {path.name for path in folder.iterdir()} - {locks.NAME} if folder.is_dir() else set()
    if folder.is_file() or (found and RUN_FILE not in found):
        raise UsageError(f"{option}: {folder} holds other files; choose another folder")
    fields = {"index": int, "lines": list}
    if overwrite or not any(jsonl_store.scan(log, fields)):
        return {}
    check_identity(folder, read(folder).get("identity"), identity, option)
    answered = cast(list[Answered], jsonl_store.recover(log, fields, "answered again"))
    sound = [one for one in answered if all(map(_is_outcome, one["lines"]))]
    jsonl_store.warn(log, ["an answer lacks its numbers"] * (len(answered) - len(sound)), "answered again")
    return {one["index"]: one for one in sound}


def _is_outcome(line: object) -> bool:
    """Whether a line of an old file, which has no checksum, has what the curve needs."""
    numbers = ("n", "correct", "student_tokens", "teacher_tokens", "seconds")
    return (
        isinstance(line, dict)
        and isinstance(line.get("method"), str)
        and all(isinstance(line.get(name), int | float) and -LARGEST < line[name] < LARGEST for name in numbers)
    )


def answer_all(
    items: Sequence[Item],
    student: Student,
    teacher: Teacher,
    config: AdaptConfig,
    log: AnswerLog,
    interrupt: Interrupt,
    *,
    batch_size: int,
    seed: int,
    search: SearchConfig | None = None,
) -> list[Answered]:
    """Answers all problems that the log does not hold yet, batch by batch.

    Args:
      items: the problems.
      student: the model that is adapted to each of them.
      teacher: the larger model.
      config: how it is adapted.
      log: where answers are kept; with those of an earlier run.
      interrupt: looked at after each batch.
      batch_size: problems at once.
      seed: of all sampling.
      search: how chains are searched too; None: not.

    Returns:
      All answered problems, in order.

    Raises:
      Interrupted: a signal came; the log holds what is done.
    """
    program, keys = make_program(student.lm.model, config), jax.random.split(jax.random.key(seed), len(items))
    log.folder.mkdir(parents=True, exist_ok=True)
    todo = [i for i in range(len(items)) if i not in log.done]
    with progress_bar(len(items), "answering", "problem", len(log.done)) as bar:
        for begin in range(0, len(todo), batch_size):
            chosen = todo[begin : begin + batch_size]
            interrupt.place = f"problem {chosen[0]}"
            problems = [items[i].problem for i in chosen]
            session = Session(student, program, teacher, problems, keys[jnp.asarray(chosen)], config)
            found = answer(session, [items[i] for i in chosen], search)
            log.add([{"index": i, "lines": own} for i, own in zip(chosen, found, strict=True)])
            bar.update(len(chosen))
            interrupt.check()
    return log.in_order()
