"""A training step compiled for hardware that is not there."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.config.commands import Plan
from experiments.config.schema import PretrainConfig, RunConfig
from experiments.plan import compiled, report, step
from experiments.plan.topology import Topology


def run(config: RunConfig | PretrainConfig, own: Plan, target: Topology, overrides: Sequence[str]) -> int:
    """Compiles and reports; returns 0 if the step fits, else 1.

    Raises:
      UsageError: in one line, whatever is wrong with the settings.
    """
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if isinstance(config, RunConfig):
        make = partial(step.tuning, config.model, config.data, config.tune, config.method, own.size)
    else:
        make = partial(step.pretraining, config, own.size)
    made, parts = compiled.compile_step(make, target, compiled.devices(target), sizes)
    print(report.text(made, parts, compiled.options(made, parts)))
    if own.json:
        label = report.Label(config.name, own.size, list(overrides))
        Path(own.json).write_text(json.dumps(report.as_json(made, parts, label), indent=1) + "\n")
    return 0 if made.fits else 1
