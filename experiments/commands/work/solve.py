"""A model's own verified solutions as a file of records."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from experiments import build
from experiments.config.data_info import DataSolve, SolveDataConfig
from experiments.config.overrides import UsageError
from experiments.data.jobs import find_task
from experiments.data.jsonl import read_lines, to_pair
from experiments.evaluation import problems, solving
from experiments.evaluation.problems import Item
from experiments.reporting.json_text import json_text
from rwkv7_jax import load_state, zero_state
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache


def run(config: DataSolve) -> int:
    """Samples, checks and writes; returns the exit status: 0, or 1 where no sample is accepted.

    Raises:
      UsageError, ValueError, OSError: in one line.
    """
    items = load(config.data, config.problems + config.shots)
    if len(items) <= config.shots:
        raise UsageError(f"shots: {len(items)} problems leave none beside {config.shots} solved examples")
    before = "".join(f"{prompt}{completion}\n\n" for prompt, completion in solved(config.data, config.shots))
    use_compilation_cache(config.compilation_cache)
    lm = build.load_model(config.model)
    state = zero_state(lm.model.config, None)
    if config.state:
        state = load_state(
            Path(config.state).expanduser(), config=lm.model.config, base_model_hash=lm.weights_hash
        ).state
    sampling = solving.Sampling(
        config.wanted, config.samples, config.batch_size, config.temperature, config.max_new_tokens, config.seed
    )
    open_ones = items[config.shots :]
    with tqdm(total=config.wanted, desc="solved", unit="problem", delay=2, leave=False) as bar:

        def tick(drawn: int, count: int) -> None:
            bar.update(count - bar.n)

        found = solving.solve(lm, state, open_ones, sampling, [before] * len(open_ones), tick)
    print(told(found, len(open_ones), config.wanted), flush=True)
    if not found.solutions:
        print("RESULT: FAIL (nothing is written; start from a tuned --state, or add --shots 4 or --samples 32)")
        return 1
    lines = [{"prompt": one.prompt, "completion": one.completion} for one in found.solutions]
    path = Path(config.output).expanduser()
    write_text(path, "".join(json_text(line, ensure_ascii=False) + "\n" for line in lines))
    print(f"written: {path}; tune on it with rwkv7 tune --config jsonl --data.train {path} --tune.steps 50")
    return 0


def load(data: SolveDataConfig, count: int) -> list[Item]:
    """Returns the training problems, the first ones.

    Raises:
      UsageError: in one line: none are named, or whatever is wrong with them.
    """
    if len(data.tasks) > 1:
        raise UsageError(f"data.tasks: one benchmark at a time, not {', '.join(data.tasks)}")
    task = data.tasks[0] if data.tasks else None
    if task is None and data.file is None:
        raise UsageError("say what to solve: --data.tasks pocket:gsm8k, or --data.file FILE.jsonl")
    items = problems.load(task, data.file, data.match, "train", count, data.dir, data.chain)
    if any(item.problem.choices for item in items):
        raise UsageError(f"{task} is answered by likelihoods: add --data.chain NAME, which asks for a text")
    return items


def solved(data: SolveDataConfig, count: int) -> Sequence[tuple[str, str]]:
    """Returns the first training problems with their own solutions, as examples.

    Raises:
      UsageError: the records are not there.
    """
    if not count:
        return []
    if not data.tasks:
        return [to_pair(line) for line in read_lines(str(data.file))[:count]]
    task = find_task(data.tasks[0], data.chain)
    return [task.to_example(record) for record in problems.records(data.tasks[0], data.file, "train", data.dir)[:count]]


def told(found: solving.Round, count: int, wanted: int) -> str:
    """Returns the line that says how sampling went."""
    solutions, share = len(found.solutions), 100 * found.accepted / max(found.sampled, 1)
    few = "" if solutions == wanted else f", fewer than the {wanted} wanted"
    cut = f"; {found.cut} did not end by themselves" if found.cut else ""
    return f"{solutions} of {count} problems solved{few}: {share:.1f}% of {found.sampled} samples are right{cut}"
