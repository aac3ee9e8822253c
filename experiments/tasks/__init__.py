"""Benchmarks: records in the public schema -> requests -> scores, one file each."""

from experiments.tasks.arc import Arc
from experiments.tasks.gsm8k import Gsm8k
from experiments.tasks.mmlu import Mmlu, RwkvMmlu
from experiments.tasks.types import Fewshot, Generate, Loglikelihood, Record, Request, Task
from experiments.tasks.winogrande import Winogrande

TASKS: dict[str, Task] = {"mmlu": Mmlu(), "gsm8k": Gsm8k(), "winogrande": Winogrande(), "arc": Arc()}
"""The benchmarks, in the harness's protocol."""
PROTOCOLS: dict[str, Task] = TASKS | {"mmlu_rwkv": RwkvMmlu()}
"""The benchmarks, in every protocol."""

__all__ = [
    "PROTOCOLS", "TASKS", "Arc", "Fewshot", "Generate", "Gsm8k", "Loglikelihood", "Mmlu", "Record", "Request",
    "RwkvMmlu", "Task", "Winogrande",
]  # fmt: skip
