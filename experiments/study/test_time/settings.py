"""The settings of the study."""

import dataclasses

from experiments.config.overrides import option


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of the study."""

    tasks: tuple[str, ...] = option(
        ("mmlu=took", "gsm8k=gold", "arc=why", "winogrande=why"), "benchmark=phrasing, by commas"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of tuning and sampling")
    tune_steps: tuple[str, ...] = option(("mmlu=100", "gsm8k=400", "arc=100", "winogrande=400"), "by benchmark")
    tune_rate: tuple[float, ...] = option((0.3, 1.0, 3.0), "learning rates; the validation loss chooses")
    samples: int = option(4, "chains a step")
    steps: int = option(3, "steps")
    rates: tuple[float, ...] = option((0.003, 0.01, 0.03, 0.1), "rates of adaptation, in units of the state")
    signals: tuple[str, ...] = option(("reverse", "forward", "mixed", "token", "reward"), "what is tried")
    temperatures: tuple[float, ...] = option((0.1, 0.2, 0.3, 0.6, 1.0), "of sampling without adaptation, tried")
    span: int = option(6, "tokens between two forks of the search")
    part: float = option(0.1, "nats per token at which chains are forked")
    validation: int = option(128, "validation problems")
    test: int = option(400, "test problems")
    batch_size: int = option(16, "problems at once")
    output: str = option("runs/test_time", "folder")

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError("must be given, all above 0")
