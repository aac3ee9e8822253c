"""Says whether a training step fits hardware that is not there, and what it costs: compiled for it, nothing is run.

    rwkv7 plan --config gsm8k --size 2.9B --topology v5e-256 --mesh.fsdp 16 --data.batch_size 256
    rwkv7 plan table

topologies: v4, v5e, v5p, v6e with the number of its rented name (v5e-256, v5p-128), or a100, h100, h200 (h200x8).
`rwkv7 plan table` prints the plans in experiments/plan/results as the Markdown tables of docs/pods.md.
Further settings are those of `rwkv7 tune`, or of `rwkv7 pretrain` where the config is one. Needs the extra `aot`.

Exit status: 0 it fits, 1 it does not, 2 wrong usage.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.config.cli import Help, command
from experiments.config.commands import Plan
from experiments.config.loading import kind_of, load_config, split_config
from experiments.config.outputs import check_writable
from experiments.config.overrides import UsageError, take
from experiments.config.schema import PretrainConfig, RunConfig
from experiments.plan import table, topology

HELP = Help("plan", __doc__, (Plan(), RunConfig()), PretrainConfig())
KINDS: tuple[type[RunConfig | PretrainConfig], ...] = (RunConfig, PretrainConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command(argv, HELP, body)


def body(args: list[str]) -> int:
    """Parses the settings, compiles and reports."""
    if args[0] == "table":
        return _table(args[1:])
    own, rest = take(Plan(), args)
    name, overrides = split_config(rest, *KINDS)
    config = load_config(name, overrides, kind_of(name, KINDS))
    if not own.topology:
        raise UsageError("say for what: --topology v5e-256, v5p-128, h200x8, ...")
    target = topology.parse(own.topology)
    if own.json:
        check_writable("json", Path(own.json).expanduser())
    topology.prepare(target)
    print(f"compiling for {target.chips} {target.kind} chips ...", file=sys.stderr, flush=True)
    from experiments.commands.work import plan

    if isinstance(config, RunConfig):
        make = partial(plan.tuning, config.model, config.data, config.tune, config.method, own.size)
    else:
        make = partial(plan.pretraining, config, own.size)
    return plan.run(make, config.mesh, own, target, config.name, overrides)


def _table(rest: Sequence[str]) -> int:
    if rest:
        raise UsageError(f"rwkv7 plan table: takes no settings, not {rest[0]!r}")
    print(table.text())
    return 0
