"""The one door: the list of commands, help without JAX, old spellings, files of settings."""

import importlib
import json
import subprocess
import sys

import pytest

from experiments import cli
from experiments.cli.moved import MOVED
from experiments.config import commands, distill, scale
from experiments.config.bench import BenchTokenizer
from experiments.config.loading import load_config, parse
from experiments.config.old_names import OLD
from experiments.config.overrides import UsageError, apply_overrides, leaves
from experiments.config.schema import PretrainConfig, RunConfig, check, config_hash, digest, resolved
from experiments.config.study import TableRunConfig, shared_identity
from rwkv7_jax.moved import refuse_moved

HEAVY = ("jax", "numpy", "flax", "optax", "matplotlib", "tyro")


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


def test_the_overview_is_one_screen_with_a_verb_for_each_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 28
    assert max(map(len, text.splitlines())) <= 100
    for name, what in cli.COMMANDS.items():
        assert f"  {name} " in text
        assert what.split()[0].rstrip(",").endswith("s")
    assert sum(line.strip().startswith("rwkv7 tune ") for line in text.splitlines()) == 2
    assert cli.main([]) == 2
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("words", [["--help"], ["tune"], ["tune", "--help"]])
def test_help_into_a_pipe_that_is_closed_is_silent(words):
    command = [sys.executable, "-u", "-m", "experiments.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["tune", "--config", "jsonl"], ["[value in jsonl]", "examples a step [8]"]),
        (["tune", "--help", "--config=quickstart"], ["[value in quickstart]", "examples a step [16]"]),
        (["pretrain", "--config", "pretrain_student"], ["[value in pretrain_student]", "width [128]"]),
        (["plan", "--config", "pretrain_student"], ["[value in pretrain_student]", "--topology", "width [128]"]),
        (["plan", "--config", "jsonl"], ["[value in jsonl]", "--topology", "examples a step [8]"]),
        (["study", "--config", "paper_table"], ["study rates:", "study run [value in paper_table]:", "[paper_table]"]),
        (["tune", "--config", "nothing"], ["[default; configs set their own]"]),
    ],
)
def test_help_with_a_config_shows_its_values(words, shown, capsys):
    assert cli.main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in shown)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pretrain", "--config", "quickstart"], "it is a config of rwkv7 tune"),
        (["tune", "--config", "pretrain_student"], "it is a config of rwkv7 pretrain"),
    ],
)
def test_the_config_of_another_command_names_it(words, told, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--topology", "v5e-4"], "quickstart"),
        (["--config", "pretrain_studnt"], "did you mean pretrain_student?"),
        (["--config", "pretrain_student", "--n_lyer", "3"], "unknown key 'n_lyer'; did you mean n_layer?"),
        (["--config", "gsm8k", "--tune.stepss", "3"], "did you mean tune.steps?"),
    ],
)
def test_plan_knows_the_configs_of_both_commands(words, told, capsys):
    assert cli.main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert "pretrain_student" in error or "unknown key" in error


def test_plan_takes_a_file_for_pre_training(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('base = "pretrain_student"\nn_layer = 2\n')
    (tmp_path / "mine.py").write_text(
        "from experiments.config.schema import PretrainConfig\nconfig = PretrainConfig()\n"
    )
    for name in ("mine.toml", "mine.py"):
        assert cli.main(["plan", "--config", str(tmp_path / name)]) == 2
        assert "say for what: --topology" in capsys.readouterr().err


def test_each_command_says_of_itself_what_the_overview_says():
    for name, what in cli.COMMANDS.items():
        first = importlib.import_module(f"experiments.commands.{name}").__doc__.splitlines()[0]
        assert first.split()[0].rstrip(",").lower() == what.split()[0].rstrip(",")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("tun", "error: no command 'tun'; did you mean tune?"),
        ("eval", "error: no command 'eval'"),
        ("zzz", "error: no command 'zzz' (commands: tune, evaluate, "),
    ],
)
def test_a_wrong_command_is_one_line(word, told, capsys):
    assert cli.main([word, "--config", "quickstart"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(told)
    assert error.count("\n") == 1


def test_help_of_every_command_imports_nothing_heavy():
    code = f"""
import sys
from experiments import cli
for name in cli.COMMANDS:
    print("##", name)
    assert cli.main([name, "--help"]) == 0, name
    assert name in ("chat", "doctor", "serve") or cli.main([name]) == 2, name
assert cli.main(["state", "mix", "--help"]) == cli.main(["bench", "gpu", "--help"]) == 0
sys.exit(" ".join(sorted(set({HEAVY!r}) & set(sys.modules))) or 0)
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    for part in done.stdout.split("## ")[1:]:
        name, _, text = part.partition("\n")
        assert name in ("chat", "doctor", "serve") or f"rwkv7 {name} --help lists every setting." in text
        assert f"    rwkv7 {name} " in text


def test_the_version_is_one_line():
    done = python("-m", "experiments.cli", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("rwkv7-jax ")


def test_verbs_of_a_command_are_suggested(capsys):
    assert cli.main(["state", "scal", "x.st"]) == 2
    assert capsys.readouterr().err == "error: rwkv7 state: no 'scal'; did you mean scale?\n"
    assert cli.main(["bench", "speed"]) == 2
    assert "(there are: model, decode, serve, steps, tokenizer, evaluation, kernels, gpu)" in capsys.readouterr().err
    assert cli.main(["convert", "model.pth"]) == 2
    assert capsys.readouterr().err.startswith("error: target is missing")
    assert cli.main(["state", "scale", "a.st", "--output", "b.st"]) == 2
    assert capsys.readouterr().err == "error: by is missing (factor): --by VALUE\n"


TREES = {
    "tune": RunConfig(),
    "evaluate": commands.Evaluate(),
    "generate": commands.Generate(),
    "distill": distill.Distill(),
    "scale": scale.Scale(),
    "pretrain": PretrainConfig(),
    "state": commands.StateConvert(),
}


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("evaluate", "--checkpoint", "model.checkpoint"),
        ("generate", "--tokenizer", "model.tokenizer"),
        ("generate", "--dtype", "model.dtype"),
        ("evaluate", "--wkv", "model.wkv"),
        ("generate", "--no-cache", "system.compilation_cache false"),
        ("pretrain", "--no-cache", "compilation_cache false"),
        ("evaluate", "--tasks", "data.tasks"),
        ("evaluate", "--data-dir", "data.dir"),
        ("evaluate", "--folder", "output"),
        ("evaluate", "--state", "states"),
        ("evaluate", "--num-fewshot", "shots"),
        ("evaluate", "--include-path", "lm_eval.include_path"),
        ("evaluate", "--apply-chat-template", "lm_eval.apply_chat_template"),
        ("tune", "--output-dir", "output"),
        ("tune", "--output_dir", "output"),
        ("pretrain", "--output_dir", "output"),
        ("tune", "--rate", "tune.learning_rate"),
        ("tune", "--rates", "tune.learning_rate"),
        ("tune", "--max-new-tokens", "evaluate.max_new_tokens"),
        ("tune", "--max-records", "evaluate.max_records"),
        ("distill", "--out", "output"),
        ("distill", "--rate", "tune.learning_rate"),
        ("distill", "--steps", "tune.steps"),
        ("distill", "--text", "data.train"),
        ("scale", "--task", "data.tasks"),
        ("scale", "--data", "data.file"),
        ("scale", "--match", "data.match"),
        ("scale", "--max-records", "limit"),
        ("scale", "--rate", "adapt.rate"),
        ("scale", "--chain-steps", "adapt.chain_steps"),
        ("scale", "--teacher", "teacher.checkpoint"),
        ("scale", "--teacher-model", "teacher.model"),
        ("scale", "--replay", "teacher.replay"),
        ("state", "--source-layout", "layout"),
    ],
)
def test_an_old_spelling_names_the_new_one(command, old, new):
    with pytest.raises(UsageError) as error:
        apply_overrides(TREES[command], [old, "1"])
    key = old.removeprefix("--").replace("-", "_")
    assert str(error.value) == f"unknown key {key!r}; it is now --{new}"
    assert new.split()[0] in dict(leaves(TREES[command]))


def test_every_old_name_is_a_setting_of_some_command_today():
    now = {key for tree in [*TREES.values(), commands.Sweep()] for key, _ in leaves(tree)}
    assert [new for names in OLD.values() for new in names if new.partition(" ")[0] not in now] == []


@pytest.mark.parametrize("module", ["experiments.evaluate", "experiments.plan", "experiments.bench.steps"])
def test_an_old_module_names_the_command(module):
    done = python("-m", module, "--config", "quickstart")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: python -m {module} is now: {MOVED[module]}\n"


def test_only_moved_modules_are_refused(capsys):
    refuse_moved(MOVED, ["-m"], ["python", "-m", "experiments.run", "--config", "experiments.sweep"])
    refuse_moved(MOVED, ["pytest"], ["python", "-m", "experiments.sweep"])
    refuse_moved(MOVED, ["-m"], ["python", "-m"])
    with pytest.raises(SystemExit):
        refuse_moved(MOVED, ["-m"], ["python", "-m", "experiments.sweep"])
    assert capsys.readouterr().err == "error: python -m experiments.sweep is now: rwkv7 sweep\n"


def test_a_toml_file_starts_from_a_named_config(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("""
base = "quickstart"
name = "mine"
[tune]
steps = 7
learning_rate = 1
[data]
tasks = ["pocket:arc"]
[method]
kind = "upscale"
size = 96
[report]
plots = false
""")
    config = load_config(str(file), ["--tune.steps", "9"])
    assert (config.name, config.tune.steps, config.tune.learning_rate) == ("mine", 9, 1.0)
    assert (config.data.tasks, config.data.batch_size) == (("pocket:arc",), 16)
    assert (config.method.kind, config.method.size) == ("upscale", 96)
    assert config.report.plots is False


def test_what_a_run_saves_is_a_config(tmp_path):
    config = load_config("quickstart", ["--method.kind", "dbp", "--method.rate", "0.2", "--data.max_train", "9"])
    (tmp_path / "run.json").write_text(json.dumps({"identity": "x", "config": resolved(config)}))
    assert load_config(str(tmp_path / "run.json")) == config
    (tmp_path / "plain.json").write_text(json.dumps({"base": "run.json", "seed": 3}))
    assert load_config(str(tmp_path / "plain.json")).seed == 3


def test_commands_that_are_not_runs_take_files_too(tmp_path):
    (tmp_path / "generate.toml").write_text('prompt = "a"\nstop = ["x,y", "z"]\n[model]\ncheckpoint = "m.pth"\n')
    config = parse(commands.Generate(), ["--config", str(tmp_path / "generate.toml"), "--seed", "4"])
    assert (config.prompt, config.stop, config.seed) == ("a", ("x,y", "z"), 4)
    assert (config.model.checkpoint, config.model.dtype) == ("m.pth", "float32")
    (tmp_path / "generate.py").write_text(
        "from experiments.config.commands import Generate\nconfig = Generate(prompt='b')\n"
    )
    assert parse(commands.Generate(), ["--config", str(tmp_path / "generate.py")]).prompt == "b"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "[tune]\nstepss = 3\n", "unknown key 'tune.stepss'; did you mean tune.steps?"),
        ("a.toml", "output_dir = 'x'\n", "unknown key 'output_dir'; it is now --output"),
        ("a.toml", "[tune]\nsteps = 1.5\n", "tune.steps: '1.5' is not a whole number"),
        ("a.toml", "[tune\n", "Expected"),
        ("a.json", "[1]", "a table of settings is needed, not list"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", '{"base": 3}', "base: the name or path of a config is needed"),
        ("a.json", '{"base": "quikstart"}', "no config 'quikstart'; did you mean quickstart?"),
    ],
)
def test_mistakes_in_a_file_are_one_line_with_its_name(name, text, told, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(str(path))
    assert told in str(error.value)
    assert str(path) in str(error.value) or "base" in text
    assert "\n" not in str(error.value)


def test_tables_of_methods_belong_into_python(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('base = "paper_table"\n[rows.standard.rates]\nmmlu = 1.0\n')
    with pytest.raises(UsageError, match="unknown key 'rows"):
        load_config(str(path))


def test_positional_words_go_before_keys_or_behind_them():
    config = parse(commands.Convert(), ["--dtype", "float16", "a.pth", "b=c.bin"])
    assert config == commands.Convert("a.pth", "b=c.bin", "float16")
    assert parse(BenchTokenizer(), ["a,b.txt", "c.txt"]).files == ("a,b.txt", "c.txt")


IDENTITIES = {
    "quickstart": "a1e060b73271f77f96fc7937fbcf5e1f9d73384d8e8842d335a35c6084ed3adf",
    "gsm8k": "344697a244961ddfea963b0d00887b540f9e0a40e7af01401a5491e9fff5f2e8",
    "jsonl": "5af2aa6cc453c2cbbf70aaa1b0d190c07539b7b987271bf91be65d6dc582e271",
    "paper_table": "6fd0ef920b8dd3fb58dfe657206c0055fb352ed9859acf7b20b14114b3f835cc",
    "paper_table_fast": "a90ddbfebd1c8d25e9433d3e1a85aff9c3a97d9065b167d16e37e9ecb785879c",
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identity_of_runs_that_were_begun_before_stays(name):
    """With the names of benchmarks and settings that were in use when 90e92f9 was committed, and its learning rates."""
    before = ["--tune.learning_rate", "0.01"] if name in ("jsonl", "gsm8k") else []
    assert config_hash(load_config(name, before)) == IDENTITIES[name]


def test_the_identity_of_tables_and_pre_training_stays():
    names = ("paper_table", "paper_table_fast")
    shared = {name: shared_identity(load_config(name, (), TableRunConfig)) for name in names}
    assert shared == {
        "paper_table": "e4339a544e9102c03dac188755ed0376a40d4ec4bbf360b028876ec3121f2553",
        "paper_table_fast": "e83d17311f53ee3feac1309f119545262a94e68cf592b7615f99f620448b1151",
    }
    from experiments.training.pretraining import BOOKKEEPING

    student = load_config("pretrain_student", (), PretrainConfig)
    wanted = "7fee513451d453ad1608f6f16019db58e1696c903a1596b2da49afe5f3fbde7d"
    assert digest(resolved(student, without=BOOKKEEPING)) == wanted


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.tasks=mmlu"], "mmlu is the real benchmark: give --data.dir FOLDER, or use pocket:mmlu"),
        (["--data.tasks=pocket:arc", "--data.train=x.jsonl"], "with data.train write arc, the kind of records"),
        (["--data.tasks=pocket:arc,arc", "--data.dir=x"], "pocket:arc, arc: one folder for two of them"),
    ],
)
def test_a_benchmark_without_a_source_is_one_line(words, told):
    with pytest.raises(UsageError, match=told):
        check(apply_overrides(RunConfig(), words))


def test_a_real_benchmark_and_a_pocket_one_have_identities_of_their_own():
    hashes = {
        config_hash(apply_overrides(RunConfig(), words))
        for words in (
            ["--data.tasks=pocket:arc"],
            ["--data.tasks=arc", "--data.dir=x"],
            ["--data.tasks=pocket:arc", "--data.dir=x"],
        )
    }
    assert len(hashes) == 3
