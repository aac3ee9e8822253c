"""Evolution strategies against plain sampling of as many rows: tokens a second, as a ratio.

    python -m experiments.bench.population --rows 64 --tokens 32

Both sample the same prompts to the same number of tokens with the same program; plain sampling starts all rows from one
state and does nothing else, a step of evolution strategies gives each row its own state, scores the texts and moves the
state. They are timed in turn, so that what else the machine does falls on both.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments import build
from experiments.config.schema import ModelConfig
from experiments.pocket import benchmarks
from experiments.tasks import TASKS
from rwkv7_jax.generation.decode_loop import NO_TOKEN
from rwkv7_jax.language_model import LanguageModel
from state_tuning.core import train
from state_tuning.reinforcement.evolution import ESConfig
from state_tuning.reinforcement.learning import Asked, Learner, evolution_step
from state_tuning.reinforcement.rewards import Answer, make_reward
from state_tuning.reinforcement.sampling import Prompts, Sampler, pad_prompts, row_keys

Timed = Callable[[int], None]
"""(number of the round); waits for the device"""


def contenders(
    lm: LanguageModel, prompts: Prompts, golds: Sequence[str], samples: int, tokens: int
) -> tuple[Timed, Timed]:
    """Returns (plain sampling, a step of evolution strategies), functions of the round's number.

    Args:
      lm: the model.
      prompts: B of them.
      golds: their right answers.
      samples: members of the population for each prompt.
      tokens: that every row samples.
    """
    sampler = Sampler(lm, tokens)
    sampler.rules = sampler.rules._replace(eos_id=np.asarray(NO_TOKEN, np.int32))
    tune, reward = train.TuneConfig(), make_reward("letter")

    def judge(index: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        return np.asarray([reward.score(Answer("", text, golds[int(i)])) for i, text in zip(index, texts, strict=True)])

    method, optimizer = train.standard(lm, tune), train.make_optimizer(tune)
    learner = Learner(lm, method, tune, optimizer, sampler, samples, jax.random.key(0), judge)
    step = evolution_step(learner, ESConfig(), method.init())
    index, rows = np.arange(len(golds)), len(golds) * samples
    state, repeated = (
        jax.jit(method.graft, static_argnums=1)(method.init(), rows),
        prompts.take(np.repeat(index, samples)),
    )
    held = [train.init(optimizer, method.init())]

    def plain(number: int) -> None:
        sampler.draw(repeated, state, row_keys(jax.random.key(number), rows, 2))

    def evolve(number: int) -> None:
        tuned, metrics = step(held[0], Asked(prompts, index, np.asarray(number, np.int32)))
        held[0] = jax.block_until_ready(tuned)
        del metrics

    return plain, evolve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.population", description=__doc__)
    parser.add_argument("--checkpoint", default="pocket/student", help="the model")
    parser.add_argument("--quantize", default="auto", help="auto, none, int8 or int4")
    parser.add_argument("--rows", type=int, default=64, help="rows of a batch: 8 for each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each row")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each")
    args = parser.parse_args(argv)
    try:
        lm = build.load_model(ModelConfig(args.checkpoint, quantize=args.quantize))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    pairs = [TASKS["mmlu"].to_example(record) for record in benchmarks.load("mmlu", "validation")[: args.rows // 8]]
    prompts = pad_prompts([lm.encode(prompt) for prompt, _ in pairs])
    both = contenders(lm, prompts, [gold for _, gold in pairs], 8, args.tokens)
    seconds: list[list[float]] = [[], []]
    for number in range(args.rounds + 1):
        for place, one in enumerate(both):
            begin = time.perf_counter()
            one(number)
            seconds[place] += [time.perf_counter() - begin] if number else []
    ratios = [plain / evolved for plain, evolved in zip(*seconds, strict=True)]
    speeds = [len(pairs) * 8 * args.tokens / statistics.median(part) for part in seconds]
    print(f"{lm.summary}: {len(pairs) * 8} rows, {args.tokens} tokens each, {args.rounds} rounds in turn")
    print(f"plain sampling {speeds[0]:.0f} tokens/s, evolution strategies {speeds[1]:.0f} tokens/s")
    print(f"ratio: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
