"""Benchmarks run by their settings; each prints a table and writes its numbers."""

from collections.abc import Callable, Collection, Sequence
from functools import partial, singledispatch
from pathlib import Path

from experiments.bench import accelerator, decoding, evaluation, model, serving, steps, tokenizer
from experiments.build import checkpoint_path
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
from experiments.config.overrides import UsageError, suggest
from experiments.reporting.json_text import json_text
from pallas_kernels.bench import __main__ as kernels
from pallas_kernels.bench import gpu
from rwkv7_jax.checkpoint.files import write_text

MOST_STREAMS = 512


@singledispatch
def run(config: object) -> int:
    """Runs the benchmark of these settings; returns the exit status.

    Raises:
      ValueError, OSError: in one line.
    """
    raise TypeError(f"no benchmark has settings of the type {type(config).__name__}")


@run.register
def _model(config: BenchModel) -> int:
    _check_names("without", config.without, model.OTHERS)
    found = model.compare(config.shape, config.rounds, config.without)
    print(model.show(found))
    return _write(config.json, found.as_json())


@run.register
def _decode(config: BenchDecode) -> int:
    _check_names("without", config.without, decoding.PEERS)
    _check_names("dtypes", config.dtypes, decoding.DTYPES)
    if wrong := [count for count in config.rows if count < 1]:
        raise UsageError(f"--rows: {wrong[0]} sequences; give at least 1")
    found = decoding.compare(config.shape, config.rows, config.dtypes, config.rounds, config.without)
    print(decoding.show(found))
    return _write(config.json, found.as_json())


@run.register
def _serve(config: BenchServe) -> int:
    _check_names("without", config.without, [serving.PEER])
    if wrong := [count for count in config.streams if not 1 <= count <= MOST_STREAMS]:
        raise UsageError(f"--streams: {wrong[0]} clients; give 1 to {MOST_STREAMS}")
    found = serving.compare(
        config.shape, config.streams, config.tokens, config.rounds, config.without, waits=config.waits
    )
    print(serving.show(found))
    return _write(config.json, found.as_json())


@run.register
def _steps(config: BenchSteps) -> int:
    _check_names("only", config.only, steps.METHODS)
    names = steps.chosen_methods(config.only)
    seconds = steps.measure(config.shape, config.batch_size, config.length, config.rounds, names)
    print(steps.table(seconds))
    settings = {"shape": config.shape, "rows": config.batch_size, "length": config.length, "rounds": config.rounds}
    return _write(config.json, settings | {"seconds": seconds})


@run.register
def _tokenizer(config: BenchTokenizer) -> int:
    for line in tokenizer.table([Path(file).expanduser() for file in config.files]):
        print(line, flush=True)
    return 0


@run.register
def _evaluation(config: BenchEvaluation) -> int:
    questions = evaluation.Questions(Path(config.data.dir).expanduser(), config.subjects, config.shots, config.limit)
    checkpoint = checkpoint_path(config.model.checkpoint) if config.model.checkpoint else None
    results = evaluation.compare(
        questions,
        checkpoint,
        shape=config.shape,
        batch_size=config.batch_size,
        rounds=config.rounds,
        without=config.without,
    )
    print(evaluation.show(questions, results))
    return _write(config.json, [result._asdict() for result in results])


@run.register
def _kernels(config: BenchKernels) -> int:
    words = ["--dtype", config.dtype, "--repeats", str(config.repeats), *_kernel_words(config.shape, config.json)]
    return _status(kernels.main, words)


@run.register
def _gpu(config: BenchGpu) -> int:
    words = ["--seconds", str(config.seconds), *_kernel_words(config.shape, config.json)]
    main = partial(gpu.main, models=accelerator.sections)
    return _status(main, [*words, "--tiny"] if config.tiny else words)


def _status(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """The status of a benchmark of `pallas_kernels`, whose parser says what is wrong and ends the process."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def _kernel_words(shapes: tuple[str, ...], file: str | None) -> list[str]:
    """Arguments that both benchmarks of `pallas_kernels` take."""
    words = [word for shape in shapes for word in ("--shape", shape)]
    return words + (["--json", file] if file else [])


def _check_names(key: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"{key}: no {name!r}{suggest(name, list(known))} (there are: {', '.join(known)})")


def _write(file: str | None, numbers: object) -> int:
    if file:
        write_text(Path(file).expanduser(), json_text(numbers, indent=1) + "\n")
    return 0
