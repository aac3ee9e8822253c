"""`rwkv7 serve` as a process: it starts, ends in order, and after a kill its sessions go on token for token."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from experiments.cli import main

KILLS = int(os.environ.get("RWKV7_TEST_SERVER_KILLS", "2"))
"""How often the server is killed; the long form is 200."""
TINY = ("--slots", "2", "--port", "0", "--quiet")


class Server:
    """A process of `rwkv7 serve`, once it listens."""

    def __init__(self, *args: str, **environment: str):
        words = [sys.executable, "-m", "experiments.cli", "serve", *TINY, *args]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true", "XLA_FLAGS": "", **environment},
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 300)
        line = self.process.stdout.readline() if ready else ""
        found = re.search(r"at (http://\S+) ", line)
        if not found:
            self.process.kill()
            raise AssertionError((line, *self.process.communicate(timeout=60)))
        self.url = found[1]

    def post(self, path: str, **table: object) -> dict:
        data = json.dumps(table).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", data), timeout=120) as answer:
            return json.load(answer)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """(exit status, what it printed, its errors) after a signal."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number):
    server = Server()
    assert server.post("/v1/completions", prompt="Mira", max_tokens=2)["choices"]
    status, out, err = server.end(number)
    assert (status, out.strip()) == (0, "ended")
    assert "Traceback" not in err
    assert "error" not in err.lower()


def turns(server: Server, numbers: range, session: str, state: str) -> list[str]:
    """The answers of some turns of a conversation, each with its own seed."""
    found = []
    for turn in numbers:
        ask = {"messages": [{"role": "user", "content": f"Question {turn}: where is Mira?"}], "max_tokens": 8}
        answer = server.post("/v1/chat/completions", session=session, seed=turn, model=f"student:{state}", **ask)
        found.append(answer["choices"][0]["message"]["content"])
    return found


def test_sessions_go_on_token_for_token_after_kills(tmp_path, save_random_state):
    """Killed at any moment: what was answered before stays, and the next turns are those of a server that lived on."""
    save_random_state(tmp_path / "lived" / "calm.safetensors")
    save_random_state(tmp_path / "killed" / "calm.safetensors")
    total = 2 * (KILLS + 1)
    lived = Server("--states", str(tmp_path / "lived"))
    expected = turns(lived, range(total), "talk", "calm")
    lived.end(signal.SIGTERM)
    found: list[str] = []
    for kill in range(KILLS + 1):
        server = Server("--states", str(tmp_path / "killed"))
        found += turns(server, range(2 * kill, 2 * kill + 2), "talk", "calm")
        if kill < KILLS:
            # One more request is under way when the kill comes; its session is another one.
            late = urllib.request.Request(
                f"{server.url}/v1/completions",
                json.dumps({"prompt": "Mira", "max_tokens": 1000, "session": "late", "stream": True}).encode(),
            )
            with urllib.request.urlopen(late, timeout=60) as answer:
                answer.read(10 + 37 * kill % 400)
                server.end(signal.SIGKILL)
        else:
            server.end(signal.SIGTERM)
    assert found == expected
    left = sorted(path.name for path in (tmp_path / "killed").rglob("*") if path.is_file() and path.name != ".lock")
    assert [name for name in left if name != "late.safetensors"] == ["calm.safetensors", "talk.safetensors"]


@pytest.fixture
def save_random_state():
    import jax.numpy as jnp
    import numpy as np

    from experiments.build import EMBEDDED
    from rwkv7_jax import save_state, zero_state
    from rwkv7_jax.checkpoint import load

    loaded = load(EMBEDDED["pocket/student"], lazy=True)

    def save(path: Path) -> None:
        path.parent.mkdir()
        zero = zero_state(loaded.config, None)
        wkv = jnp.asarray(30.0 * np.random.default_rng(0).normal(size=zero.wkv.shape), jnp.float32)
        save_state(path, zero._replace(wkv=wkv), metadata={"base_model_hash": loaded.report.weights_hash})

    return save


def test_a_folder_serves_one_server_and_a_port_too(tmp_path):
    server = Server("--states", str(tmp_path))
    port = server.url.rpartition(":")[2]
    second = [sys.executable, "-m", "experiments.cli", "serve", *TINY]
    for args, word in ((["--states", str(tmp_path)], "being written by"), (["--port", port], "cannot be used")):
        done = subprocess.run([*second, *args], capture_output=True, text=True, encoding="utf-8", timeout=120)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert word in done.stderr
        assert done.stderr.count("\n") == 1
    server.end(signal.SIGTERM)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["model.pth"], "--model.checkpoint model.pth"),
        (["--model.checkpoint", "nothing.pth"], "no file"),
        (["--port", "70000"], "port: must lie in"),
        (["--slots", "0"], "slots: must be at least 1"),
        (["--prefill_chunk", "100"], "prefill_chunk: must be a multiple"),
        (["--timeout", "0"], "timeout: must be at least"),
        (["--api_key", "two words"], "api_key:"),
        (["--host", "no.such.host.invalid"], "not an address"),
        (["--max_tokns", "3"], "max_tokens"),
    ],
)
def test_wrong_settings_are_one_line(args, word, capsys):
    assert main(["serve", "--port=0", *args] if args[0].startswith("-") else ["serve", *args]) == 2
    err = capsys.readouterr().err
    assert word in err
    assert err.count("\n") == 1


def test_a_file_is_no_folder_of_states(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["serve", "--port", "0", "--states", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_the_key_may_come_from_the_environment():
    server = Server(RWKV7_API_KEY="secret")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.post("/v1/completions", prompt="x")
    status, out, err = server.end(signal.SIGTERM)
    assert (status, "secret" in out + err) == (0, False)


def test_a_server_that_others_reach_without_a_key_warns():
    server = Server("--host", "0.0.0.0")
    _, _, err = server.end(signal.SIGTERM)
    assert "warning: any machine" in err
