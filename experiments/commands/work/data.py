"""What is in a file of records, and how long tuning on it takes on this machine."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterable
from functools import singledispatch
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import build, session
from experiments.config.data_info import DataInfo, DataShow, TokensConfig
from experiments.config.methods import StandardMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, ModelConfig, TuneConfig
from experiments.data import info, info_report, jsonl
from experiments.data.jsonl import Pair
from experiments.data.text_file import read_text
from experiments.plan.step import dimensions
from experiments.reporting import findings
from experiments.reporting.json_text import json_text
from experiments.training.pace import duration
from rwkv7_jax import checkpoint, flops
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import find_tokenizer
from rwkv7_jax.tokenizer import Tokenizer, load_tokenizer
from rwkv7_jax.tokenizer.bytes import ByteTokenizer
from state_tuning.core.objective import Batch

T = TypeVar("T")
ROWS, LENGTH = 4, 128
"""Of the step that is timed."""
BEGIN, END = "⟦", "⟧"
"""Around what is learnt."""


@singledispatch
def run(config: object) -> int:
    """Does what the settings of a verb say; returns the exit status.

    Raises:
      ValueError, OSError: in one line.
    """
    raise TypeError(f"no verb of rwkv7 data has settings of the type {type(config).__name__}")


@run.register
def _info(config: DataInfo) -> int:
    name, tokenizer = find(config.model)
    found = info.examine(config.file, config.data, tokenizer, watched)
    told = info_report.findings(found)
    lines = info_report.describe(found, name)
    print("\n".join([*lines, *findings.lines(told)]), flush=True)
    seconds, how = (None, "") if not found.cut else _seconds(config, found.cut.padded)
    if seconds is not None:
        print(f"time: {how}")
    print(findings.verdict(told))
    if config.json:
        body = {
            **dataclasses.asdict(found),
            "tokenizer": name,
            "seconds": seconds,
            "time": how,
            "findings": findings.as_json(told),
            "result": findings.verdict(told),
        }
        write_text(Path(config.json).expanduser(), json_text(body, indent=1) + "\n")
    return int(any(one.fault for one in told))


@run.register
def _show(config: DataShow) -> int:
    path = jsonl.user_path(config.file)
    for line in itertools.islice(jsonl.scan(path, read_text(path)), config.n):
        if isinstance(line, UsageError):
            raise line
        pair = jsonl.to_pair(line, config.data.template)
        print(f"--- {line.where}\n{marked(pair, config.data.learn)}")
    print(f"--- learnt is what stands between {BEGIN} and {END}")
    return 0


def marked(pair: Pair, learn: str) -> str:
    """Returns the text of a record, what is learnt between brackets, the end token as <end>.

    Example:
      >>> print(marked(Pair("2+2=", "4"), "answers"))
      2+2=⟦4<end>⟧
    """
    parts = jsonl.exchanges_of(pair) if learn == "answers" else []
    if not parts:
        return f"{pair.prompt}{BEGIN}{pair.completion}<end>{END}"
    last = len(parts) - 1
    return "".join(
        f"{part.context}{BEGIN}{part.answer}{'<end>' if number == last else ''}{END}" if part.answer else part.context
        for number, part in enumerate(parts)
    )


def find(config: TokensConfig) -> tuple[str, Tokenizer]:
    """Returns the name of a tokenizer and the tokenizer: that of a checkpoint, or of the released models."""
    if config.checkpoint is None:
        name = "world" if config.tokenizer == "auto" else config.tokenizer
        return name, ByteTokenizer() if name == "byte" else load_tokenizer(name)
    path = build.checkpoint_path(config.checkpoint)
    name = find_tokenizer(config.tokenizer, path)
    size = checkpoint.load(path, lazy=True).config.vocab_size
    return f"{name} of {config.checkpoint}", load_tokenizer(name, size, path)


def watched(items: Iterable[T], count: int) -> Iterable[T]:
    """The same items with a progress bar, if they take more than two seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(items, "records", count, unit="rec", delay=2, mininterval=interval, dynamic_ncols=True, leave=False)


def _seconds(config: DataInfo, padded: float) -> tuple[float | None, str]:
    """Seconds that the steps take, and where the number comes from."""
    tokens = config.tune.steps * config.data.batch_size * padded
    steps = f"{config.tune.steps} steps of {config.data.batch_size} examples of {padded:.0f} positions with padding"
    device = jax.devices()[0].platform
    if config.model.checkpoint is None:
        rate, model = _products(), flops.tuning(dimensions("0.1B", "float32", "none", None))
        seconds = tokens * model / rate
        least = f"at least {duration(seconds)} for a 0.1B model on this machine ({device}), {steps}"
        return seconds, f"{least}; by its FLOPs and products of matrices measured at {rate / 1e9:.3g} GFLOP/s"
    if not config.measure:
        return None, ""
    each, compiled = time_step(config.model.checkpoint, config.model.tokenizer)
    seconds = tokens * each / (ROWS * LENGTH)
    told = f"about {duration(seconds)} on this machine ({device}), {steps}, and compilation ({duration(compiled)})"
    return seconds, f"{told}; measured: one step of {ROWS} x {LENGTH} tokens takes {each:.3g} s"


def time_step(checkpoint_name: str, tokenizer: str) -> tuple[float, float]:
    """Returns the seconds of a short step of standard state tuning, and of its compilation."""
    use_compilation_cache()
    lm = build.load_model(ModelConfig(checkpoint=checkpoint_name, tokenizer=tokenizer))
    tuner = session.make_tuner(lm, [], DataConfig(), TuneConfig(), StandardMethod(), 0)
    tokens = np.random.default_rng(0).integers(0, lm.config.vocab_size, (ROWS, LENGTH + 1), np.int32)
    ones = np.ones((ROWS, LENGTH), bool)
    batch = jax.device_put(
        Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], loss_mask=ones.astype(np.float32), valid=ones)
    )
    state, spent = tuner.fresh(), list[float]()
    for _ in range(3):
        begin = time.perf_counter()
        state, metrics = tuner.step(lm.params, state, batch)
        jax.block_until_ready(metrics)
        spent.append(time.perf_counter() - begin)
    return min(spent[1:]), spent[0]


def _products(size: int = 768, seconds: float = 0.3) -> float:
    """FLOP/s of products of float32 matrices as large as those of a 0.1B model."""
    x, w = jnp.ones((512, size), jnp.float32), jnp.ones((size, 4 * size), jnp.float32)
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(x, w))
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        jax.block_until_ready(product(x, w))
        count += 1
    return count * 2 * x.size * w.shape[1] / spent
