"""A finished table as a page of the documentation, so that no number is copied by hand."""

from pathlib import Path

from experiments.config.overrides import UsageError
from experiments.reporting.json_text import json_text
from experiments.study import artifacts, report
from experiments.study.plan import Plan
from experiments.study.records import CellRecord
from experiments.study.store import CellStore
from rwkv7_jax.checkpoint.files import write_text

CELLS_FILE = "cells.jsonl"


def publish(plan: Plan, page: Path) -> str:
    """Fills what stands between the page's markers, and writes results and pictures beside it.

    Args:
      plan: the table.
      page: a Markdown file with the markers of `report`; NAME.md gets NAME.json and NAME-*.png.

    Returns:
      A line that says what was written.

    Raises:
      UsageError: the table is not finished.
      ValueError: the page has no markers.
    """
    folder = plan.config.folder
    store = CellStore[CellRecord](folder / CELLS_FILE)
    records = [store.get(cell) for cell in plan.cells()]
    found = [record for record in records if record is not None]
    if len(found) < len(records):
        missing = len(records) - len(found)
        raise UsageError(f"{folder}: {missing} of {len(records)} cells are missing; finish the run")
    body = artifacts.results(plan, found)
    tries = artifacts.tries_of(folder, plan.config.name)
    pictures = artifacts.draw(body, found, tries, page.parent, f"{page.stem}-")
    report.fill(page, report.markdown(body, pictures))
    write_text(page.parent / f"{page.stem}.json", json_text(body, indent=1) + "\n")
    return f"{page}, {page.stem}.json, {', '.join(pictures)}"
