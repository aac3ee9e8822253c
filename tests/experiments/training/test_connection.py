"""Processes that wait for others, or lose them, say so in one line and end."""

import socket
import subprocess
import sys

import jax
import pytest

from experiments.config.overrides import UsageError
from experiments.config.schema import MeshConfig
from experiments.training import connection

ALONE = """
import sys
from experiments.config.schema import MeshConfig
from experiments.training import connection, distributed
connection.WAIT = 1.0
distributed.start(MeshConfig(coordinator="127.0.0.1:{port}", processes=2, process_id={own}))
"""


@pytest.mark.parametrize("own", [0, 1])
def test_a_process_alone_says_whom_it_waits_for_and_ends(own):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = ALONE.format(port=port, own=own)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("waiting", "error"))]
    assert done.returncode == 2
    assert lines[0].startswith(f"waiting for {'the other 1 processes' if own == 0 else 'process 0 at 127.0.0.1'}")
    assert lines[1].startswith("error: waited 1 s for ")
    assert "Check failure stack trace" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"coordinator": "host0"}, "mesh.coordinator: 'host0' is not of the form host:port"),
        ({"coordinator": "host0:a"}, "mesh.coordinator: 'host0:a' is not of the form host:port"),
        ({"process_id": 2}, "mesh.process_id: 2 is not among 0..1"),
        ({"process_id": -1}, "mesh.process_id: -1 is not among 0..1"),
    ],
)
def test_settings_that_cannot_connect_are_refused(settings, told):
    with pytest.raises(UsageError, match=told):
        connection.waited_for(MeshConfig(**({"coordinator": "host0:1", "processes": 2, "process_id": 1} | settings)))


@pytest.mark.parametrize(
    ("message", "count", "ended"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1", 2, True),
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)", 2, True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes", 2, False),
        ("UNKNOWN: Gloo all-reduce failed", 1, False),
    ],
)
def test_the_loss_of_another_process_ends_the_run(message, count, ended, monkeypatch, capsys):
    class Ended(Exception):
        pass

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(connection.os, "_exit", end)
    monkeypatch.setattr(connection.jax, "process_count", lambda: count)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    with pytest.raises(Ended if ended else jax.errors.JaxRuntimeError), connection.while_all_live():
        raise jax.errors.JaxRuntimeError(message)
    error = capsys.readouterr().err
    assert error.count("\n") == int(ended)
    assert ("another process of the run is gone" in error) is ended
