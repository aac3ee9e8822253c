"""The state in a checkpoint of `rwkv7 tune`, as it would be if the run ended there."""

import dataclasses
import re
from pathlib import Path

from experiments import build
from experiments.config.loading import load_config
from experiments.config.methods import UpscaleMethod
from experiments.config.schema import check, identified
from experiments.data.jobs import load_jobs
from experiments.session import make_tuner
from experiments.training import checkpoint, run_folder
from rwkv7_jax.checkpoint import CheckpointError
from rwkv7_jax.checkpoint.states import TunedState, state_metadata
from rwkv7_jax.sharding import host

STEP = re.compile(r"step_(\d{8})")


def load_state(folder: Path) -> TunedState:
    """Returns the unbatched state of a checkpoint, with the metadata of a state file.

    The model of the run is read for it, and for an upscaled state the training data, to which its map was fitted.

    Args:
      folder: of one step, or one that holds the steps of a job, of which the newest is taken.

    Raises:
      CheckpointError: it is not a checkpoint of `rwkv7 tune`, or damaged, or its model has changed.
      UsageError, ValueError, OSError: in one line, whatever is wrong with the model or the data of the run.
    """
    folder = newest(folder)
    run = next((parent for parent in folder.absolute().parents if (parent / run_folder.RUN_FILE).is_file()), None)
    found = STEP.fullmatch(folder.name)
    if run is None or found is None:
        raise CheckpointError(f"{folder}: not a checkpoint in the folder of a run of rwkv7 tune (RUN/JOB/checkpoints)")
    if problem := checkpoint.damage(folder):
        raise CheckpointError(f"{folder} is damaged ({problem}); take another step")
    config = check(load_config(str(run / run_folder.RUN_FILE)))
    lm = build.load_model(config.model)
    parts = run_folder.read(run).get("parts")
    if isinstance(parts, dict) and parts.get("weights") not in (None, lm.identity):
        raise CheckpointError(f"{folder}: the weights in {config.model.checkpoint} are others than those of the run")
    lifted = isinstance(config.method, UpscaleMethod)
    jobs = load_jobs(config.data, config.evaluate, config.seed) if lifted else []
    tune = dataclasses.replace(config.tune, init=None, init_layout=None)
    tuner = make_tuner(lm, jobs, config.data, tune, config.method, config.seed)
    try:
        tuned = checkpoint.read(folder.parent, int(found[1]), checkpoint.abstract(tuner.fresh()))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: not a checkpoint of this run: {' '.join(str(error).split())[:200]}") from None
    params, state = tuner.chosen.finish(lm.params, host(tuned.trainable))
    if params is not lm.params:
        raise CheckpointError(
            f"{folder}: the method {config.method.kind} of this run changes weights, and tunes no state"
        )
    task, settings, metrics = folder.parent.parent.name, identified(config), {"step": int(found[1])}
    metadata = state_metadata(lm.weights_hash, config.method.kind, task=task, config=settings, metrics=metrics)
    return TunedState(host(state), metadata)


def newest(folder: Path) -> Path:
    """Returns the newest step in a folder of steps or of a job; any other folder as it is."""
    for place in (folder, folder / "checkpoints"):
        if steps := sorted(path for path in place.glob("step_*") if STEP.fullmatch(path.name)):
            return steps[-1]
    return folder
