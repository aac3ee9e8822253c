"""The settings of `rwkv7 bench`: one frozen tree for each benchmark."""

import dataclasses
from typing import Literal

from experiments.config.overrides import option


@dataclasses.dataclass(frozen=True)
class BenchModel:
    """`rwkv7 bench model`."""

    shape: Literal["0.1B", "tiny"] = option("0.1B", "dimensions of the random model")
    rounds: int = option(3, "times that every contender is measured in turn; the best counts")
    without: tuple[str, ...] = option((), 'leave out, by commas: rwkv, keras-hub, "token-by-token scan", ...')
    json: str | None = option(None, "write all numbers to this file too")


@dataclasses.dataclass(frozen=True)
class BenchDecode:
    """`rwkv7 bench decode`."""

    shape: Literal["0.1B", "tiny"] = option("0.1B", "dimensions of the random model")
    rows: tuple[int, ...] = option((1, 8, 32, 128), "numbers of sequences, by commas")
    dtypes: tuple[str, ...] = option(
        ("float32", "float32 wide", "bfloat16", "int8"),
        "our weights, by commas: float32, float32 wide (bfloat16 does not hold them), bfloat16, int8, int4",
    )
    rounds: int = option(3, "times that every contender is measured in turn; the best counts")
    without: tuple[str, ...] = option((), "leave out, by commas: llama.cpp, keras-hub, rwkv")
    json: str | None = option(None, "write all numbers to this file too")


@dataclasses.dataclass(frozen=True)
class BenchServe:
    """`rwkv7 bench serve`."""

    shape: Literal["0.1B", "tiny"] = option("0.1B", "dimensions of the random model")
    streams: tuple[int, ...] = option((1, 8, 32), "clients at once, by commas; a server has as many slots")
    tokens: int = option(64, "tokens of each answer")
    rounds: int = option(3, "times that every contender is measured in turn; the best counts")
    waits: bool = option(True, "also time single requests (long prompt, swap of states) and the start")
    without: tuple[str, ...] = option((), "leave out: llama.cpp")
    json: str | None = option(None, "write all numbers to this file too")


@dataclasses.dataclass(frozen=True)
class BenchSteps:
    """`rwkv7 bench steps`."""

    shape: Literal["0.1B", "tiny"] = option("0.1B", "dimensions of the random model")
    batch_size: int = option(1, "sequences a step")
    length: int = option(512, "tokens of a sequence")
    rounds: int = option(5, "times that every method is measured in turn")
    only: tuple[str, ...] = option((), "these methods alone, with standard; may be repeated", repeat=True)
    json: str | None = option(None, "write all numbers to this file too")


@dataclasses.dataclass(frozen=True)
class BenchTokenizer:
    """`rwkv7 bench tokenizer`."""

    files: tuple[str, ...] = option((), "text files", positional=True, repeat=True, required=True)


@dataclasses.dataclass(frozen=True)
class BenchModelConfig:
    """Which model is evaluated."""

    checkpoint: str | None = option(None, "a .pth; none: random weights of --shape")


@dataclasses.dataclass(frozen=True)
class BenchDataConfig:
    """Where MMLU lies."""

    dir: str = option("", "folder of MMLU's files", required=True)


@dataclasses.dataclass(frozen=True)
class BenchEvaluation:
    """`rwkv7 bench evaluation`."""

    data: BenchDataConfig = BenchDataConfig()
    model: BenchModelConfig = BenchModelConfig()
    shape: Literal["0.1B"] = option("0.1B", "dimensions of the random model")
    subjects: tuple[str, ...] = option(("abstract_algebra", "astronomy", "global_facts"), "subjects, by commas")
    shots: int = option(5, "solved examples")
    limit: int = option(10, "questions of each subject")
    rounds: int = option(3, "timed rounds; the best counts")
    batch_size: int = option(32, "sequences at once")
    without: tuple[str, ...] = option((), "leave out those whose name has this word; may be repeated", repeat=True)
    json: str | None = option(None, "write all numbers to this file too")


@dataclasses.dataclass(frozen=True)
class BenchKernels:
    """`rwkv7 bench kernels`."""

    dtype: Literal["float32", "bfloat16"] = option("float32", "dtype of the inputs")
    repeats: int = option(7, "runs of each, of which the best counts")
    shape: tuple[str, ...] = option((), "B,T,H,N; may be repeated; none: the standard shapes", repeat=True)
    json: str | None = option(None, "write all numbers to this file too")


@dataclasses.dataclass(frozen=True)
class BenchGpu:
    """`rwkv7 bench gpu`."""

    seconds: float = option(450.0, "start nothing new after this")
    shape: tuple[str, ...] = option((), "B,T,H,N; may be repeated; none: the standard shapes", repeat=True)
    tiny: bool = option(False, "a rehearsal on any machine: tiny shapes, no GPU needed; times say nothing")
    json: str = option("gpu_check.json", "file to write")
