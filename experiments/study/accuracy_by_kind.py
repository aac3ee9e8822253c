"""Accuracy by kind of question, on the pocket benchmarks that mix several."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from experiments.pocket import benchmarks, question_kinds
from experiments.reporting.crossed import crossed_interval
from experiments.reporting.statistics import Interval, ItemValues
from experiments.study.labels import in_order
from experiments.study.records import ByKind, CellRecord
from experiments.study.summary import samples


def accuracy_by_kind(records: Sequence[CellRecord], tasks: Sequence[str], split: str, max_records: int) -> ByKind:
    """Computes the accuracies of the methods that were scored on all records of the split.

    Args:
      records: of all cells.
      tasks: pocket benchmarks.
      split: the one that was scored.
      max_records: of each benchmark.
    """
    accuracy, found = samples(records, "accuracy"), {}
    for task in (task for task in tasks if task in question_kinds.KINDS):
        questions = benchmarks.load(task, split)[:max_records]
        kinds = np.asarray([question_kinds.kind(task, question) for question in questions])
        whole = {name: accuracy[name][task] for name in in_order(accuracy) if task in accuracy[name]}
        found[task] = {
            name: {one: _part(sample, kinds == one) for one in question_kinds.KINDS[task] if (kinds == one).sum() > 1}
            for name, sample in whole.items()
            if len(sample.parts) == len(kinds)
        }
    return found


def _part(sample: ItemValues, keep: Bool[np.ndarray, "N"]) -> Interval:
    x = crossed_interval([ItemValues(sample.values[:, keep], sample.parts[keep])])
    return Interval(x.mean, max(0.0, x.low), min(1.0, x.high))
