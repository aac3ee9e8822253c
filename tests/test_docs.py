"""Every command line and every Python block of README and docs runs as printed, on the embedded model.

By default one command line of each kind runs and all others are parsed; RWKV7_ALL_COMMANDS=1 runs them all. Settings
that make a command small are added behind the printed ones.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
POCKET = ROOT / "experiments" / "assets" / "pocket"
SPOKEN = re.compile(r"`((?:rwkv7|python -m (?:experiments|pallas_kernels|rwkv7_jax))[^`]*)`")


class Line(NamedTuple):
    """A command line as printed."""

    where: str
    words: list[str]


def name_of(page: pathlib.Path) -> str:
    """A page's name in messages."""
    return str(page.relative_to(ROOT)).removeprefix("docs/")


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line number, language, text) of every fenced block and every indented one."""
    lines, language, begin, fence = text.splitlines(), "", 0, False
    held: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.startswith("```"):
            if fence:
                yield begin, language, "\n".join(held)
            language, begin, fence, held = line[3:].strip(), number + 1, not fence, []
        elif fence:
            held.append(line)
        elif line.startswith("    "):
            begin, held = (begin, held) if held else (number, [])
            held.append(line[4:])
        elif held:
            yield begin, "indented", "\n".join(held)
            held = []


def command_lines() -> list[Line]:
    found = []
    for page in PAGES:
        for begin, _, text in blocks(page.read_text(encoding="utf-8")):
            joined = text.replace("\\\n", " ")
            for offset, line in enumerate(joined.splitlines()):
                words = shlex.split(line, comments=True) if line.startswith(("rwkv7 ", "python -m ")) else []
                if words:
                    found.append(Line(f"{name_of(page)}:{begin + offset}", words))
        spoken = SPOKEN.findall(page.read_text(encoding="utf-8"))
        found += [Line(f"{name_of(page)}, in the text", shlex.split(text)) for text in spoken]
    return found


def python_blocks() -> list[tuple[str, str]]:
    """(place, text) of every block of Python; one that stands on several pages counts once."""
    found: dict[str, str] = {}
    for page in PAGES:
        for begin, language, text in blocks(page.read_text(encoding="utf-8")):
            if language == "python":
                found.setdefault(text, f"{name_of(page)}:{begin}")
    return [(where, text) for text, where in found.items()]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with every file that the pages name: the embedded models, small data, states."""
    import jax.numpy as jnp

    from experiments.cli import main
    from experiments.pocket import benchmarks
    from experiments.tasks import TASKS
    from rwkv7_jax import LanguageModel, load_state, save_state, zero_state

    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(POCKET / "tokenizer.json", folder)
    for name, target in (("student", "model.pth"), ("teacher", "larger.pth")):
        assert main(["convert", str(POCKET / f"{name}.safetensors"), str(folder / target)]) == 0
    lm = LanguageModel.load(folder / "model.pth")
    start = zero_state(lm.config, None)
    state = start._replace(wkv=jnp.full_like(start.wkv, 0.01))
    for name in ("state", "tuned", "a", "b"):
        save_state(folder / f"{name}.safetensors", state, metadata={"base_model_hash": lm.weights_hash})
    assert load_state(folder / "a.safetensors").metadata["base_model_hash"] == lm.weights_hash
    for name in ("gsm8k", "winogrande"):
        splits = {"gsm8k": {"train": "train", "test": "test"}, "winogrande": {"train_xl": "train", "dev": "test"}}[name]
        (folder / "data" / name).mkdir(parents=True)
        for file, split in splits.items():
            records = list(benchmarks.load(name, split))[:40]
            text = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "data" / name / f"{file}.jsonl").write_text(text, encoding="utf-8")
    pairs = [TASKS["gsm8k"].to_example(record) for record in list(benchmarks.load("gsm8k", "train"))[:60]]
    lines = [json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in pairs]
    (folder / "my.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "system.txt").write_text(pairs[0][0], encoding="utf-8")
    return folder


SMALL = {
    "tune": "--tune.steps 2 --evaluate.max_records 4 --evaluate.max_new_tokens 4 --data.max_train 40",
    "evaluate": "--limit 2 --max_new_tokens 4 --shots 0 --overwrite",
    "generate": "--max_new_tokens 4",
    "distill": "--tune.steps 2 --texts 4 --length 8 --batch_size 2",
    "scale": "--limit 2 --batch_size 2 --adapt.steps 1 --adapt.samples 2 --adapt.max_new_tokens 4",
    "sweep": "--tune.learning_rate 0.1,1 --seeds 0 --tune.steps 2 --data.tasks pocket:arc --output s",
    "pretrain": "--steps 2 --batch_size 2 --length 16 --n_layer 2 --n_embd 64 --validate_every 2",
}
"""Settings that make a command small."""
LONG = ("study", "plan", "bench", "sweep", "pretrain", "observe", "serve", "chat")
"""Commands that are parsed alone, unless all of them are wanted: the tests of their folders run them."""
NEEDS = ("lm_eval:", "http://", "--mesh.", "mmlu,gsm8k", "python -m pallas_kernels", "tfds_mmlu", "bench gpu")
"""What a machine may lack: optional packages, a server, several devices, MMLU's own files, a GPU."""


def arguments(line: Line) -> list[str]:
    """What `rwkv7` gets; `python -m experiments.run` is `rwkv7 tune`."""
    words = line.words[1:] if line.words[0] == "rwkv7" else ["tune", *line.words[3:]]
    return ["quickstart" if word == "NAME" and words[0] == "tune" else word for word in words]


def kind(line: Line) -> str:
    """What a line does: the command, with its verb or method."""
    words = arguments(line)
    has_verb = len(words) > 1 and not words[1].startswith("-") and words[0] in ("state", "bench", "study")
    return " ".join(words[: 1 + has_verb])


def is_command(line: Line) -> bool:
    return line.words[0] == "rwkv7" or line.words[:3] == ["python", "-m", "experiments.run"]


def chosen_lines() -> list[Line]:
    """The first line of each kind that may run here; all of them with RWKV7_ALL_COMMANDS."""
    found: dict[str, Line] = {}
    for line in command_lines():
        text = " ".join(line.words)
        complete = is_command(line) and "in the text" not in line.where and "..." not in text
        if complete and kind(line).split()[0] not in LONG and not any(need in text for need in NEEDS):
            found.setdefault(text if os.environ.get("RWKV7_ALL_COMMANDS") else kind(line), line)
    return list(found.values())


@pytest.mark.parametrize("line", chosen_lines(), ids=lambda line: line.where)
def test_command_lines_run_as_printed(line, workspace, monkeypatch, capsys):
    from experiments.cli import main

    monkeypatch.chdir(workspace)
    words = arguments(line)
    if words[0] == "tune":
        shutil.rmtree("runs", ignore_errors=True)
    for word in words:
        if word.startswith("runs/") and word.endswith("/state.safetensors") and not pathlib.Path(word).is_file():
            pathlib.Path(word).parent.mkdir(parents=True)
            shutil.copy("state.safetensors", word)
    status = main([*words, *shlex.split(SMALL.get(words[0], ""))])
    said = capsys.readouterr()
    assert status in (0, 1) if words[0] in ("tune", "doctor") else status == 0, said.err
    assert "error" not in said.err


def test_every_command_line_is_understood(workspace, monkeypatch, capsys):
    """All settings of all printed lines are known: adding a wrong one, that one alone is refused."""
    from experiments.cli import COMMANDS, main

    monkeypatch.chdir(workspace)
    for line in command_lines():
        words = arguments(line)
        spoken = "in the text" in line.where
        fragment = "..." in line.words or (spoken and ("--" not in " ".join(words) or words[-1].startswith("--")))
        if not is_command(line):
            continue
        assert words[0] in COMMANDS or words[0].startswith("-"), line
        if fragment:
            continue
        if len(words) > 1:
            assert main([*words, "--no_such_setting", "1"]) == 2
            assert "no_such_setting" in capsys.readouterr().err, line


@pytest.mark.parametrize(("where", "text"), python_blocks())
def test_python_blocks_run(where, text, workspace, monkeypatch):
    """As printed, with few steps."""
    monkeypatch.chdir(workspace)
    exec(compile(text.replace("steps=200", "steps=2"), where, "exec"), {"__name__": "page"})


def numbers_of(row: str) -> list[float]:
    return [float(cell) for cell in row.split("|")[2:-1] if cell.strip()]


@pytest.mark.parametrize("page", ["README.md", "docs/results/index.md"])
def test_small_tables_have_the_numbers_of_the_study(page):
    """Accuracies in percent, losses in nats; the study writes both to docs/results.json."""
    study = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    rows = {"untuned": "vanilla", "standard state tuning": "standard", "kernel upscaling": "upscale", "DBP": "dbp"}
    rows |= {"upscaling and DBP": "upscale_dbp", "LoRA, which changes weights": "lora", "the untuned model": "vanilla"}
    found = 0
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        name = line.split("|")[1].strip() if line.startswith("|") else ""
        shown = numbers_of(line) if name in rows and re.fullmatch(r"[|\d. ]+", line.partition(name)[2]) else []
        if not shown:
            continue
        means = {task: 100 * values[0] for task, values in study["accuracy"].get(rows.get(name), {}).items()}
        expected = [means["mean"]] if len(shown) == 1 else list(means.values())
        expected += [study["loss"][rows[name]]["mean"][0]] if len(shown) == len(expected) + 1 else []
        for one, value in zip(shown, expected, strict=True):
            assert one == pytest.approx(value, abs=0.051 if value > 1 else 0.00051), line
        found += 1
    assert found >= 5
