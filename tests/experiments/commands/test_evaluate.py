"""The evaluation command on a tiny model: tables, JSON, states side by side, comparison, resume, one-line errors."""

import json

import jax
import numpy as np
import pytest

from experiments.commands.evaluate import main
from experiments.commands.work.evaluate import short_names
from experiments.config.overrides import UsageError
from experiments.evaluation import engine as engine_module
from experiments.reporting import statistics
from experiments.reporting.result_store import Store
from experiments.training import distributed
from rwkv7_jax import zero_state
from rwkv7_jax.checkpoint.states import save_state


@pytest.fixture(scope="module")
def state_file(tiny, tmp_path_factory):
    zero = zero_state(tiny.model.config, None)
    path = tmp_path_factory.mktemp("state") / "tuned.safetensors"
    state = zero._replace(wkv=jax.random.normal(jax.random.key(0), zero.wkv.shape))
    save_state(path, state, metadata={"base_model_hash": tiny.weights_hash, "method": "random"})
    return path


@pytest.fixture(scope="module")
def argv(tiny_checkpoint, state_file):
    words = "--data.tasks pocket:winogrande,pocket:gsm8k --limit 6 --batch-size 4 --max-new-tokens 5 --model.wkv scan"
    more = ["--system.compilation_cache", "no", "--model.checkpoint", str(tiny_checkpoint)]
    return [*words.split(), *more, "--states", f"none,{state_file}"]


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory):
    """An undisturbed evaluation's folder and JSON."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "PORTION", 12)
        assert main([*argv, "--output", str(folder), "--json", str(folder / "out.json")]) == 0
    return folder, json.loads((folder / "out.json").read_text())


def test_json_holds_every_sample_and_number(whole, state_file):
    _, body = whole
    assert list(body["states"]) == ["none", "tuned"]
    assert body["config"]["data"] == {"tasks": ["pocket:winogrande", "pocket:gsm8k"], "dir": None, "chain": None}
    assert body["states"]["tuned"]["file"] == str(state_file)
    for task, metric in (("pocket:winogrande", "acc"), ("pocket:gsm8k", "strict_match")):
        samples, result = body["samples"][task], body["results"][task]
        assert "0 shots, split test, prefix tokens none, the first 6 records" in result["protocol"]
        for state in body["states"]:
            mine = [sample["scores"][metric] for sample in samples if sample["state"] == state]
            assert result["means"][metric][state][task]["value"] == pytest.approx(np.mean(mine))
            assert result["means"][metric][state][task]["count"] == len(mine)
        assert list(result["paired"]) == ["tuned"]
    first, second = (
        [s["results"] for s in body["samples"]["pocket:winogrande"] if s["state"] == state] for state in body["states"]
    )
    assert first != second
    assert all(set(s["record"]) == {"question", "answer"} for s in body["samples"]["pocket:gsm8k"])


def test_rows_cut_over_devices_give_the_same_numbers(argv, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "devices", jax.devices)
    monkeypatch.setattr(engine_module, "PORTION", 12)
    words = [*argv, "--mesh.sequence", "4", "--mesh.data", "-1"]
    assert main([*words, "--output", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    found, wanted = json.loads((tmp_path / "out.json").read_text()), whole[1]
    assert found["config"] == wanted["config"]
    for task, samples in wanted["samples"].items():
        for one, other in zip(found["samples"][task], samples, strict=True):
            for got, value in zip(one["results"], other["results"], strict=True):
                assert got == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4))


def test_the_json_of_a_single_record_opens_in_any_reader(argv, tmp_path):
    words = [*argv[: argv.index("--limit")], "--limit", "1", *argv[argv.index("--limit") + 2 :]]
    assert main([*words, "--output", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    body = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert body["results"]["pocket:winogrande"]["means"]["acc"]["none"]["pocket:winogrande"]["error"] is None


def test_a_stopped_evaluation_goes_on(whole, argv, tmp_path, monkeypatch, capsys):
    _, body = whole
    monkeypatch.setattr(engine_module, "PORTION", 12)
    work, calls = engine_module.Engine.samples, []

    def stopping(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return work(self, *args)

    monkeypatch.setattr(engine_module.Engine, "samples", stopping)
    command = [*argv, "--output", str(tmp_path), "--json", str(tmp_path / "out.json")]
    assert main(command) == 130
    assert "run the same command to resume" in capsys.readouterr().err
    assert main(command) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == body
    resumed = len(calls) - 3
    assert main([*command, "--overwrite"]) == 0
    assert len(calls) - 3 - resumed == resumed + 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--data.tasks mmul", "tasks: no task 'mmul'; did you mean mmlu"),
        ("--data.tasks gsm8k", "gsm8k: say where its files lie with --data.dir, or use pocket:gsm8k"),
        ("--data.tasks pocket:arc --shots arc=5", "a setting for 'arc', which is not among the tasks: pocket:arc"),
        ("--data.tasks pocket:arc --shots five", "'five' is not understood: write TASK=VALUE"),
        ("--data.tasks pocket:arc --shots pocket:arc=x", "--shots: 'x' is not a whole number"),
        ("--data.tasks pocket:arc,lm_eval:hellaswag", "evaluate pocket:arc in another command"),
        ("--data.tasks lm_eval:arc_easy --split arc_easy=test", "split: tasks of the harness have their own"),
        ("--data.tasks lm_eval:arc_easy --states none,x.st", "tasks of the harness are run from one state"),
        ("--limit 3", "data.tasks is missing (names, by commas): --data.tasks VALUE"),
        ("--data.tasks pocket:arc --limit 0", "--limit: 0 must be at least 1"),
        ("--data.tasks pocket:arc --batch_size 0", "batch_size and max_new_tokens must be at least 1"),
        ("--data.tasks pocket:gsm8k --max_new_tokens -5", "batch_size and max_new_tokens must be at least 1"),
        ("--data.tasks pocket:arc --split pocket:arc=dev", "unknown split 'dev'"),
        ("--data.tasks pocket:mmlu_rwkv --shots pocket:mmlu_rwkv=1", "zero-shot protocol"),
        ("--data.tasks pocket:arc --states nowhere.st", "nowhere.st: No such file or directory"),
        ("--data.tasks pocket:arc --json tests", "is a folder; give the name of a file in it"),
    ],
)
def test_errors_are_one_line(words, line, tiny_checkpoint, tmp_path, capsys):
    assert main(["--model.checkpoint", str(tiny_checkpoint), "--output", str(tmp_path), *words.split()]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_prefix_token_that_the_model_does_not_have_is_named(tiny_checkpoint, tmp_path, capsys):
    words = ["--data.tasks", "pocket:arc", "--limit", "2", "--prefix_token", "5000", "--output", str(tmp_path)]
    assert main(["--model.checkpoint", str(tiny_checkpoint), *words]) == 2
    assert "error: prefix token 5000 is outside of the model's vocabulary of 256\n" in capsys.readouterr().err


def test_store_refuses_another_evaluation_and_forgets_a_cut_line(tmp_path):
    store = Store(tmp_path / "x.jsonl", "mine")
    store.add("a", [{"index": 0}])
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"portion": "b", "sam')
    assert Store(tmp_path / "x.jsonl", "mine").done == {"a": [{"index": 0}]}
    with pytest.raises(UsageError, match="holds another evaluation"):
        Store(tmp_path / "x.jsonl", "other")
    assert Store(tmp_path / "x.jsonl", "other", overwrite=True).done == {}


def test_states_are_called_by_as_much_as_tells_them_apart():
    assert short_names(["none", "runs/a/state.st"]) == ["none", "state"]
    assert short_names(["runs/a/state.st", "runs/b/state.st"]) == ["a/state", "b/state"]


def test_statistics():
    assert statistics.mean([1, 0, 0, 1]) == pytest.approx((0.5, (1 / 12) ** 0.5, 4))
    one, two = statistics.mean([1, 0, 1]), statistics.mean([0, 0, 1, 1, 1])
    pooled = statistics.pooled([one, two])
    variance = ((2 / 3) + (6 / 5)) / (8 - 2)
    assert pooled == pytest.approx((5 / 8, (variance / 8) ** 0.5, 8))
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 5) == 1.0
    assert statistics.mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)
    assert statistics.mcnemar(9, 1) == statistics.mcnemar(1, 9)
