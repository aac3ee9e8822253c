"""A training step compiled for hardware that is not there."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from experiments.config.commands import Plan
from experiments.config.schema import MeshConfig
from experiments.plan import advice, compiled, report, step
from experiments.plan.step import Step
from experiments.plan.topology import Topology
from experiments.reporting.json_text import json_text
from rwkv7_jax.checkpoint.files import write_text

pretraining, tuning = step.pretraining, step.tuning


def run(
    make: Callable[[Mesh], Step], mesh: MeshConfig, own: Plan, target: Topology, name: str, overrides: Sequence[str]
) -> int:
    """Compiles a step and reports.

    Args:
      make: mesh -> the step.
      mesh: its sizes.
      own: the command's own settings.
      target: the hardware.
      name: of the config, for the figures.
      overrides: what was changed in it, for the figures.

    Returns:
      0 if the step fits, else 1.

    Raises:
      UsageError: in one line, whatever is wrong with the settings.
    """
    sizes = (mesh.data, mesh.fsdp, mesh.tensor, mesh.sequence)
    made, parts = compiled.compile_step(make, target, compiled.devices(target), sizes)
    changes = [] if made.fits else advice.advice(made, parts)
    print(report.text(made, parts, compiled.options(made, parts), changes))
    if own.json:
        label = report.Label(name, own.size, list(overrides))
        write_text(Path(own.json).expanduser(), json_text(report.as_json(made, parts, label), indent=1) + "\n")
    return 0 if made.fits else 1
