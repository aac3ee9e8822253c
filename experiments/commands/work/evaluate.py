"""Benchmarks from several initial states side by side: tables, comparisons, and all numbers as JSON."""

import hashlib
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.build import load_model
from experiments.choosing import phrasing
from experiments.choosing.phrasing import Tried
from experiments.commands.work.settings import NONE, by_task, prefix_tokens, shots
from experiments.config.commands import Evaluate
from experiments.config.schema import POCKET, digest, resolved
from experiments.evaluation import scores, suite
from experiments.evaluation.engine import Engine
from experiments.evaluation.suite import Bench
from experiments.reporting.json_text import json_text
from experiments.reporting.result_store import Sample, Store
from experiments.reporting.tables import text_table
from experiments.tasks import PROTOCOLS
from experiments.training import distributed
from experiments.training.metrics_log import progress_bar
from experiments.training.preemption import Interrupt, Interrupted
from rwkv7_jax import State, checkpoint, zero_state
from rwkv7_jax.checkpoint.files import atomic
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.inference.scoring import Tick
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.locks import lock

BOOKKEEPING = ("output", "overwrite", "json", "system", "lm_eval", "mesh")
"""Settings that are not part of the results."""


def run(config: Evaluate) -> int:
    """Loads, evaluates and prints, on the mesh that is asked for; returns 0, or 130 after an interruption.

    Raises:
      ValueError, OSError: in one line, whatever is wrong with settings and files.
    """
    with distributed.asked_for(config.mesh):
        return on_devices(config)


def on_devices(config: Evaluate) -> int:
    """Does what `run` does, on the mesh that is set, if any."""
    names = list(dict.fromkeys(config.data.tasks))
    prefix = prefix_tokens(config.prefix_token)
    examples, splits = shots(config.shots, names), by_task(config.split)
    options = suite.Options(config.data.dir, examples, splits, config.limit, prefix, config.data.chain)
    choose = bool(phrasing.wants_choice(config.data.chain, names))
    benches = [] if choose else suite.load(names, options)
    use_compilation_cache(config.system.compilation_cache)
    lm = load_model(config.model)
    print(f"{config.model.checkpoint}: {lm.summary}", flush=True)
    states, hashes = load_states(config.states, config.state_layout, lm)
    engine = Engine(lm, states, config.batch_size, config.max_new_tokens)
    if choose:
        chain = phrasing.choose(config.data.chain, names, partial(tried, engine, options))
        benches = suite.load(names, options._replace(chain=chain))
    dtype = lm.model.config.dtype
    settings = [lm.identity, hashes, lm.tokenizer_name, dtype, config.batch_size, config.max_new_tokens]
    data = [[bench.name, bench.protocol, bench.prefix, bench.parts] for bench in benches]
    identity = digest([settings, data])
    path = Path(config.output).expanduser() / f"{identity[:16]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Interrupt() as interrupt, lock(path):
            found = evaluate(engine, benches, Store(path, identity, config.overwrite), interrupt)
    except Interrupted:
        print("stopped; run the same command to resume", file=sys.stderr)
        return 130
    files = dict.fromkeys(config.states or (NONE,))
    body: dict[str, object] = {
        "checkpoint": config.model.checkpoint, "base_model_sha256": lm.weights_hash, "dtype": dtype,
        "identity": identity, "config": resolved(config, without=BOOKKEEPING),
        "states": {name: {"file": file, "sha256": hashes[name]} for name, file in zip(states, files, strict=True)},
        "results": show(benches, found, list(states)),
    }  # fmt: skip
    if config.json:
        write(Path(config.json).expanduser(), body, benches, found)
    return 0


def tried(engine: Engine, options: suite.Options, task: str, name: str) -> Tried:
    """How often the last of the states is right with a phrasing, on records of a split that is not scored."""
    exact = PROTOCOLS[task.removeprefix(POCKET)]
    split = "validation" if task.startswith(POCKET) or exact.split != "validation" else "train"
    limited = options._replace(splits={task: split}, limit=phrasing.RECORDS, chain=name)
    (bench,) = suite.load([task], limited)
    last, items = engine.names[-1], bench.items[: phrasing.RECORDS]
    mine = [one["scores"] for one in engine.samples(bench, items) if one["state"] == last]
    strict, flexible = (sum(one[metric] for one in mine) / len(mine) for metric in bench.task.metrics[:2])
    return Tried(name, strict, flexible, len(mine))


def load_states(files: Sequence[str], layout: str | None, lm: LanguageModel) -> tuple[dict[str, State], dict[str, str]]:
    """The initial states by short name, and the SHA-256 of each file."""
    states: dict[str, State] = {}
    hashes: dict[str, str] = {}
    chosen = list(dict.fromkeys(files or (NONE,)))
    for name, file in zip(short_names(chosen), chosen, strict=True):
        if file == NONE:
            states[name], hashes[name] = zero_state(lm.model.config, None), ""
            continue
        hashes[name] = hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()
        states[name] = checkpoint.load_state(
            Path(file).expanduser(), layout=layout, config=lm.model.config, base_model_hash=lm.weights_hash
        ).state
    return states, hashes


def short_names(files: Sequence[str]) -> list[str]:
    """As many last parts of each path, without its ending, as tell them apart."""
    for size in range(1, max(len(Path(file).parts) for file in files) + 1):
        names = ["/".join(Path(file).with_suffix("").parts[-size:]) for file in files]
        if len(set(names)) == len(names):
            return names
    return list(files)


def evaluate(engine: Engine, benches: Sequence[Bench], store: Store, interrupt: Interrupt) -> list[list[Sample]]:
    """The samples of each benchmark, with a progress bar."""
    found = []
    for bench in benches:
        print(f"{bench.name}: {bench.protocol}", flush=True)
        begun, cost = time.perf_counter(), engine.scorer.cost
        before = cost.tokens, cost.places
        with progress_bar(len(bench.items) * len(engine.names), bench.name, "records") as bar:

            def tick(count: int, update: Tick = bar.update) -> None:
                update(count)
                interrupt.check()

            found.append(engine.run(bench, store, tick))
        tokens, places = cost.tokens - before[0], cost.places - before[1]
        print(
            f"  {tokens} prompt tokens fed ({places} places in batches) in {time.perf_counter() - begun:.1f} s",
            flush=True,
        )
    return found


def show(benches: Sequence[Bench], found: Sequence[list[Sample]], states: Sequence[str]) -> dict[str, object]:
    """Prints every table; returns all numbers."""
    numbers: dict[str, object] = {}
    for bench, samples in zip(benches, found, strict=True):
        print(f"\n{text_table(scores.table_rows(bench, samples, states))}\n{bench.protocol}; ± standard error")
        print("".join(f"{line}\n" for line in scores.comparison_lines(bench, samples, states)), end="")
        numbers[bench.name] = scores.summary(bench, samples, states)
    return numbers


def write(path: Path, body: dict[str, object], benches: Sequence[Bench], found: Sequence[list[Sample]]) -> None:
    """Everything as JSON, each sample with its record."""
    records = {bench.name: {part.name: part.records for part in bench.parts} for bench in benches}
    samples = {
        bench.name: [{**one, "record": records[bench.name][one["part"]][one["index"]]} for one in mine]
        for bench, mine in zip(benches, found, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write((json_text(body | {"samples": samples}, indent=1) + "\n").encode())
    print(f"\nwritten: {path}")
