"""Shows, subtracts, mixes, scales, truncates and converts state files.

    rwkv7 state info state.safetensors
    rwkv7 state diff a.safetensors b.safetensors
    rwkv7 state mix a.safetensors b.safetensors --weight 0.5 --output soup.safetensors
    rwkv7 state scale a.safetensors --by 0.5 --output half.safetensors
    rwkv7 state truncate a.safetensors --rank 8 --output small.safetensors
    rwkv7 state convert a.safetensors --to rwkv-runner --output a.pth
    rwkv7 state convert a.safetensors --rank 4 --dtype int8 --output small.safetensors
    rwkv7 state card a.safetensors --output README.md
    rwkv7 state card a.safetensors --model.checkpoint model.pth --held_out book.txt,chats.jsonl
    rwkv7 state convert runs/jsonl/jsonl/checkpoints/step_00000050 --to rwkv-runner --output a.pth

A file of another tool needs --layout, which says the order of its axes. `mix`, `scale`, `truncate` and `diff` write our
own format (.safetensors), `convert` that of another tool. layouts: value_key, rwkv-runner, rlhf, fla, web-rwkv. A
checkpoint of a run of `rwkv7 tune` counts as the state file that the run would have written there.
"""

from collections.abc import Sequence
from typing import TypeAlias

from experiments.config.cli import Help, chosen, command
from experiments.config.commands import (
    StateCard,
    StateConvert,
    StateDiff,
    StateInfo,
    StateMix,
    StateScale,
    StateTruncate,
)
from experiments.config.loading import parse
from experiments.config.overrides import check_required

Verb: TypeAlias = StateInfo | StateDiff | StateMix | StateScale | StateTruncate | StateConvert | StateCard
VERBS: dict[str, Verb] = {
    "info": StateInfo(),
    "diff": StateDiff(),
    "mix": StateMix(),
    "scale": StateScale(),
    "truncate": StateTruncate(),
    "convert": StateConvert(),
    "card": StateCard(),
}
HELP = Help("state", __doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; nothing was written", VERBS)


def body(args: list[str]) -> int:
    """Parses the settings of the verb and does what it says."""
    verb, rest = chosen(args, "state", VERBS)
    files = {"diff": "FIRST SECOND", "mix": "FIRST SECOND", "convert": "FILE OUTPUT"}.get(verb, "FILE")
    config = check_required(parse(VERBS[verb], rest), f"rwkv7 state {verb} {files}")
    if isinstance(config, StateCard):
        from experiments.commands.work import state_card

        return state_card.write(config.file, config.layout, config.output, config.model, config.held_out)
    from experiments.commands.work import state

    return state.run(config)
