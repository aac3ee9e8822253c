"""Times the model against other implementations, in turn on this machine; a wrong result gets no time.

    rwkv7 bench model --rounds 3
    rwkv7 bench decode --rows 1,8,32,128 --json decode.json
    rwkv7 bench serve --streams 1,8,32 --json serve.json
    rwkv7 bench steps --only dbp
    rwkv7 bench tokenizer FILE...
    rwkv7 bench evaluation --data.dir data
    rwkv7 bench kernels --shape 4,512,4,64
    rwkv7 bench gpu

model: speed and memory of prefill and of a state-tuning step, in float32, bfloat16 and int8, against PyPI `rwkv`,
  keras-hub and scans that JAX differentiates (`pip install "rwkv7-jax[peers]"`).
decode: tokens a second of one sequence and of many, with the memory traffic, against those libraries and llama.cpp.
serve: tokens a second of the server with many clients, against llama.cpp's, and how long single ones wait
  (`pip install "rwkv7-jax[serve,peers]"`).
steps: what a tuning step of each method costs, against one of standard state tuning.
tokenizer: the World tokenizer against the authors' own; a .jsonl line by line, any other file as one text.
evaluation: few-shot MMLU by forking states, against re-reading (`pip install -e ".[lm-eval]"`).
kernels: the WKV op against the plain scan and other libraries, as `python -m pallas_kernels.bench`.
gpu: the check on a real GPU, under 8 minutes: kernels against float64, their times, decoding of a 1.5B model and MFU of
  tuning steps, in one JSON file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from experiments.config.bench import (
    BenchDecode,
    BenchEvaluation,
    BenchGpu,
    BenchKernels,
    BenchModel,
    BenchServe,
    BenchSteps,
    BenchTokenizer,
)
from experiments.config.cli import Help, chosen, command
from experiments.config.loading import parse
from experiments.config.outputs import check_writable
from experiments.config.overrides import UsageError, check_required, leaves

Verb: TypeAlias = (
    BenchModel | BenchDecode | BenchServe | BenchSteps | BenchTokenizer | BenchEvaluation | BenchKernels | BenchGpu
)
VERBS: dict[str, Verb] = {
    "model": BenchModel(),
    "decode": BenchDecode(),
    "serve": BenchServe(),
    "steps": BenchSteps(),
    "tokenizer": BenchTokenizer(),
    "evaluation": BenchEvaluation(),
    "kernels": BenchKernels(),
    "gpu": BenchGpu(),
}
HELP = Help("bench", __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command(argv, HELP, body, "interrupted", VERBS)


def body(args: list[str]) -> int:
    """Parses the settings of a benchmark and runs it."""
    verb, rest = chosen(args, "bench", VERBS)
    config = check(check_required(parse(VERBS[verb], rest), f"rwkv7 bench {verb} FILE..."))
    from experiments.commands.work import bench

    return bench.run(config)


def check(config: Verb) -> Verb:
    """The same settings, if something can be measured with them and its numbers can be written.

    Raises:
      UsageError: in one line.
    """
    for key, leaf in leaves(config):
        least = 0 if key == "shots" else 1
        if isinstance(leaf.value, int | float) and not isinstance(leaf.value, bool) and leaf.value < least:
            raise UsageError(f"{key}: {leaf.value} must be at least {least}")
        if key == "json" and isinstance(leaf.value, str):
            check_writable("json", Path(leaf.value).expanduser().absolute())
    for file in config.files if isinstance(config, BenchTokenizer) else ():
        if not Path(file).expanduser().is_file():
            raise UsageError(f"no file {file}")
    return config
