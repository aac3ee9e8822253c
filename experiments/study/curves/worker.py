"""How each cell of a study of curves is computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.config.curves import CurvesConfig, parts
from experiments.config.overrides import UsageError
from experiments.config.schema import plain_name
from experiments.data import batching
from experiments.data.jobs import Job
from experiments.data.jsonl import Pair
from experiments.evaluation import problems
from experiments.evaluation.evaluator import Evaluator
from experiments.evaluation.solving import Sampling, solve
from experiments.study import timing, tuning
from experiments.study.curves import data
from experiments.study.curves.plan import VANILLA, CurvePlan, Place
from experiments.study.curves.records import CurveRecord
from experiments.study.learning_rates import STARTS, climb, loss_or_infinity
from experiments.study.resources import Resources
from experiments.study.store import Cell, CellStore
from rwkv7_jax import State, load_state, zero_state
from state_tuning.core.objective import Example


class CurveWorker:
    """Computes cells; what they depend on is computed when it is needed."""

    def __init__(
        self,
        plan: CurvePlan,
        resources: Resources,
        validation: Mapping[str, Job],
        store: CellStore[CurveRecord],
    ):
        self.plan, self.resources, self.validation, self.store = plan, resources, validation, store
        self.config: CurvesConfig = plan.config
        self._texts: list[Pair] | None = None

    def run(self, place: Place, cell: Cell) -> CurveRecord:
        """Returns the record of a cell, from the store or computed and kept."""
        known = self.store.get(cell)
        if known is not None:
            return known
        self.resources.interrupt.place = f"{place.row} on {place.task} after {place.budget} steps, seed {cell.seed}"
        self.resources.make_room()
        return self.store.add(cell, self._vanilla(place) if place.row == VANILLA else self._tuned(place, cell.seed))

    def steps(self, place: Place) -> int:
        """Returns how many steps a row takes for a budget."""
        row = self.config.rows[place.row]
        if row.seconds_of is None:
            return place.budget
        seconds = self.seconds(place.row, row.seconds_of, place.task)
        return timing.steps_for(seconds, place.row, row.seconds_of, place.budget)

    def seconds(self, row: str, other: str, task: str) -> dict[str, dict[str, float]]:
        """Returns row -> benchmark -> seconds a step of two rows, taken in turn on the same batches."""
        names = list(dict.fromkeys((row, other)))

        def measured() -> Mapping[str, object]:
            return {"seconds": timing.measure(self.resources, self.config.timing_rounds, names, [task])}

        return self.store.get_or_add(self.plan.timing(row, other, task), measured)["seconds"]

    def rate(self, place: Place) -> float:
        """Returns the learning rate of a point: the ladder is climbed from the best rate of the budget before."""
        row = self.config.rows[place.row]
        if row.rates_of:
            return self.rate(place._replace(row=row.rates_of))
        before = [budget for budget in self.plan.budgets(place.row) if budget < place.budget]
        starts = (self.rate(place._replace(budget=before[-1])),) if before else STARTS
        return climb(lambda rate: self._tried(place, rate), starts=starts)

    def _tried(self, place: Place, rate: float) -> float:
        """Validation loss after tuning at a rate, infinite where it diverges."""
        cell = self.plan.tried(place, rate)
        known = self.store.get(cell)
        if known is None:
            self.resources.interrupt.place = f"{place.row} on {place.task}, {place.budget} steps, rate {rate:g}"
            known = self.store.add(cell, {"rate": rate, "loss": loss_or_infinity(lambda: self._loss(place, rate))})
            print(f"  {place.row}, {place.task}, {place.budget} steps, rate {rate:g}: {known['loss']:.4f}", flush=True)
            self.resources.interrupt.check()
        return known["loss"]

    def _loss(self, place: Place, rate: float) -> float:
        seed = self.config.seeds[0]
        examples = self.examples(place, seed, self.validation[place.task])
        program = self.resources.program(place.row, seed)
        done = tuning.tune(
            self.resources, place.row, program, place.task, seed, rate, self.steps(place), examples=examples
        )
        evaluator, state = tuning.tuned_model(self.resources.student, program, done.tuned)
        nll, tokens = tuning.held_out_loss(self.resources, evaluator, state, self.validation[place.task])
        return float(nll.sum() / tokens.sum())

    def examples(self, place: Place, seed: int, job: Job) -> list[Example]:
        """Returns what a row is tuned on."""
        row = self.config.rows[place.row]
        pairs: Sequence[Pair] = self.solutions(place.task) if row.data == "solved" else job.train
        pairs = pairs[: row.records]
        pairs = data.shuffled(pairs, seed) if row.data == "shuffled" else pairs
        return batching.encode_pairs(self.resources.student.lm.tokenizer, pairs, self.resources.data)

    def solutions(self, task: str) -> list[Pair]:
        """Returns the model's own verified solutions of training problems."""
        record = self.store.get_or_add(self.plan.solutions(task), lambda: self._solve(task))
        return [Pair(*pair) for pair in record["pairs"]]

    def _solve(self, task: str) -> Mapping[str, object]:
        """Samples training problems, from the zero state or from one that was tuned for a few steps."""
        resources, settings = self.resources, self.config.solved
        name, chain = parts(next(one for one in self.config.tasks if plain_name(one) == task))
        count = settings.problems + settings.shots
        items = problems.load(name, None, "text", "train", count, resources.data.dir, chain)[settings.shots :]
        solved = resources.jobs[task].train[: settings.shots]
        before = "".join(f"{pair.prompt}{pair.completion}\n\n" for pair in solved)
        limits, lm = resources.evaluate, resources.student.lm
        sampling = Sampling(
            settings.wanted,
            settings.samples,
            limits.batch_size,
            settings.temperature,
            limits.max_new_tokens,
            self.config.seeds[0],
        )

        def tick(drawn: int, found: int) -> None:
            resources.interrupt.check()

        place, state = self.plan.sampling_place(task), zero_state(lm.model.config, None)
        if place is not None:
            seed = self.config.seeds[0]
            self.run(place, self.plan.tuned(place, seed))
            state = load_state(self._file(place, seed), config=lm.model.config, base_model_hash=lm.weights_hash).state
        found = solve(lm, state, items, sampling, [before] * len(items), tick)
        if not found.solutions:
            told = f"none of {found.sampled} samples of {task} is right"
            raise UsageError(f"solved: {told}: give solved.row, or more samples")
        pairs = [[one.prompt, one.completion] for one in found.solutions]
        print(f"  {task}: {len(pairs)} own solutions of {found.sampled} samples, {found.cut} of them cut", flush=True)
        return {"pairs": pairs, "sampled": found.sampled, "accepted": found.accepted, "cut": found.cut}

    def _tuned(self, place: Place, seed: int) -> Mapping[str, object]:
        resources, steps, rate = self.resources, self.steps(place), self.rate(place)
        program = resources.program(place.row, seed)
        examples = self.examples(place, seed, resources.jobs[place.task])
        done = tuning.tune(resources, place.row, program, place.task, seed, rate, steps, examples=examples)
        after, state = tuning.tuned_model(resources.student, program, done.tuned)
        found: dict[str, object] = {
            "rate": rate, "budget": place.budget, "steps": steps, "skipped": int(done.tuned.skipped),
            "seconds": round(done.seconds, 5), "examples": len(examples),
            **self._scores(after, state, place.task),
        }  # fmt: skip
        if self.plan.is_measured_elsewhere(place):
            found["elsewhere"] = {task: self._scores(after, state, task) for task in self.plan.others(place.task)}
            found["text"] = self._text(after, state)
        if after.lm.params is resources.student.lm.params:
            self._save(place, seed, state)
        return found

    def _file(self, place: Place, seed: int) -> Path:
        """Where a tuned state is kept."""
        return self.resources.states_folder / f"{place.row}-{place.task}-{place.budget}-{seed}.safetensors"

    def _save(self, place: Place, seed: int, state: State) -> None:
        """Keeps a tuned state as a file."""
        resources, row = self.resources, self.config.rows[place.row]
        path = self._file(place, seed)
        path.parent.mkdir(exist_ok=True)
        settings = {"row": place.row, "budget": place.budget, "method": vars(row.method), "seed": seed}
        resources.student.lm.tuned_state(state, row.method.kind, task=place.task, config=settings).save(path)

    def _vanilla(self, place: Place) -> Mapping[str, object]:
        evaluator = self.resources.student
        state = zero_state(evaluator.lm.model.config, None)
        found = {"rate": 0.0, "budget": 0, "steps": 0, "skipped": 0, "seconds": 0.0, "examples": 0}
        return {**found, **self._scores(evaluator, state, place.task), "text": self._text(evaluator, state)}

    def _scores(self, evaluator: Evaluator, state: State, task: str) -> dict[str, object]:
        """Values of each held-out record."""
        job = self.resources.jobs[task]
        assert job.task is not None
        nll, tokens = tuning.held_out_loss(self.resources, evaluator, state, job)
        scores = evaluator.scores(state, job.task, job.records)
        self.resources.interrupt.check()
        return {
            "nll": [round(float(one), 4) for one in nll],
            "tokens": [int(one) for one in tokens],
            "scores": {name: [int(one) for one in values] for name, values in scores.items()},
        }

    def _text(self, evaluator: Evaluator, state: State) -> dict[str, list[float]]:
        """Loss on plain text, document by document."""
        config = self.config
        if self._texts is None:
            self._texts = data.documents(config.texts, config.text_file) if config.texts else []
        if not self._texts:
            return {"nll": [], "tokens": []}
        tokenizer = evaluator.lm.tokenizer
        parts_of = batching.encode_each(tokenizer, self._texts, self.resources.data)
        nll, tokens = evaluator.losses(state, [example for part in parts_of for example in part])
        return {"nll": [round(float(one), 4) for one in nll], "tokens": [int(one) for one in tokens]}
