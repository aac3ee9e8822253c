"""Every value becomes JSON that a strict reader opens."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rwkv7_jax.json_text import json_text


def _strict(text: str) -> object:
    """Reads JSON as other readers do: NaN and Infinity are errors."""

    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": math.nan, "b": [math.inf, -math.inf, 1.5]}, {"a": None, "b": [None, None, 1.5]}),
        (np.float32(np.nan), None),
        (np.float64(np.inf), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]], np.float32), [[1.0, None]]),
        (jnp.array([jnp.inf, 2.0]), [None, 2.0]),
        (ml_dtypes.bfloat16(np.nan), None),
        (ml_dtypes.bfloat16(0.5), 0.5),
        ((1, (2.0, None, True)), [1, [2.0, None, True]]),
        ({np.int64(1): 1, 2: 2, ("a", "b"): 3}, {"1": 1, "2": 2, "('a', 'b')": 3}),
        ("a\ud800b \ud83d\ude00 é", "a\ufffdb 😀 é"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_values(value: object, expected: object, indent: int | None) -> None:
    assert _strict(json_text(value, indent=indent)) == expected


def test_default_is_cleaned_too() -> None:
    assert _strict(json_text({"x": {1.0}}, default=lambda value: [math.nan, str(value)])) == {"x": [None, "{1.0}"]}
    with pytest.raises(TypeError, match="set"):
        json_text({1.0})


def test_plain_values_are_as_json_dumps_writes_them() -> None:
    value = {"text": "é\n\u2028", "n": [1, 2.5e-300, -0.0, True, None], "d": {"b": 1, "a": 2}}
    assert json_text(value) == json.dumps(value)
    assert json_text(value, indent=1, sort_keys=True) == json.dumps(value, indent=1, sort_keys=True)
    assert json_text(value, ensure_ascii=False) == json.dumps(value, ensure_ascii=False)


def test_json_is_written_through_it() -> None:
    """Others write numbers that are finite for certain, or text that no file holds, or check what they read."""
    known = {
        "experiments/config/schema.py", "experiments/data/jsonl.py", "experiments/bench/worker.py",
        "experiments/training/checkpoint/files.py", "experiments/reporting/jsonl_store.py",
    }  # fmt: skip
    root = Path(__file__).parents[2]
    found = {
        str(path.relative_to(root)) for path in (root / "experiments").rglob("*.py") if "json.dump" in path.read_text()
    }
    assert found <= known
