"""Disconnects, a full queue, deadlines and the end of a server, over real connections."""

import json
import socket
import threading
import time

import pytest

from experiments.config.serve import Serve

LONG = {"prompt": "Mira", "max_tokens": 60_000, "temperature": 0, "presence_penalty": -50}
"""An answer that takes long: it repeats one word and never ends by itself."""


@pytest.fixture
def small(running, student, tmp_path):
    config = Serve(port=0, slots=1, queue=1, max_tokens=60_000, grace=20.0, timeout=300)
    with running(config, student, tmp_path) as found:
        yield found


def begin(url: str, table: dict, path: str = "/v1/completions") -> socket.socket:
    """A connection whose answer nobody reads yet."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(table).encode()
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection.sendall(head + body)
    return connection


def wait(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot(small, stream):
    """With one slot, the next request is answered only if the first was cancelled."""
    engine = small.service.engine
    gone = begin(small.url, {**LONG, "stream": stream, "session": "gone"})
    wait(lambda: engine.stats().running == 1)
    if stream:
        assert gone.recv(1000)
    gone.close()
    wait(lambda: engine.stats().running == 0)
    assert small.post("/v1/completions", prompt="x", max_tokens=2)["choices"]
    assert small.http.get("/v1/sessions/gone").status_code == 404
    small.post("/v1/completions", prompt="x", max_tokens=2, session="gone")  # nothing holds it


def test_a_full_queue_says_when_to_try_again(small):
    engine = small.service.engine
    held = [begin(small.url, LONG)]
    wait(lambda: engine.stats().running == 1)
    held.append(begin(small.url, LONG))
    wait(lambda: engine.stats().waiting == 1)
    answer = small.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["code"] == "queue_full"
    for connection in held:
        connection.close()
    wait(lambda: engine.stats().running == engine.stats().waiting == 0)
    assert small.post("/v1/completions", prompt="x", max_tokens=1)["choices"]


def test_a_request_whose_answers_do_not_all_fit_is_refused_whole(small):
    answer = small.http.post("/v1/completions", json={**LONG, "n": 8})
    assert answer.status_code == 429
    wait(lambda: small.service.engine.stats().running == small.service.engine.stats().waiting == 0)


def test_an_answer_that_takes_too_long_is_ended(running, student, tmp_path):
    with running(Serve(port=0, slots=1, max_tokens=60_000, timeout=0.5), student, tmp_path) as hurried:
        answer = hurried.http.post("/v1/completions", json=LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        with hurried.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
            last = [line for line in stream.iter_lines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        wait(lambda: hurried.service.engine.stats().running == 0)


def test_a_server_that_ends_finishes_what_runs_and_takes_nothing_new(running, student, tmp_path):
    config = Serve(port=0, slots=1, max_tokens=400, grace=60.0)
    with running(config, student, tmp_path) as ending:
        found = []
        ask = {**LONG, "max_tokens": 400, "session": "kept"}
        thread = threading.Thread(target=lambda: found.append(ending.http.post("/v1/completions", json=ask)))
        thread.start()
        wait(lambda: ending.service.engine.stats().running == 1)
        ending.server.should_exit = True
        thread.join()
        assert found[0].status_code == 200
        assert found[0].json()["choices"][0]["session"]["id"] == "kept"
        assert ending.service.sessions.read("kept") is not None
    with pytest.raises(OSError, match="refused"):
        begin(ending.url, ask)
