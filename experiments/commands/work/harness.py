"""Any task of lm-evaluation-harness on our model, with state forking."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from experiments.build import load_model
from experiments.commands.work.settings import NONE, prefix_tokens
from experiments.config.commands import Evaluate
from experiments.config.overrides import UsageError
from experiments.reporting.json_text import json_text
from rwkv7_jax import State, checkpoint
from rwkv7_jax.checkpoint.files import write_text
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import LanguageModel

try:
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    from experiments.evaluation.lm_eval_data import local_datasets
    from experiments.evaluation.lm_eval_model import ForkingLM
except ImportError:
    raise UsageError('lm_eval is not installed: pip install -e ".[lm-eval]"') from None


def run(config: Evaluate, tasks: Sequence[str]) -> int:
    """Builds the model, lets the harness evaluate it, prints its table.

    Raises:
      ValueError, OSError: in one line.
    """
    shots = _shots(config.shots)
    use_compilation_cache(config.system.compilation_cache)
    lm = load_model(config.model)
    print(f"{config.model.checkpoint}: {lm.summary}", flush=True)
    file = config.states[0] if config.states else NONE
    prefix = prefix_tokens(config.prefix_token) or ()
    model = ForkingLM(lm, _state(file, config, lm), config.batch_size, prefix, max_new_tokens=config.max_new_tokens)
    with local_datasets(config.data.dir) if config.data.dir else nullcontext():
        simple_evaluate: Any = lm_eval.simple_evaluate
        try:
            found = simple_evaluate(
                model=model,
                tasks=list(tasks),
                num_fewshot=shots,
                limit=config.limit,
                apply_chat_template=config.lm_eval.apply_chat_template,
                task_manager=TaskManager(include_path=config.lm_eval.include_path),
            )
        except AssertionError as error:
            raise ValueError(f"lm_eval: {str(error).removeprefix('Error: ')}") from None
    print(make_table(found))
    if "groups" in found:
        print(make_table(found, "groups"))
    cost = model.scorer.cost
    print(f"{cost.tokens} tokens fed ({cost.places} places), state: {file}")
    if config.json:
        write_text(Path(config.json).expanduser(), json_text(found, indent=1, default=str) + "\n")
    return 0


def _shots(texts: Sequence[str]) -> int | None:
    if not texts:
        return None
    if len(texts) > 1 or not texts[0].isdigit():
        raise UsageError(f"shots: {','.join(texts)}: the harness takes one number for all its tasks")
    return int(texts[0])


def _state(file: str, config: Evaluate, lm: LanguageModel) -> State | None:
    if file == NONE:
        return None
    return checkpoint.load_state(
        file, layout=config.state_layout, config=lm.model.config, base_model_hash=lm.weights_hash
    ).state
