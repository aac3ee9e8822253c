"""What a run with rewards asks: prompts with what the reward compares answers with, from files and benchmarks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.config.methods import RewardMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, EvaluateConfig, digest
from experiments.data.jobs import Job, load_jobs
from experiments.data.jsonl import Line, Pair, exchanges_of, hold_out, read_lines, to_pair
from experiments.data.samples import prompt_and_answer
from experiments.tasks.types import Record
from experiments.training.distributed import is_lead
from rwkv7_jax.checkpoint.files import one_line
from rwkv7_jax.processes import gather
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.reinforcement.learning import Judge
from state_tuning.reinforcement.rewards import LETTERS, Answer, Reward, RewardError, make_reward, shown
from state_tuning.reinforcement.sampling import Prompts, pad_prompts

GOLD = ("answer", "completion")
"""Keys of a right answer, the first that is there."""
MISSING = "method.reward is missing: give --reward number, letter, regex:PATTERN, module:function or file.py:function"


class Problem(NamedTuple):
    """A prompt, its right answer (empty: there is none), and the user's record of it."""

    prompt: str
    gold: str
    record: Record


class Asked(NamedTuple):
    """One job: problems to learn from, and held-out ones."""

    job: Job
    train: list[Problem]
    held_out: list[Problem]
    reward: Reward

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the tuned state depends on: what is learnt from, and the file of a user's function."""
        return digest([self.train, self.reward.name, self.reward.source])


def load(method: RewardMethod, data: DataConfig, evaluate: EvaluateConfig, seed: int) -> list[Asked]:
    """Reads the problems of a run.

    Args:
      method: which reward, for which the right answers have to be good.
      data: where the records are: {"prompt"} with "answer" or "completion" where the reward needs one; all other forms
        of `data.train`, of which conversations give their first exchange; or benchmarks.
      evaluate: which records are held out, and how many.
      seed: of splits.

    Raises:
      UsageError: in one line: no reward, or what is wrong with a record, with file and line.
      RewardError: the reward cannot be had.
    """
    if not method.reward.strip():
        raise UsageError(MISSING)
    reward = make_reward(method.reward)
    if not data.train or data.tasks:
        return [_from_job(job, reward) for job in load_jobs(data, evaluate, seed)]
    paths = [data.train, data.validation] if data.validation else [data.train]
    found = [[_problem(line, data, reward) for line in read_lines(path)] for path in paths]
    train, held_out = found if data.validation else hold_out(found[0], data.validation_fraction, seed)
    train, held_out = train[: data.max_train], held_out[: evaluate.max_records]
    if len(held_out) < 2:
        raise UsageError(f"{paths[-1]}: {len(held_out)} held-out prompts; an interval needs two")
    pairs = [[Pair(one.prompt, one.gold) for one in part] for part in (train, held_out)]
    return [Asked(Job("jsonl", pairs[0], pairs[1]), train, held_out, reward)]


def encode(tokenizer: Tokenizer, problems: Sequence[Problem], max_length: int) -> tuple[list[list[int]], int]:
    """Returns the tokens of each prompt, and how many prompts lost their oldest tokens to `max_length`."""
    rows = [tokenizer.encode(one.prompt) or [tokenizer.eos_id] for one in problems]
    return [row[-max_length:] for row in rows], sum(len(row) > max_length for row in rows)


def padded(train: list[list[int]], held_out: list[list[int]]) -> tuple[Prompts, Prompts]:
    """Returns both parts as rows of one length, so that they share their programs."""
    both, count = pad_prompts([*train, *held_out]), len(train)
    return both.take(np.arange(count)), both.take(np.arange(count, len(both.tokens)))


def judge(problems: Sequence[Problem], reward: Reward) -> Judge:
    """Returns the judge of a job; the first process alone calls the reward, and tells the others.

    The judge raises RewardError in every process where the reward does.
    """

    def scores(index: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        found, error = list[float](), None
        if is_lead():
            try:
                for i, text in zip(index, texts, strict=True):
                    one = problems[int(i)]
                    found.append(reward.score(Answer(one.prompt, text, one.gold, one.record)))
            except RewardError as raised:
                error = str(raised)
        found, error = gather([found, error])[0]
        if error is not None:
            raise RewardError(error)
        return np.asarray(found, np.float64)

    return scores


def _from_job(job: Job, reward: Reward) -> Asked:
    """The problems of a benchmark."""

    def problems(pairs: Sequence[Pair]) -> list[Problem]:
        return [_checked(Problem(*pair, dict(pair._asdict())), reward, job.name) for pair in pairs]

    return Asked(job, problems(job.train), problems(job.held_out), reward)


def _problem(line: Line, data: DataConfig, reward: Reward) -> Problem:
    """The problem of a record.

    Raises:
      UsageError: with file and line.
    """
    record, where = line
    prompt = record.get("prompt")
    if not isinstance(prompt, str):
        if prompt is not None:
            raise UsageError(f"{where}: 'prompt' must be a string, not {type(prompt).__name__}")
        pair = to_pair(line, data.template)
        if not pair.prompt and not any(part.answer for part in exchanges_of(pair)):
            raise UsageError(f'{where}: a plain text has no prompt to answer; a line needs "prompt"')
        return _checked(Problem(*prompt_and_answer(pair), dict(record)), reward, where)
    if not prompt:
        raise UsageError(f"{where}: the prompt is empty, there is nothing to answer")
    key = next((key for key in GOLD if record.get(key) is not None), None)
    gold = "" if key is None else _gold(record[key], key, reward, where)
    return _checked(Problem(prompt, gold, dict(record)), reward, where)


def _gold(value: object, key: str, reward: Reward, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if reward.name != "letter":
            return str(value)
        if isinstance(value, int) and 0 <= value < len(LETTERS):
            return LETTERS[value]
    raise UsageError(
        f"{where}: {key!r} is {one_line(repr(value), 80)}; give a text, a number or the number of a choice"
    )


def _checked(problem: Problem, reward: Reward, where: str) -> Problem:
    lacking = reward.unusable(problem.gold)
    if lacking is None:
        return problem
    if not problem.gold:
        raise UsageError(f'{where}: reward {reward.name} compares with a right answer: give "answer" or "completion"')
    raise UsageError(f"{where}: the right answer {shown(problem.gold)} has no {lacking} for reward {reward.name}")
