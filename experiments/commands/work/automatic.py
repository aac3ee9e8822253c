"""A run with what it leaves to be chosen filled in."""

import dataclasses

from experiments.choosing.run import Settings, choose
from experiments.config.schema import R


def chosen(config: R) -> R:
    """Returns the config with the phrasing and the learning rate that `auto` stands for.

    Raises:
      UsageError, ValueError, OSError: in one line, for what cannot be chosen.
      Interrupted: a signal came.
    """
    parts = Settings(
        config.model,
        config.data,
        config.tune,
        config.method,
        config.evaluate,
        config.system,
        config.mesh,
        config.seed,
    )
    data, tune = choose(parts, config.folder)
    return dataclasses.replace(config, data=data, tune=tune)
