"""One object a file: damage is told in one line with the path, and nothing half-written is left."""

import dataclasses
import json
import random

import pytest

from experiments.config.loading import load_config
from experiments.config.overrides import UsageError
from experiments.config.schema import resolved
from experiments.reporting import json_file
from experiments.reporting.run_report import Measurement, Outcome
from experiments.training import run_folder
from experiments.training.goodput import Ledger

SIDE = Measurement([1.5, 2.5], [3, 4], {"acc": [0.0, 1.0]})
OUTCOME = Outcome("gsm8k", "acc", SIDE, SIDE, [{"prompt": "2+2", "wanted": "4", "vanilla": "", "tuned": "4"}], 0)


def test_damage_is_one_line_with_the_path(tmp_path):
    path = tmp_path / "x.json"
    json_file.write(path, {"name": "a", "loss": float("nan")})
    assert json_file.read(path) == {"name": "a", "loss": None}
    path.write_text(path.read_text().replace('"a"', '"b"'))
    with pytest.raises(ValueError, match=r"x\.json is damaged \(it differs from its checksum\)$"):
        json_file.read(path)
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


def test_no_damaged_outcome_is_taken(tmp_path):
    """With a checksum nothing changes; an old file without one has at least the parts that reports need."""
    path, rng = tmp_path / "outcome.json", random.Random(0)
    OUTCOME.write(path)
    old = json.dumps(dataclasses.asdict(OUTCOME)).encode()
    for whole in (path.read_bytes(), old):
        for _ in range(500):
            damaged, start = bytearray(whole), rng.randrange(len(whole))
            damaged[start : start + rng.randint(0, 30)] = rng.choice([b"", b"null", b"[]", b"1e999", rng.randbytes(2)])
            path.write_bytes(damaged)
            try:
                found = Outcome.read(path)
            except ValueError as error:
                assert str(error).startswith(f"{path} is damaged (")  # noqa: PT017
                continue
            assert whole is old or found == OUTCOME
            assert len(found.vanilla.nll) == len(found.tuned.tokens)


@pytest.mark.parametrize(
    "changed",
    [
        {"vanilla": None},
        {"skipped": "0"},
        {"name": ["gsm8k"]},
        {"headline": "exact"},
        {"samples": [{"wanted": "4"}]},
        {"tuned": {"nll": [1.5], "tokens": [3], "scores": {"acc": [1.0]}}},
        {"tuned": {"nll": [1.5, None], "tokens": [3, 4], "scores": {"acc": [1.0, 1.0]}}},
        {"tuned": {"nll": [1.5, "2.5"], "tokens": [3, 4], "scores": {"acc": [1.0, 1.0]}}},
    ],
)
def test_an_outcome_that_no_report_could_use_is_refused(changed, tmp_path):
    path = tmp_path / "outcome.json"
    json_file.write(path, dataclasses.asdict(OUTCOME) | changed)
    with pytest.raises(ValueError, match="is not an outcome"):
        Outcome.read(path)


def test_a_damaged_run_file_is_named_with_the_way_out(tmp_path):
    run_folder.claim(tmp_path, "mine", {"seed": 10})
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace("10", "11"))
    with pytest.raises(UsageError, match=r"run\.json is damaged \(it differs .*: put it back, or .* --overwrite"):
        run_folder.check(tmp_path, "mine")
    assert not run_folder.check(tmp_path, "mine", overwrite=True)


def test_a_damaged_run_file_is_no_config(tmp_path):
    config = load_config("quickstart", ["--data.max_train", "9"])
    path = tmp_path / "run.json"
    json_file.write(path, {"identity": "x", "config": resolved(config)})
    assert load_config(str(path)) == config
    path.write_text(path.read_text().replace('"max_train": 9', '"max_train": 8'))
    with pytest.raises(UsageError, match="is damaged"):
        load_config(str(path))


@pytest.mark.parametrize("seconds", ['{"step": -3}', '{"step": "x"}', "[1]", "null", '{"step": 1e999}'])
def test_a_ledger_that_is_damaged_is_begun_anew_with_a_warning(seconds, tmp_path, capsys):
    path = tmp_path / "goodput.json"
    path.write_text(f'{{"goodput": 0.5, "wall": 2.0, "sessions": 3, "seconds": {seconds}}}')
    assert Ledger(path).sessions == 1
    assert f"warning: {path} is damaged" in capsys.readouterr().err
    Ledger(path).write()
    assert Ledger(path).sessions == 3 - 1
