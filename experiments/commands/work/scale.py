"""Test-time scaling of a student by a teacher: from settings to the curve."""

import dataclasses
from pathlib import Path

from experiments.config.commands import MODEL
from experiments.config.overrides import UsageError
from experiments.config.scale import AdaptationConfig, Scale, TeacherConfig
from experiments.config.schema import ModelConfig, digest, plain_name, resolved
from experiments.evaluation import problems
from experiments.evaluation.scaling import AnswerLog, answer_all, load_student, load_teacher
from experiments.reporting import accuracy_curve
from experiments.training.preemption import Interrupt
from experiments.training.run_folder import held
from rwkv7_jax.compile_cache import use_compilation_cache
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig
from state_tuning.test_time_scaling.search import SearchConfig
from state_tuning.test_time_scaling.teacher.http import HttpTeacher
from state_tuning.test_time_scaling.teacher.in_process import Teacher
from state_tuning.test_time_scaling.teacher.replay import Replay

BOOKKEEPING = ("output", "overwrite", "system")
"""Settings that are not part of the results."""


def run(config: Scale) -> int:
    """Answers all problems that no earlier run has answered, and prints the table.

    Raises:
      ValueError, OSError: in one line. Interrupted: all is saved.
    """
    use_compilation_cache(config.system.compilation_cache)
    adapt, data = adaptation(config.adapt), config.data
    search = SearchConfig(**dataclasses.asdict(config.search)) if config.search.beams else None
    task = data.tasks[0] if data.tasks else None
    items = problems.load(task, data.file, data.match, data.split, config.limit, data.dir, data.chain)
    student = load_student(config.model, config.state)
    teacher, teacher_id = teacher_of(config.teacher)
    identity = digest([identity_settings(config), [student.lm.identity, teacher_id, [item.problem for item in items]]])
    described = {"identity": identity, "config": resolved(config, without=BOOKKEEPING)}
    folder = Path(config.output).expanduser()
    with Interrupt() as interrupt, held(folder):
        log = AnswerLog(folder, described, config.overwrite, "--output")
        run = {"batch_size": config.batch_size, "seed": config.seed, "search": search}
        answered = answer_all(items, student, teacher, adapt, log, interrupt, **run)
        print(accuracy_curve.write(log.folder, answered, config.seed))
    if isinstance(teacher, HttpTeacher):
        for score, count in sorted(teacher.missing.items()):
            print(f"{count} samples of this run have no {score}: the teacher's answers say nothing of them")
    return 0


def identity_settings(config: Scale) -> dict[str, object]:
    """The settings that the answers depend on, by the names that keep the identity of runs that were begun before."""
    data, teacher = config.data, config.teacher
    further = {"dtype": config.model.dtype, "wkv": config.model.wkv}
    return {
        "checkpoint": config.model.checkpoint,
        "tokenizer": config.model.tokenizer,
        "state": config.state,
        "task": plain_name(data.tasks[0]) if data.tasks else None,
        "data": data.file,
        "match": data.match,
        "split": data.split,
        "max_records": config.limit,
        "batch_size": config.batch_size,
        "teacher": teacher.checkpoint,
        "teacher_tokenizer": teacher.tokenizer,
        "teacher_model": teacher.model,
        "teacher_api": teacher.api,
        "seed": config.seed,
        **dataclasses.asdict(config.adapt),
        **({"dir": data.dir} if data.dir else {}),
        **({"chain": data.chain} if data.chain else {}),
        **({"teacher_state": teacher.state} if teacher.state else {}),
        **({"search": dataclasses.asdict(config.search)} if config.search.beams else {}),
        **{name: value for name, value in further.items() if value != getattr(MODEL, name)},
    }


def adaptation(config: AdaptationConfig) -> AdaptConfig:
    """The settings as `state_tuning` takes them."""
    return AdaptConfig(**dataclasses.asdict(config))


def teacher_of(config: TeacherConfig) -> tuple[Teacher, str]:
    """The teacher and what identifies it."""
    if config.checkpoint.startswith(("http://", "https://")):
        assert config.model is not None
        return HttpTeacher(
            config.checkpoint,
            config.model,
            config.api,
            timeout=config.timeout,
            retries=config.retries,
            workers=config.workers,
            replay=Replay(config.replay, config.offline) if config.replay else None,
        ), config.model
    try:
        return load_teacher(ModelConfig(checkpoint=config.checkpoint, tokenizer=config.tokenizer), config.state)
    except UsageError as error:
        raise UsageError(str(error).replace("model.checkpoint", "teacher.checkpoint", 1)) from None
