"""What a training loop is given, and what it does at a step, one function each."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import jax
from jaxtyping import Array, PyTree

from experiments.config.loop import LoopConfig
from experiments.training.checkpoint import Found, Keep, Meta, Writer, abstract, find, read
from experiments.training.checkpoint.files import discard_after
from experiments.training.goodput import Ledger
from experiments.training.metrics_log import MetricsLog, Row, Throughput, Timing, progress_bar
from experiments.training.pace import Pace
from experiments.training.preemption import Interrupt
from experiments.training.profiling import Board, Profile
from rwkv7_jax import flops
from state_tuning.core import non_finite
from state_tuning.core.non_finite import Metrics

Shapes = tuple[tuple[int, ...], ...]


class Batches(Protocol):
    """An endless iterator of host batches that can be put back to an earlier position, as Grain's."""

    def __next__(self) -> PyTree:
        """Returns the next batch."""
        ...

    def get_state(self) -> dict[str, object]:
        """Returns the position as JSON."""
        ...

    def set_state(self, state: dict[str, object]) -> None:
        """Goes to a position that `get_state` returned."""
        ...


class Task(NamedTuple):
    """What is trained."""

    name: str
    """The job in rows of metrics and in messages."""
    step: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]]
    """(state, batch on the device) -> (state, metrics); the state may be donated. `applied` False among the metrics
    says that the update was not finite and left the state as it was."""
    data: Batches
    """With several processes in the same state in all of them."""
    steps: int
    identity: str
    """Of settings, data and weights; a checkpoint of another is refused."""
    tokens: Callable[[PyTree], float]
    """Tokens of all processes in a step, from the host batch."""
    values: tuple[str, ...] = ("loss",)
    """Metrics that go into the rows, scalars."""
    put: Callable[[PyTree], PyTree] = jax.device_put
    """Host batch -> batch on the devices."""
    flops: float | None = None
    """Model FLOPs a token, for MFU."""
    evaluate: Callable[[PyTree], dict[str, float]] | None = None
    """state -> further values for the rows of every `evaluate_every` steps that are logged, and of the last."""
    evaluate_every: int = 1
    title: str | None = None
    """Of the progress bar; none: the name."""
    enough: Callable[[int], bool] | None = None
    """(step) -> whether the run ends there before its last step; asked after the step's row, and when a run resumes."""
    leave: Callable[[PyTree, int], None] | None = None
    """(state, step): called when the run ends before its last step because it was asked to, with a checkpoint begun."""


class Place(NamedTuple):
    """Where a run is kept."""

    folder: Path
    """For goodput.json and the folders profile and tensorboard."""
    checkpoints: Path
    log: MetricsLog
    interrupt: Interrupt


class Steps:
    """The variables of a loop and what changes them; `experiments.training.loop` says in which order."""

    def __init__(self, task: Task, state: PyTree[Array], settings: LoopConfig, place: Place):
        self.task, self.settings, self.place = task, settings, place
        self.state: PyTree[Array] = jax.tree.map(_as_restored, state)
        self.index = 0
        """Steps taken."""
        self.drawn = 0
        """Batches drawn: more than steps after a rollback."""
        self.bad = 0
        """Non-finite updates in a row up to now."""
        self.rollbacks = 0
        self.first = jax.process_index() == 0
        self.pending: list[tuple[int, int, Metrics]] = []
        """(step, batch, metrics on the device) not yet read; reading waits for the device."""
        self.values: dict[str, float] = {}
        self.warning: str | None = None
        self.shapes: set[Shapes] = set()
        self.rate, self.speed, self.pace = Throughput(), 0.0, Pace()
        self.ledger = Ledger(place.folder / "goodput.json" if self.first else None)
        self.board = Board(place.folder / "tensorboard", settings.tensorboard and self.first)

    def open(self, stack: ExitStack) -> None:
        """Begins what has to be ended."""
        settings, folder = self.settings, self.place.folder
        keep = Keep(settings.keep, settings.keep_best, settings.best_metric)
        stack.callback(self.board.close)
        self.writer = stack.enter_context(Writer(self.place.checkpoints, keep))
        self.profile = Profile(folder / "profile", settings.profile_start, settings.profile_steps)
        stack.callback(self.profile.close)
        title = self.task.title or self.task.name
        self.bar = stack.enter_context(progress_bar(self.task.steps, title, "step", self.index, shown=self.first))

    def resume(self) -> None:
        """Goes to the newest undamaged checkpoint, if there is one."""
        found = find(self.place.checkpoints, self.task.identity)
        for line in found.warnings if found else ():
            print(f"warning: {line}", file=sys.stderr)
        found = found or Found(0, {}, [])
        self._go_to(found)
        if found.step:
            self.task.data.set_state(found.meta["data"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
        before = found.meta.get("loop", {})
        self.drawn = before.get("drawn", self.index)
        self.bad, self.rollbacks = before.get("bad", 0), before.get("rollbacks", 0)

    def _go_to(self, found: Found) -> None:
        """Restores state, step, rows and ledger of a checkpoint; the state in hand is let go before it is read."""
        if found.step:
            with self.ledger.timed("lost"):
                template, self.state = abstract(self.state), None
                self.state = read(self.place.checkpoints, found.step, template)
        self.index = found.step
        self.ledger.back_to(found.meta.get("seconds", {}))
        if self.first:
            self.place.log.rewind(self.task.name, self.index)

    def advance(self) -> None:
        """Takes one step: the batch onto the device, the jitted function, nothing waited for."""
        with self.ledger.timed("input"):
            host = next(self.task.data)
            tokens = self.task.tokens(host)
            batch = self.task.put(host)
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        part = "step" if shapes in self.shapes else "compile"
        self.shapes.add(shapes)
        if part == "compile":
            self.pace.compiled()
        self.index, self.drawn = self.index + 1, self.drawn + 1
        self.profile.before(self.index)
        with self.ledger.timed(part), jax.transfer_guard("disallow"):
            self.state, metrics = self.task.step(self.state, batch)
        self.profile.after(self.index, metrics)
        self.pending.append((self.index, self.drawn, metrics))
        self.speed = self.rate.add(tokens)
        self.bar.update()

    def examine(self) -> None:
        """Reads the metrics of the steps since the last time; tells a skipped update in one line."""
        with self.ledger.timed("step"):
            applied = jax.device_get([metrics.get("applied", True) for _, _, metrics in self.pending])
            for (step, batch, metrics), good in zip(self.pending, applied, strict=True):
                self.bad = 0 if good else self.bad + 1
                if not good:
                    self.warning = non_finite.skip_message(metrics, step, batch)
                    if self.first:
                        self.bar.write(f"warning: {self.warning}", file=sys.stderr)
            if self.pending:
                last = jax.device_get({name: self.pending[-1][2][name] for name in self.task.values})
                self.values = {name: float(value) for name, value in last.items()}
        self.pending = []
        devices = jax.tree.leaves(self.state)[0].sharding.device_set
        if (line := self.pace.read(self.index, self.task.steps, devices)) and self.first:
            self.bar.write(f"{self.task.name}: {line}", file=sys.stderr)

    def rolled_back(self) -> bool:
        """Goes back to the last checkpoint from before too many non-finite updates in a row.

        The batches after them come next.

        Returns:
          Whether it went back.

        Raises:
          NonFiniteError: there is no such checkpoint, or there were too many rollbacks.
        """
        if self.bad < self.settings.rollback_after:
            return False
        text = f"{self.warning}; {self.bad} in a row"
        if self.rollbacks >= self.settings.rollbacks:
            times = f" after {self.rollbacks} rollbacks" if self.rollbacks else ""
            raise non_finite.NonFiniteError(f"{text}{times}: {non_finite.ADVICE}")
        self.writer.wait()
        found = find(self.place.checkpoints, self.task.identity, _anchor)
        if found is None or not found.step:
            raise non_finite.NonFiniteError(f"{text} and no checkpoint from before: {non_finite.ADVICE}")
        self._go_to(found)
        self.bad, self.rollbacks = 0, self.rollbacks + 1
        if self.first:
            discard_after(self.place.checkpoints, self.index)
            self.bar.write(f"warning: {text}; back to step {self.index}, on with batch {self.drawn + 1}", sys.stderr)
        self.bar.n = self.index
        return True

    def log(self) -> Row:
        """Writes the row of this step and returns it."""
        task = self.task
        timing: Timing = {"tokens_per_s": round(self.speed)}
        devices = jax.tree.leaves(self.state)[0].sharding.device_set
        mfu = flops.mfu(self.speed, task.flops, devices) if task.flops else None
        if mfu is not None:
            timing["mfu"] = round(mfu, 4)
        further: dict[str, float] = {}
        if task.evaluate and (self.index % task.evaluate_every == 0 or self.index == task.steps):
            with self.ledger.timed("evaluation"):
                further = task.evaluate(self.state)
        plain = {"job": task.name, "step": self.index, **self.values, "timing": timing, **further}
        row = cast(Row, plain)
        self.values |= {name: value for name, value in further.items() if isinstance(value, float)}
        shown = {"tok_s": f"{self.speed:.0f}"} | ({"mfu": f"{mfu:.1%}"} if mfu is not None else {})
        self.bar.set_postfix({**{"loss": f"{row['loss']:.3f}"}, **shown}, refresh=False)
        if self.first:
            self.place.log.append(row)
            self.board.add(row)
        self.ledger.write(now=False)
        return row

    def ended(self) -> bool:
        """Whether no step is left to take."""
        return self.index >= self.task.steps or bool(self.task.enough and self.task.enough(self.index))

    def save(self) -> None:
        """Begins to save this step; training goes on meanwhile."""
        self.examine()
        with self.ledger.timed("save"):
            meta: Meta = {
                "identity": self.task.identity,
                "anchor": self.index % self.settings.checkpoint_every == 0 and not self.bad,
                "data": self.task.data.get_state(),
                "loop": {"drawn": self.drawn, "bad": self.bad, "rollbacks": self.rollbacks},
                "seconds": self.ledger.snapshot(),
                "metrics": self.values,
            }
            self.writer.save(self.index, self.state, meta)
        self.ledger.write()


def _anchor(meta: Meta) -> bool:
    """Whether a rollback may go there: neither into trouble nor to where a run merely happened to be interrupted."""
    return bool(meta.get("anchor"))


def _as_restored(leaf: Array) -> Array:
    """The leaf as a checkpoint would give it: at home on its devices, without JAX's weak type. So all steps, those of a
    resumed run too, are one and the same compiled program."""
    strong = leaf.astype(leaf.dtype) if leaf.weak_type else leaf
    return jax.device_put(strong, leaf.sharding)
