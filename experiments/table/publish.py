"""`python -m experiments.table.publish --config paper_table`: a finished table into docs/results.md, no number by hand.

Fills what stands between the page's markers, and writes results.json and the pictures beside it. `page=FILE` names
another page.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.command import documented, take_word
from experiments.config import load_config
from experiments.overrides import UsageError
from experiments.run import split_config
from experiments.table.config import TableRunConfig


def publish(config: TableRunConfig, page: Path) -> str:
    """Returns a line that says what was written.

    Raises: UsageError for a table that is not finished.
    """
    from experiments.table import finish, report
    from experiments.table.cells import Plan
    from experiments.table.store import Store

    store = Store(config.folder / "cells.jsonl")
    rows = [store.get(cell) for cell in Plan(config).cells()]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        raise UsageError(f"{config.folder}: {len(rows) - len(found)} of {len(rows)} cells are missing; finish the run")
    body = finish.body_of(config, found)
    pictures = finish.draw(body, found, finish.tries_of(config), page.parent, f"{page.stem}-")
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
