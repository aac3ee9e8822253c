"""What a run that goes on may change: what its tuned tree depends on, and what its measurements and samples do.

A run is known by what its tuned tree depends on (`tuned_by`, the weights, the training data). Everything else is free:
measurements of other held-out records, other samples, another name. `claim` throws away only what they make obsolete.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.config.overrides import UsageError
from experiments.config.schema import BOOKKEEPING, OUTSIDE, DataConfig, Json, digest
from experiments.training import run_folder
from experiments.training.checkpoint.files import steps

FREE = (*BOOKKEEPING, "name", "evaluate", "report")
"""Sections that no tuned tree depends on; of `evaluate.split` the data tells."""
FREE_DATA = ("dir", "train", "validation", "validation_fraction", "max_train")
"""Settings that say where records come from; the records themselves are compared."""
PATIENCE = "tune.patience"
SAMPLED = ("samples", "sample_tokens", "prompt", "plots")
"""Settings of `report` that change the files of a job."""
OUTCOME_FILE, EARLIER_FILE, BEST_FILE = "outcome.json", "earlier.json", "best.safetensors"
"""A finished job; its measurements, kept while samples are made anew; its best state by the held-out loss."""
Settings = Mapping[str, Json]


class Run(NamedTuple):
    """A run that may go on in its folder."""

    folder: Path
    identity: str
    """Of `identity`."""
    settings: Settings
    """Resolved."""
    parts: Settings
    """What its tuned trees depend on besides, by name."""
    measured: Mapping[str, str]
    """Job -> hash of the records that it is measured on."""


def tuned_by(settings: Settings) -> dict[str, Json]:
    """Returns the settings that a tuned tree depends on, by dotted key.

    With a constant learning rate the number of steps is not among them: more steps continue the same ones.

    Args:
      settings: of a run, resolved.
    """
    flat = dict(_flat({name: value for name, value in settings.items() if name not in FREE}))
    tune = settings.get("tune")
    constant = isinstance(tune, dict) and tune.get("schedule") == "constant"
    left_out = {f"data.{name}" for name in FREE_DATA} | {f"tune.{name}" for name in OUTSIDE}
    left_out |= {"tune.steps"} if constant else set()
    late = ("template", "chain")
    left_out |= {f"data.{name}" for name in late if flat.get(f"data.{name}") == getattr(DataConfig, name)}
    return {key: value for key, value in flat.items() if key not in left_out}


def identity(folder: Path, settings: Settings, parts: Settings, old: str) -> str:
    """Returns the hash of all that the tuned trees of a run depend on.

    Args:
      folder: the output folder.
      settings: of the run, resolved.
      parts: what else they depend on, by name.
      old: the hash that run.json held before; a run that was begun with it keeps it.
    """
    begun = run_folder.begun(folder)
    return old if begun == old else digest([tuned_by(settings), parts])


def check(run: Run) -> None:
    """Checks that a folder with results is of a run that may go on; the error names the settings that differ.

    Raises:
      UsageError: in one line.
    """
    begun = run_folder.begun(run.folder)
    if begun is None or not run_folder.has_results(run.folder):
        return
    if begun != run.identity:
        _explain(run.folder, run.settings, run.parts)
    else:
        _check_steps(run)


def claim(run: Run, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready; of an earlier run that goes on, throws away what changed settings make obsolete.

    Raises:
      UsageError: as `run_folder.check`.
    """
    further = {"parts": run.parts, "measured": run.measured}
    if run_folder.claim(run.folder, run.identity, run.settings, resume=resume, overwrite=overwrite, further=further):
        _renew(run)
        run_folder.record(run.folder, run.identity, run.settings, further)


def _explain(folder: Path, settings: Settings, parts: Settings) -> None:
    """Says in which settings, weights or data the run in a folder differs from one that is to continue it.

    Raises:
      UsageError: they differ, in one line with the ways out.
    """
    found = run_folder.read(folder)
    before, known = found.get("config"), found.get("parts")
    if not isinstance(before, dict):
        return
    ways = "choose another --output, or throw it away with --overwrite"
    old, new = tuned_by(before), tuned_by(settings)
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    # What run.json does not have is a setting of a later version, which the run had at its default.
    differing = [key for key in differing if key in old] or differing
    if differing == ["tune.steps"]:
        raise UsageError(f"{folder} holds a run with other settings ({_steps(old, new)}, or {ways}")
    if differing:
        named = ", ".join(f"{key}: {_short(old.get(key))} there, {_short(new.get(key))} here" for key in differing)
        raise UsageError(f"{folder} holds a run with other settings ({named}): {ways}")
    if isinstance(known, dict):
        others = [name for name in {**known, **parts} if known.get(name) != parts.get(name)]
        if others:
            raise UsageError(f"{folder} holds a run with the same settings and other {' and '.join(others)}: {ways}")


def _steps(old: Settings, new: Settings) -> str:
    """Why the number of steps cannot be changed, and what can be done."""
    schedule = new.get("tune.schedule")
    return (
        f"tune.steps: {old.get('tune.steps')} there, {new.get('tune.steps')} here): with --tune.schedule {schedule} "
        "the learning rate of every step depends on the number of steps, so only a run with --tune.schedule constant "
        "takes more; start from its state in another folder with --tune.init STATE --output FOLDER"
    )


def _check_steps(run: Run) -> None:
    """Checks that no job has taken more steps than are wanted.

    Raises:
      UsageError: one has.
    """
    wanted = dict(_flat(run.settings)).get("tune.steps")
    for job in run.measured:
        taken = max(steps(run.folder / job / "checkpoints"), default=0)
        if isinstance(wanted, int) and taken > wanted:
            raise UsageError(
                f"tune.steps: {wanted} is less than the {taken} steps that {run.folder / job} has taken; give {taken} "
                "or more, another --output, or --overwrite"
            )


def _renew(run: Run) -> None:
    """Throws away what other settings of the same run make obsolete, before they are written into the folder."""
    found = run_folder.read(run.folder)
    before, known = found.get("config"), found.get("measured")
    if not isinstance(before, dict):
        return
    old, new = dict(_flat(before)), dict(_flat(run.settings))
    others = {key for key in {**old, **new} if old.get(key) != new.get(key)}
    evaluated = any(key.startswith("evaluate.") for key in others)
    for job, records in run.measured.items():
        place = run.folder / job
        same = not isinstance(known, dict) or known.get(job) == records
        if not same:
            (place / BEST_FILE).unlink(missing_ok=True)
        if not same or evaluated or "tune.steps" in others or (old.get(PATIENCE) or 0) != (new.get(PATIENCE) or 0):
            (place / OUTCOME_FILE).unlink(missing_ok=True)
            (place / EARLIER_FILE).unlink(missing_ok=True)
        elif others & {f"report.{name}" for name in SAMPLED} and (place / OUTCOME_FILE).is_file():
            (place / OUTCOME_FILE).replace(place / EARLIER_FILE)


def _flat(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """(dotted key, value) of every setting."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield prefix + name, value


def _short(value: object) -> str:
    """One line of a value."""
    text = "none" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
