"""The check against float64 finds what is wrong and says what failed."""

import jax
import numpy as np
import pytest

from pallas_kernels import IMPLEMENTATIONS
from pallas_kernels.bench import check
from pallas_kernels.bench.shapes import REGIMES, Shape

SHAPES = (Shape(1, 5, 1, 4, 4),)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_kernel_is_right_in_every_regime(dtype):
    rows = list(check.checks([check.Candidate("scan", dtype, IMPLEMENTATIONS["scan"])], SHAPES))
    assert [row["regime"] for row in rows] == list(REGIMES)
    for row in rows:
        assert row["wrong"] == []
        assert set(row["errors"]) == {"y", "s_T", *check.NAMES, "s0 alone"}


def test_what_is_wrong_is_named():
    def wrong(r, log_w, k, v, a, b, s0, reset):
        return IMPLEMENTATIONS["scan"](1.001 * r, log_w, k, v, a, b, s0, reset)

    for row in check.checks([check.Candidate("wrong", "float32", wrong)], SHAPES):
        assert "y" in row["wrong"]
        assert "s_T" not in row["wrong"]


def test_not_a_number_is_wrong():
    def broken(*x):
        return jax.tree.map(lambda z: z * np.float32("nan"), IMPLEMENTATIONS["scan"](*x))

    (row, *_) = check.checks([check.Candidate("broken", "float32", broken)], SHAPES)
    assert {"y", "s_T"} <= set(row["wrong"])


def test_a_failure_is_a_row():
    def refuses(*x):
        raise TypeError("not\nhere")

    (row, *_) = check.checks([check.Candidate("refuses", "float32", refuses)], SHAPES)
    assert (row["wrong"], row["failed"]) == (["all"], "not here")


def test_decoding_is_checked_with_resets():
    rows = list(check.check_decode(Shape(5, 1, 2, 16, 16), interpret=True))
    assert [(row["dtype"], row["wrong"]) for row in rows] == [("bfloat16", []), ("float32", [])]
