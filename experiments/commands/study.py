"""Runs all methods on all benchmarks with several seeds: the paper's table, or learning curves.

    rwkv7 study --config paper_table
    rwkv7 study --config curves --select.rows standard,dbp,lora --select.tasks gsm8k+gold
    rwkv7 study rates --config paper_table --only standard,dbp
    rwkv7 study publish --config paper_table --page docs/results.md

`run` (also without the word) computes what an earlier run has not, cell by cell, and writes report.md, results.json and
pictures. Of curves `--select.rows`, `.tasks`, `.budgets` and `.seeds` say which cells; the report shows all that are
there, and names those that are not. Curves find their own learning rates.

`rates` looks for the learning rate of each row on each benchmark: held-out loss on the validation split after the
table's number of steps, at 0.01, 0.1 and 1, and then along a ladder of rates from the best of them until both its
neighbours are worse. Every try is kept in rates.jsonl, so an interrupted search goes on with the same command. Prints
what to put into the config. `--only test_time` looks for the step size of test-time scaling, by accuracy, and needs
the rates of the states that it uses.

`publish` fills what stands between a page's markers from a finished table, no number by hand, and writes the pictures
and a .json beside the page.

Exit status: 0; 1 a tuning that diverged; 2 wrong usage or files (one line); 130 interrupted.
"""

from collections.abc import Sequence

from experiments.config.cli import Help, chosen, command
from experiments.config.commands import StudyPublish, StudyRates
from experiments.config.curves import CurvesConfig, check_curves
from experiments.config.loading import kind_of, load_config, split_config
from experiments.config.overrides import UsageError, take
from experiments.config.schema import check
from experiments.config.study import TableRunConfig

KINDS = (TableRunConfig, CurvesConfig)
VERBS = {"run": TableRunConfig(), "rates": StudyRates(), "publish": StudyPublish()}
HELP = Help("study", __doc__, (CurvesConfig(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command(argv, HELP, body, "interrupted; run the same command to go on", VERBS)


def body(args: list[str]) -> int:
    """Parses the settings and does what the verb says."""
    verb, words = chosen(args, "study", VERBS, "run")
    rates, words = take(StudyRates(), words) if verb == "rates" else (StudyRates(), words)
    publish, words = take(StudyPublish(), words) if verb == "publish" else (StudyPublish(), words)
    name, words = split_config(words, *KINDS)
    if kind_of(name, KINDS) is CurvesConfig:
        return curves(verb, load_config(name, words, CurvesConfig), publish.page)
    config = check(load_config(name, words, TableRunConfig))
    if verb == "run":
        print(f"{config.name}: seed {config.seed}, writing to {config.folder}", flush=True)
    from experiments.commands.work import study

    plan = study.Plan(config)
    if verb == "rates":
        return study.rates(plan, rates.only)
    return study.publish(plan, publish.page) if verb == "publish" else study.run(plan)


def curves(verb: str, config: CurvesConfig, page: str) -> int:
    """Does what the verb says with learning curves.

    Raises:
      UsageError: the verb is for tables alone.
    """
    if verb == "rates":
        raise UsageError(f"rwkv7 study rates: {config.name} finds its rates as it runs; leave the word out")
    check_curves(config)
    if verb == "run":
        print(f"{config.name}: seeds {', '.join(map(str, config.seeds))}, writing to {config.folder}", flush=True)
    from experiments.commands.work import curves as work

    return work.publish(config, page) if verb == "publish" else work.run(config)
