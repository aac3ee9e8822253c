"""What a run in a folder differs in from one that is to go on there."""

import pytest

from experiments.config.overrides import UsageError
from experiments.training import continuing, run_folder


def test_settings_that_an_earlier_version_did_not_have_are_not_named(tmp_path):
    begun = {"tune": {"l2": 0.0, "schedule": "cosine", "steps": 8}, "model": {"dtype": "auto"}}
    run_folder.record(tmp_path, "old", begun, {})
    (tmp_path / "metrics.jsonl").write_text("{}\n")

    def message(**tune):
        settings = {"tune": begun["tune"] | tune, "model": {"dtype": "auto", "quantize": "auto"}}
        with pytest.raises(UsageError) as raised:
            continuing.check(continuing.Run(tmp_path, "new", settings, {}, {}))
        return str(raised.value)

    assert "(tune.l2: 0.0 there, 0.1 here)" in message(l2=0.1)
    assert "tune.steps: 8 there, 9 here" in message(steps=9)
    assert "takes more" in message(steps=9)
    assert "model.quantize" in message()
