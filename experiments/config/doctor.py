"""The settings of `rwkv7 doctor`."""

import dataclasses

from experiments.config.data_info import ExamplesConfig
from experiments.config.overrides import option

EXAMPLES = ExamplesConfig()


@dataclasses.dataclass(frozen=True)
class PatientConfig:
    """Which model is looked at."""

    checkpoint: str | None = option(
        None, "checkpoint, or pocket/student, pocket/teacher; none: no model is looked at", download=True
    )
    tokenizer: str = option("auto", "auto (by vocabulary size), world, byte, or a path to a tokenizer.json")


@dataclasses.dataclass(frozen=True)
class Doctor:
    """`rwkv7 doctor`."""

    model: PatientConfig = PatientConfig()
    state: str | None = option(None, "state file; with a checkpoint it is compared with the model's own states")
    state_layout: str | None = option(None, "axis order of a state file that does not say it")
    data: str | None = option(None, "file of records, as data.train")
    json: str | None = option(None, "write all that was found to this file too")
    examples: ExamplesConfig = EXAMPLES
