"""The settings of the commands that are not runs: one frozen tree each."""

import dataclasses
from typing import Literal

from experiments.config.observe import NO_DRAFT, DraftConfig
from experiments.config.overrides import option
from experiments.config.schema import MeshConfig, ModelConfig

MODEL, FLOAT32_MODEL = ModelConfig(), ModelConfig(dtype="float32")
ONE_DEVICE = MeshConfig(data=1)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What a command leaves behind for the next."""

    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


@dataclasses.dataclass(frozen=True)
class Generate:
    """`rwkv7 generate`."""

    model: ModelConfig = FLOAT32_MODEL
    prompt: str = option(
        "", 'text to continue, with escapes; "-" reads standard input as it is; empty: a fresh text', escapes=True
    )
    state: str | None = option(None, "state file to start from; none: the zero state")
    state_layout: str | None = option(None, "axis order of a state file that does not say it")
    temperature: float = option(1.0, "0 takes the most likely token always")
    top_p: float = option(0.85, "keep the likeliest tokens up to this probability")
    top_k: int = option(0, "keep this many of the likeliest tokens; 0: all")
    presence_penalty: float = option(0.0, "against tokens that have occurred")
    frequency_penalty: float = option(0.0, "against tokens, for each occurrence")
    penalty_decay: float = option(0.996, "how occurrences fade, per token")
    seed: int = option(0, "same seed, same text")
    max_new_tokens: int = option(200, "stop after this many tokens")
    stop: tuple[str, ...] = option(
        (), "stop before this text, with escapes; may be repeated", repeat=True, escapes=True
    )
    draft: DraftConfig = NO_DRAFT
    quiet: bool = option(False, "no report about the checkpoint on standard error")
    system: CacheConfig = CacheConfig()


@dataclasses.dataclass(frozen=True)
class BenchmarksConfig:
    """Which benchmarks are scored."""

    tasks: tuple[str, ...] = option((), "names, by commas", required=True)
    dir: str | None = option(None, "folder of the benchmarks' files, found by their public names; or of TFDS")
    chain: str | None = option(
        None,
        "answers after a chain of thought: a phrasing, mmlu=took,gsm8k=gold, a template, or auto; none: the protocol",
        escapes=True,
    )


@dataclasses.dataclass(frozen=True)
class LmEvalConfig:
    """For tasks of lm-evaluation-harness."""

    include_path: str | None = option(None, "folder of your own task files (YAML)")
    apply_chat_template: bool = option(False, "User: ... Assistant: turns")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """`rwkv7 evaluate`."""

    model: ModelConfig = MODEL
    data: BenchmarksConfig = BenchmarksConfig()
    states: tuple[str, ...] = option(("none",), 'state files, by commas; "none" is the zero state')
    state_layout: str | None = option(None, "axis order of state files that do not say it")
    shots: tuple[str, ...] = option((), "examples: N, or TASK=N by commas; else 5, of arc 25, of pocket: 0")
    split: tuple[str, ...] = option((), "scored split: TASK=SPLIT, by commas; else the protocol's")
    limit: int | None = option(None, "only the first records of each task, and of each subject")
    prefix_token: str = option("auto", "token ids before each prompt, by commas, or none; auto: the protocol's")
    batch_size: int = option(32, "sequences at once")
    max_new_tokens: int = option(256, "longest answer in tokens")
    json: str | None = option(None, "write settings, numbers and samples to this file")
    output: str = option("runs/evaluate", "folder where unfinished work is kept")
    overwrite: bool = option(False, "start anew even if some of it is done")
    lm_eval: LmEvalConfig = LmEvalConfig()
    mesh: MeshConfig = ONE_DEVICE
    system: CacheConfig = CacheConfig()


@dataclasses.dataclass(frozen=True)
class Convert:
    """`rwkv7 convert`."""

    source: str = option("", "any checkpoint that inspect reads", positional=True, required=True, download=True)
    target: str = option(
        "", "file to write; .safetensors, .pth or .bin (rwkv.cpp); or a folder", positional=True, required=True
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "cast the weights; none: keep them as they are"
    )
    quantize: Literal["int8", "int4"] | None = option(
        None, "integers for the matrices of a .safetensors file, which loads by itself; none: keep them as they are"
    )


@dataclasses.dataclass(frozen=True)
class Inspect:
    """`rwkv7 inspect`."""

    file: str = option(
        "", ".pth, .safetensors, Hugging Face folder or rwkv.cpp .bin", positional=True, required=True, download=True
    )


@dataclasses.dataclass(frozen=True)
class StateInfo:
    """`rwkv7 state info`."""

    file: str = option("", "state file", positional=True, required=True)
    layout: str | None = option(None, "axis order of a file that does not say it")


@dataclasses.dataclass(frozen=True)
class StateDiff:
    """`rwkv7 state diff`."""

    first: str = option("", "state file", positional=True, required=True)
    second: str = option("", "state file that is subtracted", positional=True, required=True)
    output: str | None = option(None, "write the difference here; none: print its norms")
    layout: str | None = option(None, "axis order of files that do not say it")


@dataclasses.dataclass(frozen=True)
class StateMix:
    """`rwkv7 state mix`."""

    first: str = option("", "state file", positional=True, required=True)
    second: str = option("", "state file", positional=True, required=True)
    weight: float = option(0.5, "w in (1 - w) * FIRST + w * SECOND")
    output: str = option("", "file to write", required=True)
    layout: str | None = option(None, "axis order of files that do not say it")


@dataclasses.dataclass(frozen=True)
class StateScale:
    """`rwkv7 state scale`."""

    file: str = option("", "state file", positional=True, required=True)
    by: float | None = option(None, "factor", required=True)
    output: str = option("", "file to write", required=True)
    layout: str | None = option(None, "axis order of a file that does not say it")


@dataclasses.dataclass(frozen=True)
class StateTruncate:
    """`rwkv7 state truncate`."""

    file: str = option("", "state file", positional=True, required=True)
    rank: int | None = option(None, "rank of every head's matrix", required=True)
    output: str = option("", "file to write", required=True)
    layout: str | None = option(None, "axis order of a file that does not say it")


@dataclasses.dataclass(frozen=True)
class StateConvert:
    """`rwkv7 state convert`."""

    file: str = option("", "a state file of any tool, or a checkpoint of a run", positional=True, required=True)
    to: str | None = option(None, "axis order and dtype of the target; none: our own format (.safetensors)")
    output: str = option("", "file to write; .pth, .safetensors or .st", positional=True, required=True)
    layout: str | None = option(None, "axis order of a file that does not say it")
    drop_shifts: bool = option(False, "leave out token-shift states the target cannot hold")
    rank: int | None = option(None, "keep every matrix at this rank, as factors; our own format alone")
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = option(
        "float32", "of the matrices in the file; our own format alone, another one has its own"
    )


@dataclasses.dataclass(frozen=True)
class StateCard:
    """`rwkv7 state card`."""

    file: str = option("", "state file", positional=True, required=True)
    output: str = option("README.md", "Markdown file to write")
    layout: str | None = option(None, "axis order of a file that does not say it")
    model: ModelConfig = FLOAT32_MODEL
    held_out: tuple[str, ...] = option((), "texts or .jsonl, by commas, or pocket: loss without the state and with it")


@dataclasses.dataclass(frozen=True)
class SweepTuneConfig:
    """What is tried."""

    learning_rate: tuple[float, ...] = option((0.03, 0.1, 0.3, 1.0, 3.0), "learning rates, by commas")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `rwkv7 sweep` adds to a run."""

    tune: SweepTuneConfig = SweepTuneConfig()
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds, by commas")
    extend: bool = option(True, "go on to 1e-4 or 10 while the best rate is the least or the largest")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `rwkv7 plan` adds to a run."""

    topology: str = option(
        "", "v4, v5e, v5p, v6e with the number of its rented name (v5e-256), or h200x8", required=True
    )
    size: str | None = option(
        None, "0.1B, 0.4B, 1.5B, 2.9B, 7.2B: a released model's dimensions; none: the model's own"
    )
    json: str | None = option(None, "write the figures to this file too")


@dataclasses.dataclass(frozen=True)
class StudyRates:
    """What `rwkv7 study rates` adds to a study."""

    only: tuple[str, ...] = option((), "methods of the table, or test_time; none: all methods")


@dataclasses.dataclass(frozen=True)
class StudyPublish:
    """What `rwkv7 study publish` adds to a study."""

    page: str = option("docs/results.md", "page whose markers are filled")


@dataclasses.dataclass(frozen=True)
class PocketText:
    """`rwkv7 pocket text`."""

    n: int = option(5, "documents, one a line")
    seed: int = option(0, "seed of the stream")
    output: str | None = option(None, "file to write; none: print")


@dataclasses.dataclass(frozen=True)
class PocketBenchmark:
    """`rwkv7 pocket benchmark`."""

    task: str = option("", "pocket:mmlu, pocket:gsm8k, pocket:winogrande or pocket:arc", positional=True, required=True)
    split: Literal["train", "validation", "test"] = option("test", "split of the benchmark")
    seed: int = option(0, "seed of the items")
    output: str | None = option(None, "file to write; none: print")


@dataclasses.dataclass(frozen=True)
class PocketTokenizer:
    """`rwkv7 pocket tokenizer`."""

    size: int | None = option(None, "number of tokens; none: that of the embedded models, 1024")
    output: str | None = option(None, "file to write; none: print")
