"""Benchmarks: records in the public schema -> requests -> scores, one file each."""

from experiments.tasks.arc import Arc
from experiments.tasks.gsm8k import Gsm8k
from experiments.tasks.mmlu import Mmlu
from experiments.tasks.types import Generate, Loglikelihood, Record, Request, Task
from experiments.tasks.winogrande import Winogrande

TASKS: dict[str, Task] = {"mmlu": Mmlu(), "gsm8k": Gsm8k(), "winogrande": Winogrande(), "arc": Arc()}

__all__ = ["TASKS", "Arc", "Generate", "Gsm8k", "Loglikelihood", "Mmlu", "Record", "Request", "Task", "Winogrande"]
