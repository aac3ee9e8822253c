"""The work of `rwkv7 observe`: training, carrying a state, measuring."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments import build
from experiments.config.observe import Carry, MeasureObserver, Observe
from experiments.config.outputs import check_writable
from experiments.config.overrides import UsageError
from experiments.config.schema import EvaluateConfig, resolved
from experiments.data.jobs import load_jobs
from experiments.reporting.json_text import json_text
from experiments.reporting.tables import text_table
from experiments.study import observer as study
from experiments.training import observing
from experiments.training.observing import Pairing
from experiments.training.preemption import Interrupt
from experiments.training.run_folder import held
from rwkv7_jax import State, load_state, save_state
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.wkv_state import WKVState
from state_tuning import observer
from state_tuning.observer import state_map


def train(config: Observe) -> int:
    """Trains to the end, and says what came of it.

    Raises:
      ValueError, OSError: in one line.
      Interrupted: all is saved.
    """
    started, folder = time.perf_counter(), config.folder
    use_compilation_cache(config.system.compilation_cache)
    large = build.load_model(config.model)
    texts = observing.load_texts(large, config.data, config.system.validate_records, config.seed, config.text)
    small = observing.small_model(config.small, large, config.model, config.seed)
    print(f"observed: {large.summary}\nobserver: {small.summary}", flush=True)
    with Interrupt() as interrupt, held(folder):
        key = jax.random.key(config.seed)
        start = observing.first_maps(small, large, texts.examples, config.maps, config.tune.every, key)
        pairing = Pairing(small, large, start)
        rows = observing.learn(config, pairing, texts, interrupt)
        while True:
            try:
                row = next(rows)
            except StopIteration as end:
                found = end.value
                break
            values: dict[str, object] = {**row}
            if "r2_mean" in values:
                r2 = f"R^2 {values['r2_mean']:.3f}, least {values['r2_least']:.3f}"
                where = f"step {row['step']}: loss {row['loss']:.4f}, held-out {r2}"
                print(f"{where}, {time.perf_counter() - started:.0f} s", flush=True)
        small, maps = observing.save(config, pairing, found, texts)
    judged = observing.one_batch(large, texts.held_out, config.data)
    report = observer.report(maps, small, large, judged, config.tune.every, config.tune.gain)
    print(text_table([study.HEADER, study.report_line("held-out text", report)]))
    print(f"observer: {folder / observing.OBSERVER_FILE}, its model: {folder / observing.WEIGHTS_FILE}")
    return 0


def carry(config: Carry) -> int:
    """Maps a state file of one model to a state file of the other.

    Raises:
      ValueError, OSError: in one line.
    """
    check_writable("output", Path(config.output).expanduser().absolute())
    path = observing.observer_path(Path(config.observer))
    stored = observer.load_observer(path)
    hashes = {"small": stored.metadata["small_hash"], "large": stored.metadata["large_hash"]}
    source, target = ("small", "large") if config.direction == "up" else ("large", "small")
    maps, back = stored.observer if config.direction == "up" else stored.observer[::-1]
    loaded = load_state(config.state, layout=config.layout)
    base = loaded.metadata.get("base_model_hash", "")
    if base and base != hashes[source]:
        other = " (it belongs to the other one: change --direction)" if base == hashes[target] else ""
        own = f"the observer's {source} model is {hashes[source][:16]}"
        raise UsageError(f"{config.state}: tuned on the model {base[:16]}, {own}{other}")
    wkv = loaded.state.wkv.s if isinstance(loaded.state.wkv, WKVState) else loaded.state.wkv
    wanted = (*back.u.shape[:2], back.u.shape[3], back.w.shape[3])
    if wkv.shape != wanted:
        text = f"matrices of shape {list(wkv.shape)}, the observer's {source} model has {list(wanted)}"
        raise UsageError(f"{config.state}: {text}")
    carried = state_map.apply(maps, wkv, difference=True)
    shifts = jnp.zeros((carried.shape[0], carried.shape[1] * carried.shape[2]), jnp.float32)
    metadata = {"base_model_hash": hashes[target], "method": "carried", "config": {"from": base, "observer": path.name}}
    task = {"task": loaded.metadata["task"]} if "task" in loaded.metadata else {}
    save_state(config.output, State(shifts, shifts, carried), metadata=metadata | task)
    print(f"{config.output}: a state of the {target} model; start from it with rwkv7 tune --tune.init")
    return 0


def measure(config: MeasureObserver) -> int:
    """Prints how well the large model is observed, and what it buys.

    Raises:
      ValueError, OSError: in one line.
    """
    use_compilation_cache(config.compilation_cache)
    if config.json:
        check_writable("json", Path(config.json).expanduser().absolute())
    pairing, every = observing.load_pairing(config.model, Path(config.observer), config.small)
    if not config.data.tasks and not config.data.train:
        raise UsageError("nothing to measure on: give --data.train my.jsonl, or --data.tasks pocket:mmlu,pocket:gsm8k")
    jobs = load_jobs(config.data, EvaluateConfig(max_records=max(config.records, config.warm.records)), config.seed)
    parts = [job.held_out[: config.records] for job in jobs]
    reports = study.reports(pairing, parts, config.data, every, config.gain)
    lines = [study.report_line(name, report) for name, report in reports.items()]
    print(text_table([study.HEADER, *lines]), flush=True)
    found: dict[str, object] = {"reports": {name: study.plain(report) for name, report in reports.items()}}
    if config.speculation.tokens:
        prompts = [pair.prompt for job in jobs for pair in job.held_out[: -(-config.speculation.prompts // len(jobs))]]
        chosen = prompts[: config.speculation.prompts]
        drafted = study.speculation(pairing, chosen, config.speculation, config.seed)
        found["speculation"] = drafted
        print("\n" + text_table([list(drafted[0]), *(list(line.values()) for line in drafted)]), flush=True)
    if config.warm.steps:
        given = (config.data, config.warm, config.seed)
        found["warm"] = warm = {job.name: study.warm_start(pairing, job, *given) for job in jobs}
        print("\n" + text_table([study.WARM_HEADER, *(study.warm_line(name, one) for name, one in warm.items())]))
    if config.json:
        text = json_text({"settings": resolved(config, without=("json", "compilation_cache")), **found}, indent=1)
        write_text(Path(config.json).expanduser(), text + "\n")
    return 0
