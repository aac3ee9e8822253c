"""Test-time scaling in the table: the answers of the adapted student and of its controls, by benchmark and seed."""

import zlib
from typing import Any

import jax
import optax

from experiments.commands.scale import answer
from experiments.config.overrides import UsageError
from experiments.evaluation.problems import from_record
from experiments.study.adjustable_rate import rated, set_rate
from experiments.study.lab import Lab
from state_tuning.test_time_scaling.policy_gradient import EPSILON, AdaptConfig, Adapted, Program, make_program
from state_tuning.test_time_scaling.rollouts import Session, Student
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher


def adapt_config(lab: Lab) -> AdaptConfig:
    """The settings as state_tuning takes them."""
    s = lab.config.scaling
    limit = lab.config.evaluate.max_new_tokens
    return AdaptConfig(samples=s.samples, steps=s.steps, rate=s.rate, kl=s.kl, reward=s.reward, max_new_tokens=limit)


def program(lab: Lab) -> Program:
    """The jitted parts, for every step size; make them once."""
    return make_program(lab.student.lm.model, adapt_config(lab), rated(optax.adam(1.0, eps=EPSILON)))


def with_rate(made: Program, rate: float) -> Program:
    """The program with a step size."""

    def start(prompts: int) -> Adapted:
        adapted = made.start(prompts)
        return adapted._replace(opt_state=set_rate(adapted.opt_state, rate))

    return made._replace(start=start)


def run(lab: Lab, made: Program, task: str, seed: int, rate: float) -> list[dict[str, Any]]:
    """Rows as `test_time_report` takes them: {"lines": [...]} of each problem.

    The larger model scores (and answers) from its own tuned state where `scaling.tuned_teacher`, else from zero.
    Raises: UsageError for a benchmark whose records are not there.
    """
    settings, job = lab.config.scaling, lab.jobs.get(task)
    if job is None or job.task is None:
        raise UsageError(f"scaling.tasks: {task!r} is not among data.tasks")
    student, larger = lab.student.lm, lab.larger.lm
    start = lab.load_state("standard", task, seed)
    teacher_state = lab.load_state("larger_standard", task, seed) if settings.tuned_teacher else None
    teacher = InProcessTeacher(larger.model, larger.params, larger.tokenizer, state=teacher_state)
    items = [from_record(job.task, record) for record in job.records[: settings.records]]
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.encode())), len(items))
    model = Student(student.model, student.params, student.tokenizer, start)
    found, made = [], with_rate(made, rate)
    for begin in range(0, len(items), settings.batch_size):
        chosen = items[begin : begin + settings.batch_size]
        problems = [item.problem for item in chosen]
        session = Session(model, made, teacher, problems, keys[begin : begin + settings.batch_size], adapt_config(lab))
        found += [{"lines": lines} for lines in answer(session, chosen)]
        lab.interrupt.check()
    return found
