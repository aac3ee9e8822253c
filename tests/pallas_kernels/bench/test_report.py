"""Reports of benchmarks are JSON whatever was measured."""

import json

import pytest

from pallas_kernels.bench.report import report_text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_null(value):
    text = report_text({"rows": [{"ratio": value, "ms": 1.5}], "bytes_per_second": value, "shape": (1, 2)})
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"rows": [{"ratio": None, "ms": 1.5}], "bytes_per_second": None, "shape": [1, 2]}
