"""Trains a small model to observe a larger one, carries states between the two, and measures both.

    rwkv7 observe --small.checkpoint model.pth --model.checkpoint larger.pth --data.train my.jsonl
    rwkv7 observe carry state.safetensors --observer runs/observe --output carried.safetensors
    rwkv7 observe measure --observer runs/observe --model.checkpoint larger.pth --data.tasks pocket:arc

`train`, which may be left out, learns the small model's weights and maps from its states to the large model's, whose
weights are frozen, and writes model.safetensors and observer.safetensors into --output. The small model is a draft for
`rwkv7 generate --draft.checkpoint`. An interrupted run resumes with the same command and gives the same weights.

`carry` maps a state that was tuned on the small model to one of the large model (--direction down: back), a start for
`rwkv7 tune --tune.init`. `measure` prints R^2 of the states by layer and the KLs on held-out records, how many tokens a
pass of the large model gives with the small one as draft, and with --warm.steps what a carried start saves.
"""

from collections.abc import Sequence
from typing import TypeAlias

from experiments.config.cli import Help, chosen, command, tuning_status
from experiments.config.loading import parse
from experiments.config.observe import Carry, MeasureObserver, Observe
from experiments.config.overrides import check_required

Verb: TypeAlias = Observe | Carry | MeasureObserver
VERBS: dict[str, Verb] = {"train": Observe(), "carry": Carry(), "measure": MeasureObserver()}
HELP = Help("observe", __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 if training diverges; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted", VERBS)


def body(args: list[str]) -> int:
    """Parses the settings of the verb and does what it says."""
    verb, rest = chosen(args, "observe", VERBS, "train")
    config = check_required(parse(VERBS[verb], rest), f"rwkv7 observe {verb}" + (" STATE" if verb == "carry" else ""))
    from experiments.commands.work import observe

    if isinstance(config, Carry):
        return observe.carry(config)
    if isinstance(config, MeasureObserver):
        return observe.measure(config)
    return tuning_status(lambda: observe.train(config), "resume")
