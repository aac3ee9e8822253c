"""Does a training step fit hardware that is not there, and what does it cost? Compiled for it, nothing is run.

    python -m experiments.plan --config gsm8k --size 2.9B --topology v5e-256 --mesh.fsdp 16 --data.batch_size 256

--topology   v4, v5e, v5p, v6e with the number of its rented name (v5e-256, v5p-128), or a100, h100, h200 (h200x8)
--size       0.1B, 0.4B, 1.5B, 2.9B, 7.2B: a released model's dimensions; left out: the config's own model
--json PATH  write the figures too
and every setting of experiments.run or experiments.training.pretraining, by the config. Needs the extra `aot`.

Exit status: 0 it fits, 1 it does not, 2 wrong usage.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config.cli import documented
from experiments.config.overrides import UsageError
from experiments.config.schema import PretrainConfig, RunConfig, config_names, load_config
from experiments.run import split_config

OPTIONS = ("--topology", "--size", "--json")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return documented(argv, lambda: str(__doc__), plan, "interrupted")


def plan(args: list[str]) -> int:
    """Compile and report.

    Raises:
      UsageError: in one line, whatever is wrong with the settings.
    """
    own, rest = take(args)
    name, overrides = split_config(rest)
    kind = PretrainConfig if name in config_names(PretrainConfig) else RunConfig
    config = load_config(name, overrides, kind)
    if "--topology" not in own:
        raise UsageError("say for what: --topology v5e-256, v5p-128, h200x8, ...")
    from experiments.plan import topology

    target = topology.parse(own["--topology"])
    topology.prepare(target)
    from experiments.plan import compiled, report, step

    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    print(f"compiling for {target.chips} {target.kind} chips ...", file=sys.stderr, flush=True)
    made, parts = compiled.compile_step(
        lambda mesh: step.make(config, own.get("--size"), mesh), target, topology.devices(target), sizes
    )
    print(report.text(made, parts, compiled.options(made, parts)))
    if "--json" in own:
        label = {"config": config.name, "size": own.get("--size"), "settings": overrides}
        Path(own["--json"]).write_text(json.dumps(report.as_json(made, parts, label), indent=1) + "\n")
    return 0 if made.fits else 1


def take(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(this command's own options, the other arguments).

    Raises:
      UsageError: an option without a value.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in OPTIONS:
            rest.append(word)
            continue
        own[key] = value if equals else next(words, "")
        if not own[key]:
            raise UsageError(f"{key} needs a value")
    return own, rest


if __name__ == "__main__":
    sys.exit(main())
