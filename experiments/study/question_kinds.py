"""Accuracy by kind of question, on the pocket benchmarks that mix several."""

from collections.abc import Sequence

import numpy as np

from experiments.config.study import TableRunConfig
from experiments.pocket import benchmarks, question_kinds
from experiments.reporting.statistics import Sample, crossed
from experiments.study.labels import in_order
from experiments.study.summary import Row, samples
from experiments.training.metrics_log import Interval

ByKind = dict[str, dict[str, dict[str, Interval]]]
"""benchmark -> row -> kind of question -> accuracy"""


def by_kind(config: TableRunConfig, rows: Sequence[Row]) -> ByKind:
    """Rows that were scored on all records of the split; empty for a table on files."""
    if config.data.dir or config.data.train:
        return {}
    accuracy, found = samples(rows, "accuracy"), {}
    for task in (task for task in config.data.tasks if task in question_kinds.KINDS):
        records = benchmarks.load(task, config.evaluate.split)[: config.evaluate.max_records]
        of = np.asarray([question_kinds.kind(task, record) for record in records])
        whole = {name: accuracy[name][task] for name in in_order(list(accuracy)) if task in accuracy[name]}
        found[task] = {
            name: {
                one: _part(sample, of == one, config.seed) for one in question_kinds.KINDS[task] if (of == one).any()
            }
            for name, sample in whole.items()
            if len(sample.parts) == len(of)
        }
    return found


def _part(sample: Sample, keep: np.ndarray, seed: int) -> Interval:
    return crossed([Sample(sample.values[:, keep], sample.parts[keep])], seed)
