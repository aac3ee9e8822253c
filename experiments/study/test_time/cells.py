"""What is computed: tuned states, chains with and without adaptation, and chains of a search; kept on disk."""

import dataclasses
import math
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from experiments.build import load_model
from experiments.config.schema import ModelConfig
from experiments.data.jobs import find_task
from experiments.evaluation.problems import Item, from_record
from experiments.pocket import benchmarks
from experiments.reporting import jsonl_store
from experiments.study.adjustable_rate import set_rate, with_adjustable_rate
from experiments.study.test_time.settings import Settings
from rwkv7_jax import State
from rwkv7_jax.checkpoint.states import load_state
from rwkv7_jax.language_model import LanguageModel
from state_tuning import tuning
from state_tuning.test_time_scaling import adaptation, baselines
from state_tuning.test_time_scaling.policy_gradient import EPSILON, AdaptConfig, Adapted, Program, make_program
from state_tuning.test_time_scaling.rollouts import Session, Student
from state_tuning.test_time_scaling.search import SearchConfig, search
from state_tuning.test_time_scaling.selection import Pool
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher


class Outcome(NamedTuple):
    """The chains of one problem: which answers are right, their votes, the teacher's scores, and what they cost."""

    right: list[float]
    answers: list[str | None]
    scores: list[float | None]
    tokens: list[tuple[int, int]]


class Cell(NamedTuple):
    """One benchmark and seed."""

    task: str
    phrasing: str
    seed: int


class Study:
    """Computes cells, and keeps them."""

    def __init__(self, config: Settings):
        self.config, self.folder = config, Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "cells.jsonl"
        self.known = {str(one["key"]): one["value"] for one in jsonl_store.read(self.log)}
        self.student, self.larger = (load_model(ModelConfig(f"pocket/{name}")) for name in ("student", "teacher"))
        self.programs: dict[AdaptConfig, Program] = {}

    def kept(self, key: str, compute: Callable[[], object]) -> object:
        """Returns a value from the log, computed and kept if it is new."""
        if key not in self.known:
            print(f"computing {key}", file=sys.stderr, flush=True)
            value = compute()
            jsonl_store.append(self.log, {"key": key, "value": value})
            self.known[key] = value
        return self.known[key]

    def state(self, lm: LanguageModel, name: str, cell: Cell) -> State:
        """Returns the state that is tuned on the benchmark's chains."""
        steps = int(dict(one.split("=") for one in self.config.tune_steps)[cell.task])
        task = find_task(cell.task, cell.phrasing)
        pairs = {
            split: [task.to_example(record) for record in benchmarks.load(cell.task, split)]
            for split in ("train", "validation")
        }

        def tune(rate: float, seed: int) -> tuning.TuneResult:
            return tuning.tune(
                lm, pairs["train"], steps=steps, learning_rate=rate, batch_size=8, seed=seed,
                validation=pairs["validation"],
            )  # fmt: skip

        place = f"{name} {cell.task}={cell.phrasing}"
        rate = self.config.tune_rate[0]
        if len(self.config.tune_rate) > 1:
            losses = {
                each: float(str(self.kept(f"loss {place} {each} {steps}", lambda r=each: tune(r, 0).validation_loss)))
                for each in self.config.tune_rate
            }
            rate = min(losses, key=lambda each: losses[each])
        path = self.folder / "states" / f"{name}-{cell.task}-{cell.phrasing}-{steps}-{rate}-{cell.seed}.safetensors"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            tune(rate, cell.seed).state.save(path)
        return load_state(path, config=lm.config, base_model_hash=lm.weights_hash).state

    def sessions(self, cell: Cell, split: str, count: int, config: AdaptConfig) -> list[tuple[Session, list[Item]]]:
        """Returns the problems in batches."""
        student = Student(self.student, self.state(self.student, "student", cell))
        teacher = InProcessTeacher(self.larger, state=self.state(self.larger, "teacher", cell), batch_size=16)
        task = find_task(cell.task, cell.phrasing)
        items = [from_record(task, record) for record in benchmarks.load(cell.task, split)[:count]]
        program = self.program(config)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(cell.seed), zlib.crc32(cell.task.encode())), count)
        found = []
        for begin in range(0, len(items), self.config.batch_size):
            some = items[begin : begin + self.config.batch_size]
            problems = [item.problem for item in some]
            own = keys[begin : begin + len(some)]
            found.append((Session(student, program, teacher, problems, own, config), some))
        return found

    def program(self, config: AdaptConfig) -> Program:
        """Returns the jitted parts, compiled once for all rates."""
        key = dataclasses.replace(config, rate=1.0)
        if key not in self.programs:
            optimizer = with_adjustable_rate(optax.adam(1.0, eps=EPSILON))
            self.programs[key] = make_program(self.student.model, key, optimizer)
        made = self.programs[key]

        def start(prompts: int) -> Adapted:
            adapted = made.start(prompts)
            return adapted._replace(opt_state=set_rate(adapted.opt_state, config.rate))

        return made._replace(start=start)

    def settings(self, signal: str, rate: float, task: str) -> AdaptConfig:
        """Returns the adaptation's settings; `grpo` is the form with deviation and length, absolute rate and cap."""
        shared = AdaptConfig(
            samples=self.config.samples, steps=self.config.steps, max_new_tokens=LONGEST[task], rate=rate
        )
        if signal == "grpo":
            return dataclasses.replace(
                shared, signal="reward", units="absolute", baseline="group", kl=0.05, norm_cap=10.0
            )
        if signal in ("token", "reward"):
            return dataclasses.replace(shared, signal=signal)
        return dataclasses.replace(shared, signal="distillation", divergence=signal)

    def unadapted(self, task: str, temperature: float) -> AdaptConfig:
        """Returns the settings of sampling without adaptation."""
        return dataclasses.replace(self.settings("reverse", 0.1, task), temperature=temperature)

    def adapted(self, cell: Cell, split: str, count: int, signal: str, rate: float) -> list[list[Outcome]]:
        """Returns the chains of each problem after each step, the last one of each the adapted model's own."""
        config = self.settings(signal, rate, cell.task)

        def compute() -> object:
            rows = []
            for session, items in self.sessions(cell, split, count, config):
                found = adaptation.adapt_and_vote(session, lambda b, text, items=items: items[b].answer(text))
                pools = [[step[b] for step in found.pools] for b in range(len(items))]
                rows += [[_outcome(item, pool) for pool in own] for item, own in zip(items, pools, strict=True)]
            return rows

        key = f"adapted {cell} {split} {count} {signal} {rate} {self.config.samples}x{self.config.steps}"
        return [[Outcome(*one) for one in row] for row in self.kept(key, compute)]  # pyright: ignore

    def searched(self, cell: Cell, split: str, count: int, temperature: float) -> list[Outcome]:
        """Returns the chains that a search in state space finds, as many as the adaptation draws."""
        config = self.unadapted(cell.task, temperature)
        found = SearchConfig(self.config.samples * self.config.steps, self.config.span, self.config.part)

        def compute() -> object:
            rows = []
            for session, items in self.sessions(cell, split, count, config):
                pools = search(session, found, lambda b, text, items=items: items[b].answer(text)).pools
                rows += [_outcome(item, pool) for item, pool in zip(items, pools, strict=True)]
            return rows

        key = f"search {cell} {split} {count} {found}{_at(temperature)}"
        return [Outcome(*one) for one in self.kept(key, compute)]  # pyright: ignore

    def plain(self, cell: Cell, split: str, count: int, temperature: float) -> tuple[list[Outcome], list[float]]:
        """Returns the chains of each problem without adaptation, and whether the larger model alone is right."""
        config, size = self.unadapted(cell.task, temperature), self.config.samples * self.config.steps + 1

        def compute() -> object:
            rows, alone = [], []
            for session, items in self.sessions(cell, split, count, config):
                pools = baselines.sample_pools(session, size, lambda b, text, items=items: items[b].answer(text))
                rows += [_outcome(item, pool) for item, pool in zip(items, pools, strict=True)]
                larger = baselines.teacher_alone(session)
                alone += [item.correct(one.results) for item, one in zip(items, larger, strict=True)]
            return [rows, alone]

        key = f"plain {cell} {split} {count} {size}{_at(temperature)}"
        rows, alone = self.kept(key, compute)  # pyright: ignore
        return [Outcome(*one) for one in rows], alone


LONGEST = {"mmlu": 48, "gsm8k": 96, "arc": 48, "winogrande": 48}
"""Tokens of the longest chain."""


def _at(temperature: float) -> str:
    """Returns the temperature in a key; 1 is not written."""
    return "" if temperature == 1.0 else f" at {temperature:g}"


def _outcome(item: Item, pool: Pool) -> Outcome:
    answers = [None if a is None else str(a) for a in pool.answers]
    right = [item.correct([text]) for text in pool.texts]
    scores = [None if math.isnan(x) else round(x, 4) for x in pool.scores]
    return Outcome(right, answers, scores, list(pool.tokens))
