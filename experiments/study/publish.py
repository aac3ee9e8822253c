"""`python -m experiments.study.publish --config paper_table`: a finished table into docs/results.md, no number by hand.

Fills what stands between the page's markers, and writes results.json and the pictures beside it. `page=FILE` names
another page.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config.cli import documented, take_word
from experiments.config.overrides import UsageError
from experiments.config.schema import load_config
from experiments.config.study import TableRunConfig
from experiments.run import split_config


def publish(config: TableRunConfig, page: Path) -> str:
    """Returns a line that says what was written.

    Raises: UsageError for a table that is not finished.
    """
    from experiments.study import artifacts, report
    from experiments.study.cells import Plan
    from experiments.study.store import Store

    store = Store(config.folder / "cells.jsonl")
    rows = [store.get(cell) for cell in Plan(config).cells()]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        raise UsageError(f"{config.folder}: {len(rows) - len(found)} of {len(rows)} cells are missing; finish the run")
    body = artifacts.body_of(config, found)
    pictures = artifacts.draw(body, found, artifacts.tries_of(config), page.parent, f"{page.stem}-")
    report.fill(page, report.markdown(body, pictures))
    (page.parent / f"{page.stem}.json").write_text(json.dumps(body, indent=1) + "\n")
    return f"{page}, {page.stem}.json, {', '.join(pictures)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 after a one-line error."""

    def run(args: list[str]) -> int:
        page, rest = take_word(args, "page")
        config = load_config(*split_config(rest), TableRunConfig)
        print(publish(config, Path(page or "docs/results.md")))
        return 0

    return documented(argv, lambda: str(__doc__), run, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
