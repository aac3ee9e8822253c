"""`python -m experiments.commands.harness --checkpoint model.pth --tasks hellaswag,lambada_openai`

Any task of lm-evaluation-harness (`pip install -e ".[lm-eval]"`) on our model, with state forking. Data as the
harness finds it; with --data-dir its mmlu, gsm8k, winogrande and arc_challenge read local files and need no network.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from experiments.config.cli import exit_status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.commands.harness",
        description=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--checkpoint", required=True, help="pocket/student (embedded), or a path (.pth, .safetensors, .bin)"
    )
    p.add_argument("--tasks", required=True, help="names of the harness's tasks and groups, joined by commas")
    p.add_argument("--state", help="tuned state file [the zero state]")
    p.add_argument("--state-layout", help="axis order of a foreign state file")
    p.add_argument("--data-dir", help="folder of local benchmark files")
    p.add_argument("--include-path", help="folder of your own task files (YAML)")
    p.add_argument("--num-fewshot", type=int, help="examples before each question [the task's]")
    p.add_argument("--limit", type=int, help="only the first records of each task")
    p.add_argument("--prefix-token", type=int, action="append", default=[], help="token id before each prompt")
    p.add_argument("--batch-size", type=int, default=32, help="rows at once [32]")
    p.add_argument("--tokenizer", default="auto", help='"auto", "world", "byte" or a path of a tokenizer.json')
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="compute type")
    p.add_argument("--apply-chat-template", action="store_true", help="User: ... Assistant: turns")
    p.add_argument("--json", type=Path, help="write the harness's results and samples to this file")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = parser().parse_args(argv)
    return exit_status(lambda: run(args), "interrupted; nothing was written")


def run(args: argparse.Namespace) -> int:
    """Build the model, let the harness evaluate it, print its table."""
    from experiments.build import build
    from experiments.config.overrides import UsageError
    from experiments.config.schema import ModelConfig
    from rwkv7_jax import checkpoint
    from rwkv7_jax.compile_cache import use_compilation_cache

    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
        from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError('lm_eval is not installed: pip install -e ".[lm-eval]"') from None
    from experiments.evaluation.lm_eval_data import local_datasets
    from experiments.evaluation.lm_eval_model import ForkingLM

    use_compilation_cache()
    lm = build(ModelConfig(args.checkpoint, args.tokenizer, args.dtype))
    print(f"{args.checkpoint}: {lm.summary}", flush=True)
    state = None
    if args.state:
        state = checkpoint.load_state(
            args.state, layout=args.state_layout, config=lm.model.config, base_model_hash=lm.weights_hash
        ).state
    model = ForkingLM(lm, state, args.batch_size, args.prefix_token)
    with local_datasets(args.data_dir) if args.data_dir else nullcontext():
        simple_evaluate: Any = lm_eval.simple_evaluate
        found = simple_evaluate(
            model=model,
            tasks=args.tasks.split(","),
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            apply_chat_template=args.apply_chat_template,
            task_manager=TaskManager(include_path=args.include_path),
        )
    print(make_table(found))
    if "groups" in found:
        print(make_table(found, "groups"))
    cost = model.scorer.cost
    print(f"{cost.tokens} tokens fed ({cost.places} places), state: {args.state or 'none'}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
