"""`python -m experiments.commands.evaluate --checkpoint model.pth --tasks mmlu,gsm8k --data-dir data`

Benchmarks of a frozen RWKV-7 from the zero state or from tuned ones, prompts and scores as in lm-evaluation-harness
0.4.13. The same command goes on where it was stopped. Several --state are run side by side and compared with the first.
Exit status: 0, 2 wrong usage or files (one line), 130 interrupted.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.cli import exit_status
from experiments.config.overrides import UsageError

if TYPE_CHECKING:
    from experiments.evaluation.engine import Engine
    from experiments.evaluation.suite import Bench
    from experiments.reporting.result_store import Sample, Store
    from experiments.training.preemption import Interrupt
    from rwkv7_jax import State
    from rwkv7_jax.language_model import LanguageModel

NO_STATE = "none"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.commands.evaluate",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog="tasks: mmlu, mmlu_SUBJECT, mmlu_rwkv (RWKV's own zero-shot protocol), gsm8k, winogrande, arc; "
        "pocket:mmlu, pocket:gsm8k, pocket:winogrande, pocket:arc are embedded",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--checkpoint", required=True, help="pocket/student (embedded), or a path (.pth, .safetensors, .bin)"
    )
    p.add_argument("--tasks", required=True, help="names, joined by commas")
    p.add_argument("--data-dir", help="folder of the benchmarks' files, found by their public names; or of TFDS")
    p.add_argument(
        "--state", action="append", default=[], metavar="FILE",
        help=f'tuned state, "{NO_STATE}" for the zero state; may be repeated [{NO_STATE}]',
    )  # fmt: skip
    p.add_argument("--state-layout", help="axis order of foreign state files")
    p.add_argument("--shots", action="append", default=[], metavar="TASK=N", help="examples [5; arc 25; pocket 0]")
    p.add_argument("--split", action="append", default=[], metavar="TASK=SPLIT", help="scored split [the protocol's]")
    p.add_argument("--limit", type=int, help="only the first records of each task, and of each subject")
    p.add_argument("--prefix-token", help='token ids before each prompt, by commas, or "none" [the protocol\'s]')
    p.add_argument("--batch-size", type=int, default=32, help="rows at once [32]")
    p.add_argument("--max-new-tokens", type=int, default=256, help="longest answer in tokens [256]")
    p.add_argument("--tokenizer", default="auto", help='"auto", "world", "byte" or a path of a tokenizer.json')
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="compute type")
    p.add_argument("--wkv", help="WKV implementation [by device]")
    p.add_argument("--json", type=Path, help="write settings, numbers and samples to this file")
    p.add_argument("--folder", type=Path, default=Path("runs/evaluate"), help="where unfinished work is kept")
    p.add_argument("--overwrite", action="store_true", help="start anew even if some of it is done")
    p.add_argument("--no-cache", action="store_true", help="do not keep compiled programs")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = parser().parse_args(argv)
    return exit_status(lambda: run(args), "interrupted; run the same command to resume")


def run(args: argparse.Namespace) -> int:
    """Load, evaluate, print."""
    from experiments.build import build
    from experiments.config.schema import ModelConfig, digest
    from experiments.evaluation import suite
    from experiments.evaluation.engine import Engine
    from experiments.reporting.result_store import Store
    from experiments.training.preemption import Interrupt, Interrupted
    from rwkv7_jax.compile_cache import use_compilation_cache

    names = dict.fromkeys(name.strip() for name in args.tasks.split(",") if name.strip())
    benches = suite.load(list(names), options(args))
    use_compilation_cache(not args.no_cache)
    lm = build(ModelConfig(args.checkpoint, args.tokenizer, args.dtype, args.wkv))
    print(f"{args.checkpoint}: {lm.summary}", flush=True)
    states, hashes = load_states(args, lm)
    engine = Engine(lm, states, args.batch_size, args.max_new_tokens)
    dtype = lm.model.config.dtype
    settings = [lm.weights_hash, hashes, lm.tokenizer_name, dtype, args.batch_size, args.max_new_tokens]
    data = [[bench.name, bench.protocol, bench.prefix, bench.parts] for bench in benches]
    identity = digest([settings, data])
    store = Store(args.folder / f"{identity[:16]}.jsonl", identity, args.overwrite)
    try:
        with Interrupt() as interrupt:
            found = evaluate(engine, benches, store, interrupt)
    except Interrupted:
        print("stopped; run the same command to resume", file=sys.stderr)
        return 130
    files = dict.fromkeys(args.state or [NO_STATE])
    body = {
        "checkpoint": args.checkpoint, "base_model_sha256": lm.weights_hash, "dtype": dtype, "identity": identity,
        "states": {name: {"file": file, "sha256": hashes[name]} for name, file in zip(states, files, strict=True)},
        "results": show(benches, found, list(states)),
    }  # fmt: skip
    if args.json:
        write(args.json, body, benches, found)
    return 0


def options(args: argparse.Namespace) -> Any:
    """The suite's options of a command line.

    Raises:
      UsageError: a setting is not TASK=VALUE, or no number.
    """
    from experiments.evaluation.suite import Options

    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit: {args.limit} must be at least 1")
    shots = {name: _number("--shots", value) for name, value in map(_pair, args.shots)}
    words = [] if args.prefix_token in (None, NO_STATE) else args.prefix_token.split(",")
    prefix = None if args.prefix_token is None else tuple(_number("--prefix-token", word) for word in words)
    return Options(args.data_dir, shots, dict(map(_pair, args.split)), args.limit, prefix)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"{text!r} is not understood: write TASK=VALUE, as in mmlu=5")
    return name, value


def _number(option: str, text: str) -> int:
    if not text.strip().isdigit():
        raise UsageError(f"{option}: {text!r} is not a whole number")
    return int(text)


def load_states(args: argparse.Namespace, lm: "LanguageModel") -> tuple[dict[str, "State"], dict[str, str]]:
    """The initial states by short name, and the SHA-256 of each file."""
    import hashlib

    from rwkv7_jax import checkpoint, zero_state

    states: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    files = list(dict.fromkeys(args.state or [NO_STATE]))
    for name, file in zip(short_names(files), files, strict=True):
        if file == NO_STATE:
            states[name], hashes[name] = zero_state(lm.model.config, None), ""
            continue
        hashes[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        states[name] = checkpoint.load_state(
            file, layout=args.state_layout, config=lm.model.config, base_model_hash=lm.weights_hash
        ).state
    return states, hashes


def short_names(files: Sequence[str]) -> list[str]:
    """As many last parts of each path, without its ending, as tell them apart."""
    for size in range(1, max(len(Path(file).parts) for file in files) + 1):
        names = ["/".join(Path(file).with_suffix("").parts[-size:]) for file in files]
        if len(set(names)) == len(names):
            return names
    return list(files)


def evaluate(
    engine: "Engine", benches: "Sequence[Bench]", store: "Store", interrupt: "Interrupt"
) -> "list[list[Sample]]":
    """The samples of each benchmark, with a progress bar."""
    from experiments.training.metrics_log import progress_bar

    found = []
    for bench in benches:
        print(f"{bench.name}: {bench.protocol}", flush=True)
        begun, cost = time.perf_counter(), engine.forker.cost
        before = cost.tokens, cost.places
        with progress_bar(len(bench.items) * len(engine.names), bench.name, "records") as bar:

            def tick(count: int, bar: Any = bar) -> None:
                bar.update(count)
                interrupt.check()

            found.append(engine.run(bench, store, tick))
        tokens, places = cost.tokens - before[0], cost.places - before[1]
        print(
            f"  {tokens} prompt tokens fed ({places} places in batches) in {time.perf_counter() - begun:.1f} s",
            flush=True,
        )
    return found


def show(benches: "Sequence[Bench]", found: "Sequence[list[Sample]]", states: Sequence[str]) -> dict[str, Any]:
    """Print every table; all numbers."""
    from experiments.evaluation import scores
    from experiments.reporting.tables import text_table

    numbers = {}
    for bench, samples in zip(benches, found, strict=True):
        print(f"\n{text_table(scores.table_rows(bench, samples, states))}\n{bench.protocol}; ± standard error")
        print("".join(f"{line}\n" for line in scores.comparison_lines(bench, samples, states)), end="")
        numbers[bench.name] = scores.summary(bench, samples, states)
    return numbers


def write(path: Path, body: dict[str, Any], benches: "Sequence[Bench]", found: "Sequence[list[Sample]]") -> None:
    """Everything as JSON, each sample with its record."""
    records = {bench.name: {part.name: part.records for part in bench.parts} for bench in benches}
    samples = {
        bench.name: [{**row, "record": records[bench.name][row["part"]][row["index"]]} for row in rows]
        for bench, rows in zip(benches, found, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(body | {"samples": samples}, indent=1) + "\n")
    part.replace(path)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    sys.exit(main())
