"""A prompt compiled into a state: the exact state, portable forms, the fit, and the divergence of each."""

import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.build import load_model
from experiments.config.distill import Distill
from experiments.config.overrides import UsageError
from experiments.config.schema import resolved
from experiments.data.jsonl import hold_out, read_pairs
from experiments.training import loop
from experiments.training.metrics_log import progress_bar
from rwkv7_jax import State
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.locks import lock
from state_tuning.core import non_finite, surgery, train
from state_tuning.observer import distill

RANKS = (1, 4, 16)
Tokens = list[int]


class Compiled(NamedTuple):
    """The outcome: the state to be written, and the divergence of every form in nats per token."""

    state: State
    kl: dict[str, float]
    unfitted: str
    """The form that the fit starts from."""
    prompt_tokens: int
    read_seconds: float
    """To read the prompt once, compilation aside."""


def run(config: Distill, prompt: str) -> int:
    """Compiles, writes the state file and prints what was lost and saved.

    Raises:
      ValueError, OSError: in one line.
    """
    use_compilation_cache(config.system.compilation_cache)
    lm = load_model(config.model)
    with lock(Path(config.output), "wait until it ends, or choose another --output"):
        found = compile_prompt(config, lm, prompt)
        save(config, lm, found)
    print(report(config, lm, found))
    fitted = next((value for name, value in found.kl.items() if name.startswith("written: fitted")), 0.0)
    if fitted > found.kl[found.unfitted]:
        advice = "lower tune.learning_rate, take fewer steps or give more texts"
        print(f"warning: the fit made the state worse ({found.unfitted}): {advice}", file=sys.stderr)
    return 0


def compile_prompt(config: Distill, lm: LanguageModel, prompt: str) -> Compiled:
    """Exact state, portable forms, the fit, and the divergence of each.

    Raises:
      ValueError: an empty prompt, too few texts, or settings that do not fit.
    """
    tokens = lm.tokenizer.encode(prompt)
    exact = distill.compile_prompt(lm.model, lm.params, tokens)
    begin = time.perf_counter()
    distill.compile_prompt(lm.model, lm.params, tokens).wkv.block_until_ready()
    seconds = time.perf_counter() - begin
    fit_on, held_out = _texts(config, lm, tokens)
    rank = config.rank
    start = exact if config.keep_shifts else distill.portable(exact)
    if rank:
        start = start._replace(wkv=distill.portable(exact, rank).wkv)
    forms = {"no prompt (zero state)": surgery.scale(exact, 0.0), "exact: matrices and token-shift states": exact}
    forms["without token-shift states"] = distill.portable(exact)
    ranks = [one for one in RANKS if one < lm.model.config.head_size and one != rank]
    forms |= {f"rank {one}, without token-shift states": distill.portable(exact, one) for one in ranks}
    if rank:
        forms[f"rank {rank}, not fitted"] = start
    unfitted = f"rank {rank}, not fitted" if rank else "without token-shift states"
    state = start
    if config.tune.steps and (rank or not config.keep_shifts):
        state = forms[f"written: fitted, {config.tune.steps} steps"] = fit(config, lm, exact, start, fit_on)
    measure = distill.make_divergence(lm.model)
    batch = distill.text_batch(held_out, config.length)
    kl = {}
    for name, form in forms.items():
        total, count = measure(lm.params, exact, form, batch)
        kl[name] = float(total.sum() / count.sum())
    return Compiled(state, kl, unfitted, len(tokens), seconds)


def fit(config: Distill, lm: LanguageModel, exact: State, start: State, texts: Sequence[Tokens]) -> State:
    """S_0 from `start`, so that texts read from it get the logits that they get from `exact`."""
    steps, rate = config.tune.steps, config.tune.learning_rate
    assert rate is not None
    tune = train.TuneConfig(learning_rate=rate, steps=steps, warmup=min(10, steps), tune_shifts=config.keep_shifts)
    method = distill.method(lm.model, start, tune, config.rank)
    optimizer = train.make_optimizer(tune)
    step = distill.make_step(lm.model, optimizer, tune, method)
    tuned, rng = train.init(optimizer, method.init()), np.random.default_rng(config.seed)
    drawn = (rng.permutation(len(texts))[: config.batch_size] for _ in range(steps))
    batches = (distill.text_batch([texts[i] for i in chosen], config.length, config.batch_size) for chosen in drawn)
    with progress_bar(steps, "fitting", "step") as bar:
        for taken in loop.take_steps(partial(step, lm.params, exact), tuned, batches, _check_applied):
            tuned = taken.state
            bar.update()
            bar.set_postfix(kl=f"{float(taken.metrics['loss']):.4f}", refresh=False)
    assert method.full is not None
    return method.full(tuned.trainable)


def _check_applied(metrics: non_finite.Metrics, index: int) -> None:
    if not bool(metrics["applied"]):
        lower = "lower tune.learning_rate"
        raise non_finite.NonFiniteError(f"step {index}: the loss or its gradient is not finite; {lower}")


def save(config: Distill, lm: LanguageModel, found: Compiled) -> None:
    """Writes the state file with what was measured."""
    settings = resolved(config, without=("output", "system"))
    metrics = {"prompt_tokens": found.prompt_tokens, "kl_nats_per_token": found.kl}
    lm.tuned_state(found.state, "distill", config=settings, metrics=metrics).save(config.output)


def report(config: Distill, lm: LanguageModel, found: Compiled) -> str:
    """What was lost and saved, and the command that uses the file."""
    lines = ["KL(after the prompt | from the state), nats per token on held-out text:"]
    lines += [f"  {name:<42} {value:.5f}" for name, value in found.kl.items()]
    size = Path(config.output).stat().st_size / 1024
    lines.append(
        f"saved in every request: {found.prompt_tokens} prompt tokens, {1000 * found.read_seconds:.1f} ms of reading "
        f"them here; the state file has {size:.0f} KiB"
    )
    lines.append(f"use it: {command(lm, config.output)}")
    return "\n".join(lines)


def command(lm: LanguageModel, output: str) -> str:
    """The shell command that starts from the state file."""
    words = ["rwkv7", "generate", "--model.checkpoint", str(lm.path), "--state", output]
    words += ["--model.tokenizer", lm.tokenizer_name] if lm.tokenizer_name != "auto" else []
    return shlex.join([*words, "--prompt", "TEXT"])


def _texts(config: Distill, lm: LanguageModel, prompt: Tokens) -> tuple[list[Tokens], list[Tokens]]:
    """(texts to fit on, held-out texts) as tokens; a model that mostly ends at once is made to go on."""
    if config.data.train:
        records = [pair._asdict() for pair in read_pairs(config.data.train)]
        try:
            parts = hold_out(records, 1 / 3, config.seed)
        except UsageError:
            few = f"data.train: {config.data.train} has fewer than 3 different texts, too few to hold some out"
            raise UsageError(f"{few}; give more, or leave data.train out") from None
        found = [[lm.tokenizer.encode(one["prompt"] + one["completion"]) for one in part] for part in parts]
        used = [[one for one in part if one][: config.texts] for part in found]
        _tell(config, sum(map(len, found)), [len(one) for part in used for one in part])
        fit_on, held_out = [[one[: config.length] for one in part] for part in used]
        return fit_on, held_out
    key = jax.random.key(config.seed)
    total = config.texts + max(1, config.texts // 2)
    settings = (lm.model, lm.params, prompt, key, total, config.length)
    texts = distill.sample_texts(*settings, lm.tokenizer.eos_id)
    if len(texts) <= total // 2:
        texts = distill.sample_texts(*settings, None)
    cut = min(config.texts, len(texts) * 2 // 3)
    return texts[:cut], texts[cut:]


def _tell(config: Distill, count: int, lengths: Sequence[int]) -> None:
    """Says how many of the texts are used, and warns of those that are cut."""
    if len(lengths) < count:
        print(f"{len(lengths):,} of {count:,} texts of {config.data.train} are used (texts {config.texts})", flush=True)
    if cut := [length for length in lengths if length > config.length]:
        lost = f"{len(cut):,} of {len(lengths):,} texts are cut to their first {config.length} tokens"
        longest = f"the longest has {max(cut):,}: --length {max(cut)} keeps all"
        print(f"warning: {lost} ({longest})", file=sys.stderr)
