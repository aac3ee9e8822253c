"""`python -m experiments.commands.distill --checkpoint MODEL --prompt-file system.txt --out state.safetensors`.

Whoever starts from the state file need not read the prompt again. By default the file is one that every tool around
RWKV-7 can use: matrices alone, fitted so that what is lost with the token-shift states hurts least. `--keep-shifts`
keeps everything in our own format: the exact state, nothing to fit. Prints what each form loses (KL of the next token,
on texts that were not fitted) and what is saved.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.config.cli import exit_status

if TYPE_CHECKING:
    from rwkv7_jax import State
    from rwkv7_jax.language_model import LanguageModel

RANKS = (1, 4, 16)


class Compiled(NamedTuple):
    """The outcome: the state to be written, and the divergence of every form in nats per token."""

    state: "State"
    kl: dict[str, float]
    prompt_tokens: int
    read_seconds: float
    """To read the prompt once, compilation aside."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.commands.distill",
        description="Compile a prompt into a state file, and measure what that loses and saves.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--checkpoint", default="pocket/student", help="pocket/student (embedded), or a path")
    p.add_argument("--tokenizer", default="auto", help="auto, world, byte, or the path of a tokenizer.json")
    p.add_argument("--prompt-file", required=True, help='file with the prompt (UTF-8); "-" reads standard input')
    p.add_argument("--out", type=os.path.expanduser, default="state.safetensors", help="state file to write")
    p.add_argument("--text", help="jsonl of what usually follows the prompt; none: texts that the model writes itself")
    p.add_argument("--texts", type=int, default=64, help="texts to fit on; half as many are held out to measure on")
    p.add_argument("--length", type=int, default=64, help="tokens of each text at most")
    p.add_argument("--steps", type=int, default=100, help="optimiser steps of the fit; 0: none")
    p.add_argument("--rate", type=float, default=3e-3, help="learning rate of the fit")
    p.add_argument("--batch-size", type=int, default=16, help="texts a step")
    p.add_argument("--rank", type=int, help="keep every matrix at this rank; none: full rank")
    p.add_argument("--keep-shifts", action="store_true", help="keep the token-shift states (our own format alone)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute dtype")
    p.add_argument("--seed", type=int, default=0, help="seed of the texts and their order")
    p.add_argument("--no-cache", action="store_true", help="do not keep compiled programs in the user's cache folder")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    args = parser().parse_args(argv)

    def run() -> int:
        prompt = _read_prompt(args.prompt_file)
        lm = _build(args)
        found = compile_prompt(args, lm, prompt)
        save(args, lm, found)
        print(report(args, lm, found))
        return 0

    return exit_status(run, "interrupted; nothing was written")


def compile_prompt(args: argparse.Namespace, lm: "LanguageModel", prompt: str) -> Compiled:
    """Exact state, portable forms, the fit, and the divergence of each.

    Raises:
      ValueError: an empty prompt, too few texts, or settings that do not fit.
    """
    from state_tuning.core import surgery
    from state_tuning.observer import distill

    tokens = lm.tokenizer.encode(prompt)
    exact = distill.compile_prompt(lm.model, lm.params, tokens)
    begin = time.perf_counter()
    distill.compile_prompt(lm.model, lm.params, tokens).wkv.block_until_ready()
    seconds = time.perf_counter() - begin
    fit_on, held_out = _texts(args, lm, tokens)
    start = exact if args.keep_shifts else distill.portable(exact)
    if args.rank:
        start = start._replace(wkv=distill.portable(exact, args.rank).wkv)
    forms = {"no prompt (zero state)": surgery.scale(exact, 0.0), "exact: matrices and token-shift states": exact}
    forms["without token-shift states"] = distill.portable(exact)
    ranks = [rank for rank in RANKS if rank < lm.model.config.head_size and rank != args.rank]
    forms |= {f"rank {rank}, without token-shift states": distill.portable(exact, rank) for rank in ranks}
    if args.rank:
        forms[f"rank {args.rank}, not fitted"] = start
    state = start
    if args.steps and (args.rank or not args.keep_shifts):
        state = forms[f"written: fitted, {args.steps} steps"] = fit(args, lm, exact, start, fit_on)
    measure = distill.make_divergence(lm.model)
    batch = distill.text_batch(held_out, args.length)
    kl = {}
    for name, form in forms.items():
        total, count = measure(lm.params, exact, form, batch)
        kl[name] = float(total.sum() / count.sum())
    return Compiled(state, kl, len(tokens), seconds)


def fit(
    args: argparse.Namespace, lm: "LanguageModel", exact: "State", start: "State", texts: list[list[int]]
) -> "State":
    """S_0 from `start`, so that texts read from it get the logits that they get from `exact`."""
    import jax
    import numpy as np

    from experiments.training.metrics_log import progress_bar
    from state_tuning.core import non_finite, train
    from state_tuning.observer import distill

    tune = train.TuneConfig(
        learning_rate=args.rate, steps=args.steps, warmup=min(10, args.steps), tune_shifts=args.keep_shifts
    )
    method = distill.method(lm.model, start, tune, args.rank)
    optimizer = train.make_optimizer(tune)
    step = distill.make_step(lm.model, optimizer, tune, method)
    tuned, rng = train.init(optimizer, method.init()), np.random.default_rng(args.seed)
    with progress_bar(args.steps, "fitting", "step") as bar:
        for index in range(1, args.steps + 1):
            rows = rng.permutation(len(texts))[: args.batch_size]
            batch = distill.text_batch([texts[i] for i in rows], args.length, args.batch_size)
            tuned, metrics = step(lm.params, exact, tuned, jax.device_put(batch))
            if not bool(metrics["applied"]):
                raise non_finite.NonFiniteError(f"step {index}: the loss or its gradient is not finite; lower --rate")
            bar.update()
            bar.set_postfix(kl=f"{float(metrics['loss']):.4f}", refresh=False)
    assert method.full is not None
    return method.full(tuned.trainable)


def save(args: argparse.Namespace, lm: "LanguageModel", found: Compiled) -> None:
    """Write the state file with what was measured."""
    from rwkv7_jax.checkpoint import save_state

    settings: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "out"}
    metrics = {"prompt_tokens": found.prompt_tokens, "kl_nats_per_token": found.kl}
    metadata = {"base_model_hash": lm.weights_hash, "method": "distill", "config": settings, "metrics": metrics}
    save_state(args.out, found.state, metadata=metadata)


def report(args: argparse.Namespace, lm: "LanguageModel", found: Compiled) -> str:
    """What was lost and saved, and the command that uses the file."""
    lines = ["KL(after the prompt | from the state), nats per token on held-out text:"]
    lines += [f"  {name:<42} {value:.5f}" for name, value in found.kl.items()]
    size = Path(args.out).stat().st_size / 1024
    lines.append(
        f"saved in every request: {found.prompt_tokens} prompt tokens, {1000 * found.read_seconds:.1f} ms of reading "
        f"them here; the state file has {size:.0f} KiB"
    )
    lines.append(f"use it: {command(lm, args.out)}")
    return "\n".join(lines)


def command(lm: "LanguageModel", out: str) -> str:
    """The shell command that starts from the state file."""
    words = ["python", "-m", "experiments.commands.generate", str(lm.path), "--state", out]
    words += ["--tokenizer", lm.tokenizer_name] if lm.tokenizer_name != "auto" else []
    return shlex.join([*words, "--prompt", "TEXT"])


def _build(args: argparse.Namespace) -> "LanguageModel":
    from experiments import build
    from experiments.config.overrides import UsageError
    from experiments.config.schema import ModelConfig
    from rwkv7_jax.compile_cache import use_compilation_cache

    if min(args.texts, args.length, args.batch_size) < 1 or args.steps < 0 or args.rate <= 0:
        raise UsageError("--texts, --length, --batch-size and --rate must be above 0, --steps not negative")
    _check_out(Path(args.out).absolute())
    if args.rank and args.keep_shifts:
        raise UsageError("--rank and --keep-shifts exclude each other: the fit of factors has no token-shift states")
    use_compilation_cache(not args.no_cache)
    return build.build(ModelConfig(checkpoint=args.checkpoint, tokenizer=args.tokenizer, dtype=args.dtype))


def _check_out(path: Path) -> None:
    """Raises: UsageError if the state file could not be written there, which else shows only after the fit."""
    from experiments.config.overrides import UsageError

    if path.is_dir():
        raise UsageError(f"--out: {path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"--out: no folder {path.parent}")
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"--out: {path} cannot be written ({error.strerror}); choose another file") from None


def _read_prompt(name: str) -> str:
    """Raises: FileNotFoundError, ValueError for no text."""
    text = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    if not text:
        raise ValueError(f"{name}: the prompt is empty")
    return text


def _texts(args: argparse.Namespace, lm: "LanguageModel", prompt: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """(texts to fit on, held-out texts) as tokens; a model that mostly ends at once is made to go on."""
    import jax

    from experiments.config.overrides import UsageError
    from experiments.data.jsonl import hold_out, read_pairs
    from state_tuning.observer import distill

    if args.text:
        records = [pair._asdict() for pair in read_pairs(args.text)]
        try:
            parts = hold_out(records, 1 / 3, args.seed)
        except UsageError:
            few = f"--text: {args.text} has fewer than 3 different texts, too few to hold some out"
            raise UsageError(f"{few}; give more, or leave --text out") from None
        found = [
            [lm.tokenizer.encode(row["prompt"] + row["completion"])[: args.length] for row in part] for part in parts
        ]
        return [row for row in found[0] if row][: args.texts], [row for row in found[1] if row][: args.texts]
    key = jax.random.key(args.seed)
    total = args.texts + max(1, args.texts // 2)
    settings = (lm.model, lm.params, prompt, key, total, args.length)
    rows = distill.sample_texts(*settings, lm.tokenizer.eos_id)
    if len(rows) <= total // 2:
        rows = distill.sample_texts(*settings, None)
    cut = min(args.texts, len(rows) * 2 // 3)
    return rows[:cut], rows[cut:]


if __name__ == "__main__":
    sys.exit(main())
