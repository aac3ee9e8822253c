"""The command line: text out, one line and status 2 for a mistake, no traceback ever."""

import io
import os
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.commands import generate
from experiments.commands.work import generate as work
from rwkv7_jax import RWKV7, RWKV7Config, State, checkpoint, compile_cache, zero_state
from rwkv7_jax.generation.generate import SamplingParams, for_decoding, stream
from rwkv7_jax.inference import program_store
from rwkv7_jax.terminal import exit_status
from rwkv7_jax.tokenizer import ByteTokenizer

CONFIG = RWKV7Config(256, 2, 32, head_size=16, decay_lora=8, aaa_lora=8, mv_lora=8, gate_lora=8)
COMMAND = [sys.executable, "-m", "experiments.cli", "generate"]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(RWKV7(CONFIG).init, {"params": jax.random.key(0)}, tokens, zero_state(CONFIG, 1))["params"]
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def weights(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    checkpoint.save(path, params)
    return str(path)


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    rng = np.random.default_rng(2)
    state = State(*(rng.normal(0, 5, x.shape).astype(np.float32) for x in zero_state(CONFIG, None)))
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    checkpoint.save_state(path, state, metadata={"method": "test"})
    return str(path), state


def expected(params, prompt, state, config, stop=()):
    model, unstacked = for_decoding(RWKV7(CONFIG), params)
    return "".join(stream(model, unstacked, ByteTokenizer(), prompt, state, jax.random.key(3), config, stop=stop))


def test_text_is_that_of_stream_with_and_without_a_state(params, weights, state_file, capsys):
    path, state = state_file
    common = ["--model.checkpoint", weights, "--prompt=ab", "--seed=3", "--max-new-tokens=20", "--top_k=50"]
    common.append("temperature=0.8")
    config = SamplingParams(temperature=0.8, top_p=0.85, top_k=50, max_new_tokens=20)
    assert generate.main(common) == 0
    plain = capsys.readouterr()
    assert plain.out == expected(params, "ab", None, config) + "\n"
    assert "2 layers x 32" in plain.err
    assert generate.main([*common, "--state", path, "--quiet"]) == 0
    tuned = capsys.readouterr()
    assert tuned.out == expected(params, "ab", state, config) + "\n"
    assert tuned.out != plain.out
    assert tuned.err == ""


def test_a_later_start_compiles_nothing_and_gives_the_same_text(
    params, weights, state_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(program_store, "_folder", lambda: tmp_path)
    common = ["--model.checkpoint", weights, "--prompt=ab", "--seed=3", "--max-new-tokens=20", "--top_k=50", "--quiet"]
    common.append("temperature=0.8")
    assert generate.main(common) == 0
    first = capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(program_store, "_keep", lambda *_: pytest.fail("compiled again"))
    assert generate.main(common) == 0
    assert capsys.readouterr().out == first
    path, state = state_file
    assert generate.main([*common, "--state", path]) == 0
    config = SamplingParams(temperature=0.8, top_p=0.85, top_k=50, max_new_tokens=20)
    tuned = capsys.readouterr().out
    assert tuned == expected(params, "ab", state, config) + "\n"
    assert tuned != first
    assert first == expected(params, "ab", None, config) + "\n"


def test_escapes_are_understood_in_what_is_typed(params, weights, capsys, monkeypatch):
    config = SamplingParams(top_p=0.85, max_new_tokens=20)
    common = ["--model.checkpoint", weights, "--seed=3", "--max-new-tokens=20", "--quiet"]
    stop = expected(params, "a\n\\b", None, config)[6:8]
    spelled = "".join(f"\\U{ord(char):08x}" for char in stop)
    wanted = expected(params, "a\n\\b", None, config, (stop,)) + "\n"
    assert generate.main([*common, "--prompt", r"a\n\\b", "--stop", spelled]) == 0
    assert capsys.readouterr().out == wanted
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\\b"))
    assert generate.main([*common, "--prompt", "-", f"--stop={spelled}"]) == 0
    assert capsys.readouterr().out == wanted, "standard input is taken as it is"


def test_a_stop_that_is_not_text_is_one_line(weights, capsys):
    assert generate.main(["--model.checkpoint", weights, "--stop", "\udcff"]) == 2
    assert capsys.readouterr().err == "error: --stop: the text is not valid UTF-8\n"


def test_prompt_from_standard_input_and_stop_text(params, weights, capsys, monkeypatch):
    config = SamplingParams(top_p=0.85, max_new_tokens=20)
    whole = expected(params, "ab", None, config)
    stop = whole[6:8]
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab"))
    options = ["--prompt", "-", "--seed", "3", "--max_new_tokens", "20", "--stop", "never this", "--stop", stop]
    assert generate.main(["--model.checkpoint", weights, *options]) == 0
    assert capsys.readouterr().out == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.pth"], "nowhere.pth"),
        (["notes.pth", "KEYLESS"], "the model is named by a key: --model.checkpoint notes.pth"),
        (["WEIGHTS", "--state", "nowhere.state"], "nowhere.state"),
        (["WEIGHTS", "--state", "WEIGHTS"], "weights.safetensors"),
        (["WEIGHTS", "--model.tokenizer", "world"], "vocabulary is 256"),
        (["WEIGHTS", "--model.tokenizer", "wrld"], "unknown tokenizer 'wrld'"),
        (["WEIGHTS", "--top-p", "2"], "top_p must lie in 0..1"),
        (["WEIGHTS", "--stop", ""], "stop string is empty"),
        (["WEIGHTS", "--temperature", "inf"], "temperature: inf must be finite"),
        (["WEIGHTS", "--seed", str(2**64)], "--seed must lie in"),
        (["WEIGHTS", "--prompt", "a\udcff"], "not valid UTF-8"),
        (["TEXT"], "notes.pth"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_gets_one_line_and_status_2(options, message, weights, tmp_path, capsys):
    text = tmp_path / "notes.pth"
    text.write_text("this is no checkpoint\n")
    options = [{"WEIGHTS": weights, "TEXT": str(text)}.get(option, option) for option in options]
    options = options[:1] if options[-1] == "KEYLESS" else ["--model.checkpoint", *options]
    assert generate.main([*options, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*NaN or infinite numbers in head.weight")
def test_weights_of_nan_are_no_silence(params, tmp_path, capsys):
    path = tmp_path / "nan.safetensors"
    head = params["head"]["weight"].copy()
    head[7, 3] = np.nan
    checkpoint.save(path, params | {"head": {"weight": head}})
    assert generate.main(["--model.checkpoint", str(path), "--prompt", "a", "--max-new-tokens", "2", "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "after 0 generated tokens" in captured.err
    assert "head.weight" in captured.err


def test_an_error_of_the_system_names_the_file_and_the_reason(capsys):
    def body():
        raise FileNotFoundError(2, "No such file or directory", "prompt.txt")

    assert exit_status(body) == 2
    assert capsys.readouterr().err == "error: prompt.txt: No such file or directory\n"


def test_a_wrong_state_is_one_line_without_a_report(tiny_checkpoint, capsys):
    assert generate.main(["--model.checkpoint", str(tiny_checkpoint), "--state", "nowhere.safetensors"]) == 2
    assert capsys.readouterr().err == "error: nowhere.safetensors: no such state file; check the path\n"


def test_a_warning_is_one_line():
    def body():
        shown.append(warnings.formatwarning("tuned on\nanother model", UserWarning, "states.py", 1))
        return 3

    shown, before = [], warnings.formatwarning
    assert (exit_status(body), shown) == (3, ["warning: tuned on another model\n"])
    assert warnings.formatwarning is before


def test_without_a_home_folder_nothing_is_cached(monkeypatch):
    monkeypatch.setattr(compile_cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    before = jax.config.jax_enable_compilation_cache
    compile_cache.use_compilation_cache()
    assert not jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", before)


def test_ctrl_c_ends_the_line_with_status_130(monkeypatch, capsys):
    def interrupted(args):
        yield "half a"
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "pieces", interrupted)
    assert generate.main(["--prompt", "a"]) == 130
    assert capsys.readouterr().out == "half a\n"


@pytest.fixture(scope="module")
def start_endless(weights, tmp_path_factory):
    """Starts a process that goes on writing text; later ones find its compiled programs."""
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla"))}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def start():
        command = [*COMMAND, "--model.checkpoint", weights, "--max-new-tokens", "100000000", "--prompt", "a", "--quiet"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | cache)

    return start


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_on_a_running_process_leaves_no_traceback(start_endless):
    process = start_endless()
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_error(start_endless):
    process = start_endless()
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_help_loads_nothing_heavy():
    show = "import atexit, sys; atexit.register(lambda: print(*sys.modules))"
    show += "; import experiments.commands.generate as g; g.main()"
    run = subprocess.run([sys.executable, "-c", show, "--help"], capture_output=True, text=True, check=True)
    assert "--max_new_tokens" in run.stdout
    loaded = set(run.stdout.split())
    assert "dataclasses" in loaded
    assert not loaded & {
        "matplotlib",
        "orbax",
        "grain",
        "tokenizers",
        "safetensors",
        "rwkv7_jax.generation.generate",
        "torch",
    }
