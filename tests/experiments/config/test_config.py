"""Configs by name and path, dotted overrides, and the one line that each mistake gets."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import build, run
from experiments.config import commands, scale
from experiments.config.loading import config_names, load_config, split_config
from experiments.config.overrides import UsageError, apply_overrides, leaves, suggest
from experiments.config.schema import OUTSIDE, PretrainConfig, RunConfig, check, config_hash, identified, resolved
from state_tuning.core import train


@pytest.mark.parametrize("form", [["--tune.steps", "7"], ["--tune.steps=7"], ["tune.steps=7"]])
def test_every_form_of_override(form):
    assert apply_overrides(RunConfig(), form).tune.steps == 7


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("tune.learning_rate=nan", "must be finite"),
        ("tune.learning_rate=inf", "must be finite"),
        ("tune.learning_rate=0", "must be above 0"),
        ("tune.learning_rate=-1", "must be above 0"),
        ("tune.alpha=0", "must not be 0"),
        ("tune.alpha=nan", "must be finite"),
        ("tune.l2=nan", "must be finite"),
        ("tune.l2=inf", "must be finite"),
        ("tune.clip_norm=nan", "must be finite"),
        ("tune.final_fraction=2", "between 0 and 1"),
        ("tune.final_fraction=nan", "must be finite"),
        ("tune.steps=0", "at least 1"),
        ("tune.accumulate=0", "at least 1"),
        ("tune.warmup=-1", "must not be negative"),
        ("tune.segment=-1", "must not be negative"),
        ("tune.exact_segments=-1", "must not be negative"),
        ("data.max_length=1", "at least 2"),
        ("data.batch_size=0", "at least 1"),
        ("evaluate.max_records=1", "at least 2"),
        ("seed=-1", "from 0 to"),
        ("seed=4294967296", "from 0 to"),
        ("system.validate_every=-1", "must not be negative"),
        ("system.validate_records=0", "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(word, told):
    with pytest.raises(UsageError, match=rf"^{word.partition('=')[0]}: .*{told}"):
        apply_overrides(RunConfig(), [word])


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (RunConfig(), "output=gs://bucket/run"),
        (RunConfig(), "data.train=https://host/my.jsonl"),
        (RunConfig(), "model.checkpoint=gs://bucket/model.pth"),
        (PretrainConfig(), "output=s3://bucket/run"),
        (commands.Evaluate(), "states=none,gs://bucket/state.safetensors"),
        (scale.Scale(), "teacher.checkpoint=gs://bucket/model.pth"),
        (scale.Scale(), "model.checkpoint=http://host/model.pth"),
        (commands.Convert(), "gs://bucket/model.pth"),
        (commands.PocketText(), "output=gs://bucket/x.txt"),
    ],
)
def test_an_address_in_the_place_for_a_path_is_one_line(config, word):
    with pytest.raises(UsageError, match=r"^[a-z.]+: '[a-z0-9]+://.*' is an address; give a local path"):
        apply_overrides(config, [word])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (scale.Scale(), "adapt.rate"),
        (scale.Scale(), "teacher.timeout"),
        (commands.Generate(), "top_p"),
        (commands.Sweep(), "tune.learning_rate"),
        (PretrainConfig(), "muon_rate"),
        (commands.StateMix(), "weight"),
        (commands.StateScale(), "by"),
    ],
)
def test_no_setting_of_any_command_is_infinite(config, key):
    for text in ("nan", "inf", "-Infinity", "1e999"):
        with pytest.raises(UsageError, match=f"^{key}: {text} must be finite$"):
            apply_overrides(config, [f"{key}={text}"])


def test_a_teacher_may_have_an_address_and_a_prompt_may_hold_one():
    words = ["teacher.checkpoint=https://host/v1"]
    assert apply_overrides(scale.Scale(), words).teacher.checkpoint == "https://host/v1"
    assert apply_overrides(commands.Generate(), ["prompt=gs://bucket", "stop=http://"]).stop == ("http://",)


@pytest.mark.parametrize("name", ["jsonl", "gsm8k", "mmlu", "winogrande", "arc"])
def test_the_learning_rate_that_is_taken_by_default_is_one_that_sweeps_find(name):
    """docs/quickstart.md and docs/results.md: state tuning wants 0.1 to 3, LoRA 0.01."""
    words = ["--data.train", "my.jsonl", "--data.dir", "none", "--data.tasks", ""]
    assert check(load_config(name, words)).tune.learning_rate == 1.0
    lora = ["--method.kind", "baseline", "--method.name", "lora"]
    assert check(load_config(name, [*words, *lora])).tune.learning_rate == 0.01
    assert check(load_config(name, [*words, "--tune.learning_rate", "0.3"])).tune.learning_rate == 0.3
    assert check(load_config("quickstart")).tune.learning_rate == 1.0


def test_types_of_values():
    words = ["--tune.learning-rate", "1e-3", "--data.tasks=mmlu, arc", "data.max_train=none", "--overwrite"]
    config = apply_overrides(RunConfig(), [*words, "--report.plots", "false", "--output", "x/y"])
    assert config.tune.learning_rate == 1e-3
    assert config.data.tasks == ("mmlu", "arc")
    assert config.data.max_train is None
    assert config.overwrite is True
    assert config.report.plots is False
    assert config.output == "x/y"


def test_negative_number_is_a_value():
    with pytest.raises(UsageError, match=r"^tune\.l2: must not be negative$"):
        apply_overrides(RunConfig(), ["--tune.l2", "-1"])


@settings(max_examples=30)
@given(st.data())
def test_every_scalar_setting_round_trips(data):
    """Writing a setting's own value as an override gives the same config."""
    key, leaf = data.draw(st.sampled_from(list(leaves(RunConfig()))))
    text = ",".join(leaf.value) if isinstance(leaf.value, tuple) else str(leaf.value)
    assert apply_overrides(RunConfig(), [f"{key}={text}"]) == RunConfig()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--tune.stepss", "3"], "unknown key 'tune.stepss'; did you mean tune.steps?"),
        (["--tune.lr=3"], "unknown key 'tune.lr'; did you mean tune.learning_rate?"),
        (["--learning_rate=3"], "unknown key 'learning_rate'; did you mean tune.learning_rate?"),
        (["--tune.learning_rat=3"], "unknown key 'tune.learning_rat'; did you mean tune.learning_rate?"),
        (["--zzz=3"], "unknown key 'zzz'; --help lists the keys"),
        (["--tune=3"], "unknown key 'tune'; it is a group, name a setting such as tune.steps"),
        (["--tune.steps"], "tune.steps needs a value: --tune.steps VALUE"),
        (["--tune.steps", "--seed", "3"], "tune.steps needs a value: --tune.steps VALUE"),
        (["--tune.steps=x"], "tune.steps: 'x' is not a whole number"),
        (["--tune.steps=1.5"], "tune.steps: '1.5' is not a whole number"),
        (["--tune.steps=0"], "tune.steps: must be at least 1"),
        (["--tune.learning_rate=fast"], "tune.learning_rate: 'fast' is not a number"),
        (["--report.plots=maybe"], "report.plots: 'maybe' is not true or false"),
        (
            ["--tune.schedule=cosin"],
            "tune.schedule: 'cosin' is not one of constant, linear, cosine; did you mean cosine?",
        ),
        (["--seed.a=1"], "unknown key 'seed.a'; seed is one setting, not a group"),
        (["quickstart"], "argument 'quickstart' is not understood: write --key value or key=value"),
    ],
)
def test_mistakes_are_one_line(words, line):
    with pytest.raises(UsageError) as error:
        apply_overrides(RunConfig(), words)
    assert str(error.value) == line


def test_suggestions_are_near_words_only():
    assert suggest("quikstart", ["quickstart", "jsonl"]) == "; did you mean quickstart?"
    assert suggest("banana", ["quickstart", "jsonl"]) == ""


def test_all_configs_of_the_project_load():
    for name in config_names(RunConfig):
        assert isinstance(load_config(name), RunConfig)
    assert check(load_config("quickstart")).data.tasks == tuple(
        f"pocket:{name}" for name in ("mmlu", "gsm8k", "winogrande", "arc")
    )


def test_config_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from experiments.config.schema import RunConfig\ndef get_config():\n    return RunConfig(name='mine')\n"
    )
    assert load_config(str(path), ["--seed", "3"]) == RunConfig(name="mine", seed=3)


def test_a_base_that_leads_back_or_does_not_exist_is_one_line_that_names_the_file(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text('base = "./second.toml"')
    second.write_text('base = "first.toml"')
    with pytest.raises(UsageError) as error:
        load_config(str(first))
    assert str(error.value) == f"{second}: base: {first} has this file as its own base"
    second.write_text('base = "quikstart"')
    with pytest.raises(UsageError) as error:
        load_config(str(first))
    assert str(error.value).startswith(f"{second}: base: no config 'quikstart'; did you mean quickstart?")


@pytest.mark.parametrize(("word", "meant"), [("quickstart", "--config quickstart"), ("--conifg", "--config")])
def test_a_command_without_its_config_says_what_was_meant(word, meant):
    with pytest.raises(UsageError) as error:
        split_config([word, "x"])
    assert str(error.value).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("config = 3\n", "defines no `config = RunConfig(...)`"),
        ("import nothing_like_this\n", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("config = (\n", "mine.py, line 1)"),
    ],
)
def test_wrong_config_file_is_one_line(tmp_path, text, end):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(str(path))
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith(end)
    assert "\n" not in str(error.value)


def test_resolved_config_is_plain_and_the_hash_ignores_bookkeeping():
    base = RunConfig()
    assert resolved(base)["tune"]["steps"] == base.tune.steps
    moved = apply_overrides(base, ["--output", "b", "--overwrite", "--system.log_every", "3", "--resume", "no"])
    assert config_hash(moved) == config_hash(base)
    assert config_hash(apply_overrides(base, ["--tune.l2", "0.5"])) != config_hash(base)
    assert config_hash(apply_overrides(base, ["--data.learn", "all"])) != config_hash(base)
    assert config_hash(apply_overrides(base, ["--data.template", "g1"])) != config_hash(base)
    patient = apply_overrides(base, ["--tune.patience", "2"])
    assert config_hash(patient) != config_hash(base)
    assert config_hash(apply_overrides(patient, ["--system.validate_every", "7"])) != config_hash(patient)


def test_settings_that_came_later_do_not_change_the_hash_of_what_does_not_use_them():
    told = identified(RunConfig())
    assert "template" not in told["data"]
    assert "patience" not in told["tune"]
    assert "held_out" not in told
    assert config_hash(RunConfig()) == "8fe6893b32d1046fe2d9b744ae2aa23ab2d5843df806408393b1b37a2d51bb93"


def test_tune_settings_reach_state_tuning_unchanged():
    mine = apply_overrides(RunConfig(), ["--tune.l2", "0.5", "--tune.tune_shifts", "--tune.alpha", "2"]).tune
    theirs = build.tune_config(mine)
    own = {field.name for field in dataclasses.fields(mine)} - set(OUTSIDE)
    assert own <= {field.name for field in dataclasses.fields(theirs)}
    assert (mine.learning_rate, theirs.learning_rate) == (None, 1.0)
    assert (theirs.l2, theirs.tune_shifts, theirs.alpha, theirs.steps) == (0.5, True, 2.0, mine.steps)
    assert isinstance(theirs, train.TuneConfig)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--config", "quikstart"], "error: no config 'quikstart'; did you mean quickstart?"),
        (["--config", "no/such.py"], "error: no config 'no/such.py'"),
        (["--confg", "quickstart"], "error: say what to run: --config NAME"),
        (["--config", "quickstart", "--data.train", "x.jsonl"], "error: data.train goes with one task at most"),
        (["--config", "jsonl"], "error: nothing to tune on: give --data.train my.jsonl"),
        (["--config", "jsonl", "--data.train", "/no/such.jsonl"], "error: no file /no/such.jsonl"),
        (["--config", "quickstart", "--data.tasks", "arcc"], "error: data.tasks: no task 'arcc'; did you mean arc?"),
        (["--config", "quickstart", "--tune.accumulate", "3"], "error: data.batch_size (16) is not a multiple of"),
        (["--config", "quickstart", "--model.checkpoint", "pocket/studnt"], "error: model.checkpoint: no file"),
    ],
)
def test_command_line_mistakes_exit_with_2_and_one_line(argv, line, capsys, tmp_path):
    assert run.main([*argv, "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_lists_configs_and_keys_without_loading_jax():
    code = "import sys; from experiments import run; assert run.main(['--help']) == 0; assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
    assert "--tune.learning_rate" in done.stdout
