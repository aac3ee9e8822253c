"""`python -m experiments.commands.scale --task gsm8k --teacher LARGER.safetensors`: a larger model guides each answer.

Each prompt gets its own change of the initial state, found from the larger model's scores and thrown away after it.
Shows accuracy against budget beside greedy answers, self-consistency, best-of-N with the same scorer, and the larger
model alone. The teacher is another RWKV-7 checkpoint, or any OpenAI-compatible endpoint (http://HOST/v1 with
--teacher-model NAME). A killed run goes on with the same command.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.cli import exit_status
from experiments.training.preemption import Interrupt

if TYPE_CHECKING:
    from experiments.evaluation.problems import Item
    from rwkv7_jax.language_model import LanguageModel
    from state_tuning.test_time_scaling.adapt import Answered
    from state_tuning.test_time_scaling.policy_gradient import AdaptConfig
    from state_tuning.test_time_scaling.rollouts import Session, Student
    from state_tuning.test_time_scaling.teacher.in_process import Teacher

BOOKKEEPING = ("out", "overwrite", "no_cache", "replay", "offline", "timeout", "retries", "workers")
"""Settings that change no result."""
ANSWERS = "answers.jsonl"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.commands.scale",
        description="Adapt an initial state to each prompt by a larger model's scores; accuracy against budget.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--checkpoint", default="pocket/student", help="the student: pocket/student (embedded), or a path")
    p.add_argument("--tokenizer", default="auto", help="auto, world, byte, or the path of a tokenizer.json")
    p.add_argument("--state", help="tuned state that every prompt starts from (default: the zero state)")
    p.add_argument("--task", help="mmlu, gsm8k, winogrande or arc (pocket benchmark, or the kind of records in --data)")
    p.add_argument("--data", help='jsonl of {"prompt", "completion"}, or public records of --task')
    p.add_argument("--match", choices=("text", "number"), default="text", help="how answers to --data are compared")
    p.add_argument("--split", choices=("validation", "test"), default="test", help="split of the pocket benchmark")
    p.add_argument("--max-records", type=int, default=100, help="answer at most this many problems")
    p.add_argument("--batch-size", type=int, default=16, help="problems side by side")
    _teacher_options(p.add_argument_group("teacher"))
    _method_options(p.add_argument_group("adaptation"))
    p.add_argument("--seed", type=int, default=0, help="seed of all sampling")
    p.add_argument("--out", default="runs/test_time", help="folder of everything written")
    p.add_argument("--overwrite", action="store_true", help="throw away what the folder holds of an earlier run")
    p.add_argument("--no-cache", action="store_true", help="do not keep compiled programs in the user's cache folder")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 after a one-line error; 130 interrupted (the same command resumes)."""
    args = parser().parse_args(argv)

    def interruptible() -> int:
        with Interrupt() as interrupt:
            print(run(args, interrupt))
        return 0

    return exit_status(interruptible, "interrupted; run the same command to go on")


def run(args: argparse.Namespace, interrupt: Any) -> str:
    """Answer all problems that no earlier run has answered, and report; returns the table."""
    import jax

    from experiments.evaluation import problems as test_time_problems
    from experiments.reporting import accuracy_curve
    from experiments.training.metrics_log import progress_bar
    from rwkv7_jax.compile_cache import use_compilation_cache
    from state_tuning.test_time_scaling.policy_gradient import make_program
    from state_tuning.test_time_scaling.rollouts import Session

    if args.max_records < 2 or args.batch_size < 1:
        raise ValueError("--max-records must be at least 2 (an interval needs two), --batch-size at least 1")
    use_compilation_cache(not args.no_cache)
    config = _adapt_config(args)
    with _named("data.tasks", "--task"):
        items = test_time_problems.load(args.task, args.data, args.match, args.split, args.max_records)
    lm, student = _student(args)
    teacher, teacher_id = _teacher(args)
    folder = Path(args.out).expanduser()
    described = _described(args, [lm.weights_hash, teacher_id, [item.problem for item in items]])
    rows = _earlier(folder, described["identity"], args.overwrite)
    program, keys = make_program(student.model, config), jax.random.split(jax.random.key(args.seed), len(items))
    folder.mkdir(parents=True, exist_ok=True)
    todo = [i for i in range(len(items)) if i not in rows]
    with progress_bar(len(items), "answering", "problem", len(rows)) as bar:
        for begin in range(0, len(todo), args.batch_size):
            chosen = todo[begin : begin + args.batch_size]
            interrupt.place = f"problem {chosen[0]}"
            problems = [items[i].problem for i in chosen]
            session = Session(student, program, teacher, problems, keys[jax.numpy.asarray(chosen)], config)
            lines = answer(session, [items[i] for i in chosen])
            if not rows:
                _claim(folder, described)
            rows |= {i: {"index": i, "lines": own} for i, own in zip(chosen, lines, strict=True)}
            with (folder / ANSWERS).open("a") as log:
                log.write("".join(json.dumps(rows[i]) + "\n" for i in chosen))
            bar.update(len(chosen))
            interrupt.check()
    return accuracy_curve.write(folder, [rows[i] for i in sorted(rows)], args.seed)


def answer(session: "Session", items: "Sequence[Item]") -> list[list[dict[str, Any]]]:
    """For each problem, a line for every method and budget: {method, n, correct, student_tokens, ...}."""
    from state_tuning.test_time_scaling import adapt as adaptation

    config = session.config
    sizes = [config.samples * step + 1 for step in range(1, config.steps + 1)]
    rounds = adaptation.adapt(session)
    found: list[tuple[str, int, list[Answered]]] = [
        ("adapted", size, answers) for size, answers in zip(sizes, rounds[1:], strict=True)
    ]
    if not config.chain_steps:
        found.insert(0, ("greedy", 1, rounds[0]))
    others = adaptation.controls(session, sizes, lambda b, text: items[b].answer(text)) if sizes else {}
    found += [(name, size, answers) for name, by_size in others.items() for size, answers in by_size.items()]
    found.append(("larger", 1, adaptation.alone(session)))
    return [
        [
            {"method": name, "n": n, "correct": item.correct(answers[b].results), **answers[b].budget._asdict()}
            for name, n, answers in found
        ]
        for b, item in enumerate(items)
    ]


def _described(args: argparse.Namespace, content: list[Any]) -> dict[str, Any]:
    """What run.json says of a run."""
    from experiments.config.schema import digest

    settings = {name: value for name, value in vars(args).items() if name not in BOOKKEEPING}
    return {"identity": digest([settings, content]), "settings": settings}


def _earlier(folder: Path, identity: str, overwrite: bool) -> dict[int, dict[str, Any]]:
    """Rows of an equal earlier run by problem, a cut-off last one dropped; a run without answers is in nobody's way.

    Raises:
      UsageError: the folder holds something else.
    """
    from experiments.config.overrides import UsageError
    from experiments.training.checkpoint import check_identity
    from experiments.training.run_folder import RUN_FILE, read

    log = folder / ANSWERS
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / RUN_FILE).is_file()):
        raise UsageError(f"--out: {folder} holds other files; choose another folder")
    lines = log.read_text().splitlines(keepends=True) if log.is_file() and not overwrite else []
    rows = [json.loads(line) for line in lines if line.endswith("}\n")]
    if rows:
        check_identity(folder, read(folder).get("identity"), identity, "--out")
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {row["index"]: row for row in rows}


def _claim(folder: Path, described: dict[str, Any]) -> None:
    """The folder made ready for the first answers: what an earlier run wrote is thrown away, and nothing else."""
    from experiments.reporting.accuracy_curve import FILES
    from experiments.training.run_folder import RUN_FILE, throw_away

    throw_away(folder, (ANSWERS, *FILES))
    (folder / RUN_FILE).write_text(json.dumps(described, indent=1) + "\n")


@contextmanager
def _named(setting: str, option: str) -> Iterator[None]:
    """Within it, errors name this command's option in place of a setting of experiments.run."""
    from experiments.config.overrides import UsageError

    try:
        yield
    except UsageError as error:
        raise UsageError(str(error).replace(setting, option, 1)) from None


def _student(args: argparse.Namespace) -> "tuple[LanguageModel, Student]":
    from experiments.build import build
    from experiments.config.schema import ModelConfig
    from rwkv7_jax import zero_state
    from rwkv7_jax.checkpoint import load_state
    from state_tuning.test_time_scaling.rollouts import Student

    with _named("model.checkpoint", "--checkpoint"):
        lm = build(ModelConfig(checkpoint=args.checkpoint, tokenizer=args.tokenizer))
    state = zero_state(lm.model.config, None)
    if args.state:
        state = load_state(args.state, config=lm.model.config, base_model_hash=lm.weights_hash).state
    return lm, Student(lm.model, lm.params, lm.tokenizer, state)


def _teacher(args: argparse.Namespace) -> "tuple[Teacher, str]":
    """The teacher and what identifies it."""
    from experiments.config.overrides import UsageError

    if args.teacher.startswith(("http://", "https://")):
        from state_tuning.test_time_scaling.teacher.http import HttpTeacher
        from state_tuning.test_time_scaling.teacher.replay import Replay

        if not args.teacher_model:
            raise UsageError("--teacher-model: name the model behind the endpoint")
        if args.offline and not args.replay:
            raise UsageError("--offline needs --replay FILE")
        replay = Replay(args.replay, args.offline) if args.replay else None
        options = {"timeout": args.timeout, "retries": args.retries, "workers": args.workers, "replay": replay}
        return HttpTeacher(args.teacher, args.teacher_model, args.teacher_api, **options), args.teacher_model
    from experiments.build import build
    from experiments.config.schema import ModelConfig
    from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher

    with _named("model.checkpoint", "--teacher"):
        lm = build(ModelConfig(checkpoint=args.teacher, tokenizer=args.teacher_tokenizer))
    return InProcessTeacher(lm.model, lm.params, lm.tokenizer), lm.weights_hash


def _adapt_config(args: argparse.Namespace) -> "AdaptConfig":
    from state_tuning.test_time_scaling.policy_gradient import AdaptConfig

    names = {field.name for field in dataclasses.fields(AdaptConfig)}
    return AdaptConfig(**{name: value for name, value in vars(args).items() if name in names})


def _teacher_options(p: Any) -> None:
    p.add_argument("--teacher", required=True, help="a larger RWKV-7 checkpoint, or an address http://HOST/v1")
    p.add_argument("--teacher-tokenizer", default="auto", help="of a teacher checkpoint")
    p.add_argument("--teacher-model", help="name of the model behind an address")
    p.add_argument("--teacher-api", choices=("completions", "chat"), default="completions", help="of an address")
    p.add_argument("--replay", help="file that keeps the endpoint's answers, to repeat the run without it")
    p.add_argument("--offline", action="store_true", help="ask nothing that is not in the replay file")
    p.add_argument("--timeout", type=float, default=60.0, help="seconds for one attempt")
    p.add_argument("--retries", type=int, default=4, help="further attempts after a passing fault")
    p.add_argument("--workers", type=int, default=4, help="requests at once")


def _method_options(p: Any) -> None:
    p.add_argument("--reward", choices=("log_probability", "margin"), default="log_probability", help="teacher's score")
    p.add_argument("--samples", type=int, default=8, help="chains a step, K")
    p.add_argument("--steps", type=int, default=3, help="policy-gradient steps")
    p.add_argument("--rate", type=float, default=1e-2, help="step size, about the change of each state entry a step")
    p.add_argument("--kl", type=float, default=0.05, help="weight of the KL to the policy without adaptation")
    p.add_argument("--norm-cap", type=float, default=10.0, help="largest Frobenius norm of a prompt's change")
    p.add_argument("--clip-norm", type=float, default=1.0, help="largest norm of a prompt's gradient; 0: no clipping")
    p.add_argument("--temperature", type=float, default=1.0, help="of sampled chains")
    p.add_argument("--max-new-tokens", type=int, default=96, help="longest chain")
    p.add_argument("--chain-steps", type=int, default=0, help="NLL steps on a chain of the teacher's before")


if __name__ == "__main__":
    sys.exit(main())
