"""What hostile or careless clients send: a clear 4xx in OpenAI's form, and the server goes on."""

import contextlib
import json
import socket
import time

import httpx
import pytest

from experiments.config.serve import Serve

KINDS = ("invalid_request_error", "not_found_error", "conflict_error", "rate_limit_error", "timeout_error",
         "permission_error", "authentication_error")  # fmt: skip


def check_error(answer: httpx.Response, status: int, served) -> dict:
    """The error of an answer, which tells no path of the server."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in KINDS
    assert str(served.folder) not in answer.text
    assert "Traceback" not in answer.text
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"prompt": NaN}', "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "JSON object"),
        (b'"text"', "JSON object"),
        (b"null", "JSON object"),
    ],
)
def test_bodies_that_are_no_json_object(served, body, word):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/states", "/tokenize"):
        assert word in check_error(served.http.post(path, content=body), 400, served)["message"]


WRONG = [
    ("prompt", 3), ("prompt", []), ("prompt", [[]]), ("prompt", ["x", 3]), ("prompt", [1, 10**30]), ("prompt", [-1]),
    ("prompt", [True]), ("prompt", {"text": "x"}), ("prompt", "\ud800"), ("model", 3), ("model", ["student"]),
    ("model", "student:../../etc/passwd"), ("model", "student:a/b"), ("model", "student:" + "a" * 500),
    ("max_tokens", "12"), ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", 10**400), ("max_tokens", True),
    ("temperature", "hot"), ("temperature", -1), ("temperature", 1e300), ("temperature", [1]), ("top_p", 1.5),
    ("top_k", -1), ("n", 0), ("n", 1000), ("n", "2"), ("seed", 1.5), ("seed", "x"),
    ("seed", 10**30), ("stop", 3), ("stop", [""]), ("stop", ["x"] * 100), ("stop", ["x" * 2000]), ("stop", [None]),
    ("stream", "yes"), ("stream_options", 3), ("stream_options", {"include_usage": "yes"}), ("logprobs", -1),
    ("logprobs", 50), ("logprobs", True), ("echo", "yes"), ("best_of", 3), ("suffix", "x"), ("logit_bias", {"1": 2}),
    ("state", 3), ("state", {}), ("state", {"name": 3}), ("state", {"name": "../x"}), ("state", {"mix": {}}),
    ("state", {"mix": {"calm": "x"}}), ("state", {"mix": {"calm": 1e300}}), ("state", {"name": "calm", "mix": {}}),
    ("state", "no base64!"), ("state", "AAAA"), ("state", {"data": "AAAA", "layout": 3}), ("session", "../x"),
    ("session", ""), ("session", "a\u0000b"), ("session", 3), ("return_state", 3), ("n", []),
    ("presence_penalty", "x"), ("penalty_decay", 2), ("temperatur", 1), ("max_token", 1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_types_and_values_are_named(served, field, value):
    body = json.dumps({"prompt": "x", "max_tokens": 1, field: value})
    error = check_error(served.http.post("/v1/completions", content=body), 400, served)
    assert (error["param"] or "").startswith(field) or field in error["message"]
    assert len(error["message"]) <= 400


@pytest.mark.parametrize(
    "messages",
    [3, [], [3], [{"role": "user"}], [{"content": "x"}], [{"role": "king", "content": "x"}],
     [{"role": "user", "content": 3}], [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
     [{"role": "user", "content": "\ud800"}], "hello", {"role": "user"}],
)  # fmt: skip
def test_wrong_messages_are_named(served, messages):
    body = json.dumps({"messages": messages})
    error = check_error(served.http.post("/v1/chat/completions", content=body), 400, served)
    assert "messages" in error["message"]


@pytest.mark.parametrize("name", ["..", ".hidden", "a%2Fb", "%2e%2e%2fx", "a%00b", "con", "a" * 200, "-x", "%ff"])
def test_names_of_states_reach_nothing_else(served, name):
    before = sorted(path.name for path in served.folder.rglob("*"))
    for method, path in (
        ("GET", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("GET", "/file"),
        ("GET", "/picture"),
        ("POST", "/fork"),
    ):
        answer = served.http.request(method, f"/v1/states/{name}{path}", content=b'{"name": "x"}')
        assert 400 <= answer.status_code < 500, (method, path, answer.text)
        assert str(served.folder) not in answer.text
    assert sorted(path.name for path in served.folder.rglob("*")) == before
    assert 400 <= served.http.get(f"/v1/sessions/{name}").status_code < 500


def test_paths_and_methods_that_are_not_there(served):
    check_error(served.http.get("/v1/nothing"), 404, served)
    check_error(served.http.get("/v1/completions"), 405, served)
    assert served.http.get("/page/../app.py").status_code == 404
    assert served.http.get("/page/%2e%2e/app.py").status_code == 404


def test_a_prompt_of_ten_million_characters_is_refused_by_its_length(served, running, student, tmp_path):
    """At once by the size of the body; where bodies may be so large, by the number of characters, and others go on."""
    text = "word " * 2_000_000
    check_error(served.http.post("/v1/completions", json={"prompt": text}), 413, served)
    config = Serve(port=0, slots=4, max_body=64, max_prompt=1000)
    with running(config, student, tmp_path) as large:
        error = check_error(large.http.post("/v1/completions", json={"prompt": text}), 400, large)
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
        messages = [{"role": "user", "content": text}]
        error = check_error(large.http.post("/v1/chat/completions", json={"messages": messages}), 400, large)
        assert error["code"] == "context_length_exceeded"
        error = check_error(large.http.post("/v1/completions", json={"prompt": "a b c " * 700}), 400, large)
        assert "tokens" in error["message"]
        assert large.post("/v1/completions", prompt="x", max_tokens=1)["choices"]


def raw(served, data: bytes, *, wait: float = 10) -> bytes:
    """What the server sends back to bytes on a fresh connection, until it closes it."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        connection.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                found += part
        return found


def test_slow_clients_are_let_go(served):
    """Headers that never end, a body that never comes, a connection that says nothing."""
    assert raw(served, b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ") == b""
    assert raw(served, b"") == b""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{"
    assert raw(served, head).startswith(b"HTTP/1.1 408")
    assert served.http.get("/health").json()["status"] == "ok"


def test_what_is_no_http_is_refused(served):
    assert raw(served, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(served, b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 200_000).startswith((b"HTTP/1.1 4", b""))
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(served, chunked + b"zz\r\n").startswith((b"HTTP/1.1 4", b""))
    assert served.http.get("/health").json()["status"] == "ok"


def test_a_declared_length_is_checked_before_the_body_comes(served):
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\n"
    )
    begun = time.monotonic()
    assert raw(served, head).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - begun < 30


def test_pages_of_others_cannot_use_a_server_on_loopback(served):
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": served.url}, 200),
        ({"Host": "localhost:1234"}, 200),
    ):
        assert served.http.get("/v1/models", headers=headers).status_code == status, headers
    assert "access-control-allow-origin" not in served.http.get("/v1/models").headers


def test_the_key_is_needed_everywhere_but_for_the_page_and_health(running, student, tmp_path):
    config = Serve(port=0, slots=4, cors=("https://friend.example",))
    with running(config, student, tmp_path, key="secret") as locked:
        for path in ("/v1/models", "/v1/states", "/metrics", "/v1/sessions", "/tokenizer_info", "/v1/nothing"):
            answer = locked.http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "secret" not in answer.text
        for key in ("", "Bearer", "Bearer wrong", "Bearer secret2", "Basic secret", "Bearer s\u00e9cret"):
            headers = {"Authorization": key.encode("latin-1")}
            assert locked.http.get("/v1/models", headers=headers).status_code == 401
        assert locked.http.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert locked.http.get("/v1/models", headers={"X-Api-Key": "secret"}).status_code == 200
        assert [model.id for model in locked.openai.models.list()] == ["student"]
        for path in ("/", "/health", "/page/page.js"):
            assert locked.http.get(path).status_code == 200
        friend = {"Origin": "https://friend.example", "Authorization": "Bearer secret"}
        allowed = locked.http.get("/v1/models", headers=friend)
        assert allowed.headers["access-control-allow-origin"] == "https://friend.example"
        asks = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        assert locked.http.options("/v1/completions", headers=asks).status_code == 200
