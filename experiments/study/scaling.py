"""Test-time scaling in the table: the answers of the adapted student and of its controls, by benchmark and seed."""

import zlib

import jax
import optax

from experiments.config.overrides import UsageError
from experiments.config.study import ScalingConfig
from experiments.evaluation.problems import from_record
from experiments.evaluation.scaling import answer
from experiments.reporting.accuracy_curve import Problem
from experiments.study.adjustable_rate import set_rate, with_adjustable_rate
from experiments.study.resources import Resources
from state_tuning.test_time_scaling.policy_gradient import EPSILON, AdaptConfig, Adapted, Program, make_program
from state_tuning.test_time_scaling.rollouts import Session, Student
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher


class Scaling:
    """The jitted parts, for every step size; made once."""

    def __init__(self, resources: Resources, settings: ScalingConfig):
        self.resources, self.settings = resources, settings
        self.config = AdaptConfig(
            samples=settings.samples,
            steps=settings.steps,
            rate=settings.rate,
            kl=settings.kl,
            reward=settings.reward,
            max_new_tokens=resources.evaluate.max_new_tokens,
            signal="reward",
            baseline="group",
            units="absolute",
            norm_cap=10.0,
        )
        optimizer = with_adjustable_rate(optax.adam(1.0, eps=EPSILON))
        self._program = make_program(resources.student.lm.model, self.config, optimizer)

    def program(self, rate: float) -> Program:
        """Returns the program with a step size."""

        def start(prompts: int) -> Adapted:
            adapted = self._program.start(prompts)
            return adapted._replace(opt_state=set_rate(adapted.opt_state, rate))

        return self._program._replace(start=start)

    def answers(self, task: str, seed: int, rate: float) -> list[Problem]:
        """Returns the outcomes of all methods on each problem of a benchmark.

        The larger model scores (and answers) from its own tuned state where `scaling.tuned_teacher`, else from zero.

        Raises:
          UsageError: the records of the benchmark are not there.
          Interrupted: a signal came.
        """
        resources, settings = self.resources, self.settings
        job = resources.jobs.get(task)
        if job is None or job.task is None:
            raise UsageError(f"scaling.tasks: {task!r} is not among data.tasks")
        start = resources.load_state("standard", task, seed)
        teacher_state = resources.load_state("larger_standard", task, seed) if settings.tuned_teacher else None
        teacher = InProcessTeacher(resources.larger.lm, state=teacher_state)
        items = [from_record(job.task, record) for record in job.records[: settings.records]]
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.encode())), len(items))
        student = Student(resources.student.lm, start)
        program, found = self.program(rate), list[Problem]()
        for begin in range(0, len(items), settings.batch_size):
            chosen = items[begin : begin + settings.batch_size]
            problems = [item.problem for item in chosen]
            own_keys = keys[begin : begin + settings.batch_size]
            session = Session(student, program, teacher, problems, own_keys, self.config)
            found += [Problem(lines=outcomes) for outcomes in answer(session, chosen)]
            resources.interrupt.check()
        return found
