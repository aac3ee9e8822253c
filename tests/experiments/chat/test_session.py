"""A chat through a pipe: what it shows, remembers and writes."""

import io
import json
import os
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.chat import screen
from experiments.commands import chat
from rwkv7_jax import RWKV7, RWKV7Config, State, checkpoint, zero_state

CONFIG = RWKV7Config(256, 2, 32, head_size=16, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(a checkpoint of a model that likes letters, a state)."""
    folder, rng = tmp_path_factory.mktemp("chat"), np.random.default_rng(1)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(RWKV7(CONFIG).init, {"params": jax.random.key(0)}, tokens, zero_state(CONFIG, 1))["params"]
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    for block in ("block_0", "blocks"):  # which remember for long
        params[block]["att"]["w0"][:] = params[block]["att"]["a0"][:] = -8
        params[block]["att"]["ln_x"]["weight"][:] = 4
        params[block]["ffn"]["value"]["weight"][:] *= 0.1
    params["head"]["weight"][[i for i in range(256) if not chr(i).isascii() or not chr(i).isalpha()]] = 0
    checkpoint.save(folder / "model.safetensors", params)
    state = State(*(jnp.asarray(rng.normal(0, 5, x.shape), jnp.float32) for x in zero_state(CONFIG, None)))
    checkpoint.save_state(folder / "state.safetensors", state, metadata={"method": "test"})
    return str(folder / "model.safetensors"), str(folder / "state.safetensors")


@pytest.fixture
def talk(files, capsys, monkeypatch):
    """Runs a chat on lines; returns (exit status, answers and other output by line)."""

    def run(*lines: str, words: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
        base = ["--model.checkpoint", files[0], "--quiet", "--max_new_tokens=12", "--temperature=0"]
        status = chat.main([*base, *words])
        shown = capsys.readouterr()
        assert shown.err == ""
        blocks = re.split(r"^> .*\n(?:\. .*\n)*", shown.out, flags=re.MULTILINE)
        assert [line for line in shown.out.splitlines() if line.startswith("> ")] == [f"> {line}" for line in lines]
        return status, [block.strip() for block in blocks[1:]]

    return run


def test_a_turn_is_answered_from_all_that_was_said(talk):
    status, first = talk("hello", "and then")
    assert status == 0
    assert all(re.fullmatch(r"\S+ \[the longest answer\]", one) for one in first)
    assert talk("hello", "and then")[1] == first
    assert talk("hullo", "and then")[1][1] != first[1]


def test_the_state_is_where_the_conversation_begins(talk, files):
    plain, tuned = talk("hello")[1], talk("hello", words=("--state", files[1]))[1]
    assert plain != tuned
    status, found = talk("/state", f"/state {files[1]}", "hello", "/state none", "/undo", "hello")
    assert status == 0
    assert (found[0], found[3], found[4]) == ("state: none", "state: none", "took back: hello")
    assert re.fullmatch(r"state: .*state\.safetensors, norm \d+(\.\d+)?", found[1])
    assert (found[2], found[5]) == (tuned[0], plain[0])


def test_two_answers_stand_side_by_side(talk, files, monkeypatch):
    monkeypatch.setenv("COLUMNS", "79")
    plain, tuned = talk("hello")[1][0], talk("hello", words=("--state", files[1]))[1][0]
    status, (on, both, off, one) = talk("/ab on", "hello", "/ab off", "hello", words=("--state", files[1]))
    rows = [[cell.strip() for cell in line.split("│")] for line in both.splitlines()]
    assert (status, off) == (0, "one answer")
    assert on.startswith("two answers, with ")
    assert [" ".join(column) for column in list(zip(*rows[2:], strict=True))] == [tuned, plain]
    assert "│" not in one
    monkeypatch.setenv("COLUMNS", "40")
    (under,) = talk("hello", words=("--state", files[1], "--ab"))[1]
    assert under.splitlines() == [f"[with {files[1]}]", tuned, "", "[without]", plain]


def test_answers_come_again_with_other_numbers_and_turns_are_taken_back(talk):
    words = ("--temperature=2", "--top_p=1", "--top_k=40")
    status, found = talk("a", "/regen", "b", "/undo", "/undo", "a", words=words)
    assert status == 0
    assert found[0] != found[1]
    assert found[3:5] == ["took back: b", "took back: a"]
    assert found[5] == found[0]
    assert talk("a", words=(*words, "--seed=5"))[1][0] != found[0]
    assert talk("/set seed 4294967295")[1] == ["seed 4294967295"]
    assert talk("/set seed 5", "a", words=words)[1][1] == talk("a", words=(*words, "--seed=5"))[1][0]


def test_how_an_answer_begins(talk):
    status, found = talk("/think short", "a", "/think off", "a", "/think none", "/think", "a")
    assert status == 0
    assert found[1].startswith("<think")
    assert "<think" not in found[3]
    assert found[4] == found[5] == "think: none"


def test_a_saved_conversation_goes_on_from_its_state_and_from_its_text(talk, files, tmp_path):
    path = tmp_path / "chat.safetensors"
    words = ("--state", files[1], "--system_prompt", r"Be\nbrief.")
    status, found = talk("one", "/think on", "two", f"/save {path}", "/think none", "more", words=words)
    assert status == 0
    assert found[3].splitlines() == [f"wrote {path}", f"wrote {path.with_suffix('.jsonl')}"]
    messages = json.loads(path.with_suffix(".jsonl").read_text(encoding="utf-8"))["messages"]
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert (messages[0]["content"], messages[3]["think"]) == ("Be\nbrief.", "on")
    assert messages[4]["content"].startswith("<think")
    assert talk("more", words=("--state", str(path)))[1][0] == found[5]
    loaded = talk(f"/load {path.with_suffix('.jsonl')}", "more", words=words)[1]
    assert loaded == ["2 turns", found[5]]
    metadata = checkpoint.load_state(path).metadata
    assert metadata["method"] == "chat"
    assert metadata["base_model_hash"] == checkpoint.load(files[0]).report.weights_hash


def test_a_state_is_saved_for_another_tool(talk, tmp_path):
    path = tmp_path / "chat.pth"
    status, found = talk("one", f"/save {path} fla", f"/state {path} fla")
    assert status == 0
    assert "without token shifts" in found[1]
    assert checkpoint.load_state(path, layout="fla").state.wkv.shape == (2, 2, 16, 16)
    assert found[2].startswith(f"state: {path}, norm ")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/foo", "no command '/foo'"),
        ("/stat", "did you mean /stat"),
        ("/" + "x" * 999, "no command '/xxx"),
        ("/set temperature -1", "temperature must lie in 0"),
        ("/set temperature nan", "temperature must lie in 0"),
        ("/set top_k 1.5", "top_k: '1.5' is no whole number"),
        ("/set speed 1", "no setting 'speed'; there are: temperature"),
        ("/set top_p", "a value is missing after 'top_p'"),
        ("/set seed -1", "seed must be a whole number"),
        ("/think hard", "/think takes one of on, short, long, off, none, not 'hard'"),
        ("/ab maybe", "/ab takes on or off, not 'maybe'"),
        ("/ab on", "there is no state to compare with none"),
        ("/regen", "nothing was asked yet"),
        ("/undo", "nothing was asked yet"),
        ("/undo 2", "/undo takes nothing, not '2'"),
        ("/state nowhere.pth", "no such state file"),
        ("/state nowhere.pth fla", "no such state file"),
        ("/save", "a name is missing"),
        ("/save chat.txt", "the name must end in one of .safetensors"),
        ("/save chat.pth", "name its layout"),
        ("/load chat.safetensors", "/load reads the text beside a state"),
        ("/load nowhere.jsonl", "no file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_the_chat_goes_on(talk, line, error):
    status, (told, after) = talk(line, "/think")
    assert (status, after) == (1, "think: none")
    assert told.startswith("error: ")
    assert error in told
    assert "\n" not in told
    assert len(told) < 400


def test_a_new_conversation_begins_where_the_chat_began(talk):
    status, found = talk("a", "/new", "b", words=("--system_prompt", "c"))
    assert (status, found[1]) == (0, "a new conversation")
    assert found[2] == talk("b", words=("--system_prompt", "c"))[1][0]


def test_files_of_others_are_not_written_over(talk, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.with_suffix(".jsonl").write_text("mine", encoding="utf-8")
    status, (told,) = talk(f"/save {path}")
    assert (status, told) == (1, f"error: {path.with_suffix('.jsonl')} exists; give another name")
    assert os.listdir(tmp_path) == ["mine.jsonl"]
    for text in ('{"messages": [{"role": "x", "content": "y"}]}', '{"messages": 3}', '{"prompt": "a"}', "{}\n{}"):
        path.with_suffix(".jsonl").write_text(text, encoding="utf-8")
        status, (told,) = talk(f"/load {path.with_suffix('.jsonl')}")
        assert (status, told.count("\n"), told.startswith("error: ")) == (1, 0, True)


def test_help_and_figures(talk, files):
    status, (help_text, _, figures) = talk("/help", "hello", "/stats")
    assert status == 0
    assert {line.split()[0] for line in help_text.splitlines() if line.startswith("/")} >= {"/state", "/regen", "/quit"}
    assert re.search(r"^context +\d+ tokens, 1 turns; computed \d+$", figures, re.MULTILINE)
    assert re.search(
        r"^last answer +\d+ tokens read, 12 generated in [\d.]+ s, [\d.]+ tokens/s$", figures, re.MULTILINE
    )
    assert "norm" in figures.splitlines()[2]
    assert talk("/quit", words=("--state", files[1]))[0] == 0


def test_ctrl_c_ends_an_answer_and_not_the_chat(talk, monkeypatch):
    whole = talk("hello")[1][0].split()[0]
    write, came = screen.write, []

    def interrupted(text: str) -> None:
        write(text)
        if not came:
            came.append(os.kill(os.getpid(), signal.SIGINT))

    monkeypatch.setattr(screen, "write", interrupted)
    before = signal.getsignal(signal.SIGINT)
    status, (answer, more, undone) = talk("hello", "more", "/undo")
    assert status == 0
    said, told = answer.split(maxsplit=1)
    assert whole.startswith(said)
    assert len(said) < len(whole)
    assert told == "[interrupted]"
    assert more.endswith("[the longest answer]")
    assert undone == "took back: more"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_both_sides_with_an_answer(talk, files, monkeypatch):
    came = []

    def interrupted(text: str) -> None:
        if not came:
            came.append(text)
            raise KeyboardInterrupt

    monkeypatch.setattr(screen, "progress", interrupted)
    words = ("--state", files[1], "--ab")
    status, (first, second, undone, _, again) = talk("hello", "more", "/undo", "/undo", "hello", words=words)
    assert (status, first, undone) == (0, "", "took back: more")
    assert "│" in second
    assert again == talk("hello", words=words)[1][0]


def test_an_input_that_fails_ends_the_chat(files, capsys, monkeypatch):
    class Gone(io.BytesIO):
        def readline(self, *_):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Gone()))
    assert chat.main(["--model.checkpoint", files[0], "--quiet"]) == 2
    assert capsys.readouterr().err == "error: Input/output error\n"
    monkeypatch.setattr(sys, "stdin", None)
    assert chat.main(["--model.checkpoint", files[0], "--quiet"]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_lines_that_are_not_text_are_left_out(files, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n/think\n")))
    assert chat.main(["--model.checkpoint", files[0], "--quiet"]) == 1
    assert "error: a line is not valid UTF-8 and was left out\n\n> /think\nthink: none" in capsys.readouterr().out


def test_wrong_settings_are_one_line(files, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    for words, error in (
        (["model.pth"], "the model is named by a key: --model.checkpoint model.pth"),
        (["--seed", "-1"], "--seed must lie in 0..4294967295"),
        (["--think", "hard"], "think"),
        (["--ab", "--quiet", "--model.checkpoint", files[0]], "there is no state to compare with none"),
        (["--state", "nowhere.pth", "--quiet", "--model.checkpoint", files[0]], "no such state file"),
    ):
        assert chat.main(words) == 2
        told = capsys.readouterr().err
        assert error in told
        assert told.count("\n") == 1
