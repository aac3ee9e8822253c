"""Teachers: in process against the plain model, over HTTP against a real server on loopback with all its faults."""

import contextlib
import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import zero_state
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning import surgery, teacher_http
from state_tuning.http_client import TeacherError, retry_after
from state_tuning.replay import Replay
from state_tuning.teacher import InProcessTeacher, Question
from state_tuning.teacher_http import HttpTeacher
from tests.state_tuning.tiny import CONFIG, MODEL, logits, random_state, weights

BYTES = ByteTokenizer()


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


@pytest.fixture(scope="module")
def teacher():
    return InProcessTeacher(MODEL, weights(), BYTES, question=Question("{prompt}{chain}?", "!yes", "!no"), batch_size=2)


def by_hand(text, state=None):
    tokens = jnp.asarray([BYTES.encode(text)], jnp.int32)
    start = zero_state(CONFIG, 1) if state is None else surgery.broadcast(state, 1)
    return log_softmax(logits(weights(), tokens, start)[0])


def test_in_process_scores_are_the_models_own(teacher):
    found = teacher.score(["ab", "c", "ab"], [" de", "f", " dg"], margin=True)
    for i, (prompt, chain) in enumerate([("ab", " de"), ("c", "f"), ("ab", " dg")]):
        at = by_hand(f"{prompt}{chain}?!")
        ids = BYTES.encode(chain)
        likely = [at[len(prompt) + k - 1, token] for k, token in enumerate(ids)]
        np.testing.assert_allclose(found.log_probability[i], np.mean(likely), atol=1e-5)
        np.testing.assert_allclose(found.margin[i], at[-1, ord("y")] - at[-1, ord("n")], atol=1e-5)
        assert found.length[i] == len(ids)
        assert found.tokens[i] == len(prompt) + len(ids) + 2
    plain = teacher.score(["ab"], [" de"])
    assert np.isnan(plain.margin).all()
    assert plain.tokens[0] == 5
    np.testing.assert_allclose(plain.log_probability, found.log_probability[:1], atol=1e-6)


def test_an_empty_chain_is_scored_as_the_end_and_a_tuned_teacher_starts_from_its_state(teacher):
    state = random_state()
    tuned = InProcessTeacher(MODEL, weights(), BYTES, state=state, batch_size=2)
    found = tuned.score(["ab"], [""])
    np.testing.assert_allclose(found.log_probability[0], by_hand("ab", state)[-1, BYTES.eos_id], atol=1e-5)
    assert found.length[0] == 1


def test_in_process_writing_counts_what_is_read_and_written(teacher):
    greedy = teacher.write(["ab", "c", ""], 5)
    assert teacher.write(["", "ab", "c"], 5).texts == [greedy.texts[i] for i in (2, 0, 1)]
    assert teacher.write(["ab", "c", ""], 5, seed=1).texts != teacher.write(["ab", "c", ""], 5, seed=2).texts
    assert len(greedy.texts) == 3
    for read, count in zip((2, 1, 1), greedy.tokens, strict=True):
        assert read + 1 <= count <= read + 5


def test_questions_that_cannot_be_asked_are_refused():
    with pytest.raises(ValueError, match="must contain"):
        Question("{prompt} right?")
    with pytest.raises(ValueError, match="must begin with"):
        Question("Q: {prompt}{chain}")
    with pytest.raises(ValueError, match="begins with all tokens of the other"):
        InProcessTeacher(MODEL, weights(), BYTES, question=Question(yes=" n", no=" no"))


class Server(ThreadingHTTPServer):
    """Answers like an OpenAI-compatible endpoint whose tokens are characters; `faults` come first, one a request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.headers, self.lock = [], [], [], threading.Lock()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Silent."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append(dict(self.headers))
            fault = self.server.faults.pop(0) if self.server.faults else None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if callable(fault):
                return fault(self)
            self.reply(200, fault if isinstance(fault, bytes) else json.dumps(answer(self.path, body)).encode())

    def reply(self, code, text, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def answer(path, body):
    """Log-probability of a character: minus its alphabet place; `yes` at -1, ` No` at -3."""
    usage = {"prompt_tokens": 11, "completion_tokens": 2}
    top = {"yes": -1.0, " Yes": -2.0, " No": -3.0, "the": -5.0}
    if path.endswith("/chat/completions"):
        content = [{"token": "yes", "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}]
        text = f"reply to {body['messages'][0]['content']}"
        return {"choices": [{"message": {"content": text}, "logprobs": {"content": content}}], "usage": usage}
    if not body.get("echo"):
        text = f"after {body['prompt']} {body.get('seed')}"
        return {"choices": [{"text": text, "logprobs": {"top_logprobs": [top]}}], "usage": usage}
    tokens = [*body["prompt"], "!"]
    values = [None, *(-float(ord(c) - ord("a")) for c in tokens[1:])]
    found = {"tokens": tokens, "token_logprobs": values, "text_offset": list(range(len(tokens)))}
    return {"choices": [{"text": body["prompt"], "logprobs": found}], "usage": usage}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def http(server, **options):
    return HttpTeacher(
        server.address, "big", **{"backoff": 0.001, "timeout": 5.0, "key_variable": "TEST_KEY", **options}
    )


def test_completions_give_log_probabilities_margins_and_tokens(server, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "secret")
    found = http(server).score(["ab", "zz"], ["cd", ""], margin=True)
    np.testing.assert_allclose(found.log_probability, [-2.5, teacher_http.EMPTY])
    np.testing.assert_allclose(found.margin, np.log(np.exp(-1) + np.exp(-2)) + 3.0)
    np.testing.assert_array_equal(found.length, [2, 0])
    np.testing.assert_array_equal(found.tokens, [26, 13])
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)
    assert {request["model"] for request in server.requests} == {"big"}
    written = http(server).write(["p", "q"], 9, ("\n",), seed=4)
    assert written.texts == ["after p 4", "after q 5"]
    np.testing.assert_array_equal(written.tokens, [13, 13])


def test_chat_gives_margins_alone(server):
    found = http(server, api="chat").score(["ab"], ["cd"], margin=True)
    assert np.isnan(found.log_probability[0])
    np.testing.assert_allclose(found.margin[0], np.log(np.exp(-1) + np.exp(-2)) + 3.0)
    assert http(server, api="chat").write(["p"], 9).texts == ["reply to p"]


def test_words_that_are_not_listed_count_as_the_least_likely():
    assert teacher_http._yes_or_no({"no": -0.5, "x": -4.0}, " yes", " no") == pytest.approx(-3.5)


def test_offsets_may_be_missing_and_a_token_across_the_boundary_is_left_out():
    choice = {"logprobs": {"tokens": ["a", "bc", "d"], "token_logprobs": [None, -1.0, -2.0]}}
    assert teacher_http._echoed(choice, "ab", "cd") == (-2.0, 1)


def refuse(code, text=b"busy", **headers):
    return lambda handler: handler.reply(code, text, **headers)


def hang(handler):
    time.sleep(0.6)
    handler.reply(200, b"{}")


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


FAULTS = {
    "429": refuse(429, Retry_After="0"),
    "500": refuse(500),
    "not JSON": b"<html>",
    "no choices": b'{"usage": {"prompt_tokens": 1}}',
    "no usage": b'{"choices": [{"text": "x"}]}',
    "a list": b"[1]",
    "cut off": cut_off,
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_passing_faults_are_retried(server, name):
    server.faults = [FAULTS[name], FAULTS[name]]
    assert http(server).write(["p"], 9).texts == ["after p None"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("name", list(FAULTS))
def test_lasting_faults_end_in_one_line(server, name):
    server.faults = [FAULTS[name]] * 2
    with pytest.raises(TeacherError, match="2 attempts, given up") as error:
        http(server, retries=1).write(["p"], 9)
    assert "\n" not in str(error.value)
    assert server.address in str(error.value)


def test_a_server_that_hangs_is_given_up_in_time(server):
    """Had it waited, the error would name the malformed answer that comes in the end."""
    server.faults = [hang]
    with pytest.raises(TeacherError, match="no answer in time"):
        http(server, timeout=0.1, retries=0).write(["p"], 9)


def test_what_no_attempt_can_mend_is_not_tried_again(server):
    server.faults = [refuse(401, b"wrong key")]
    with pytest.raises(TeacherError, match="HTTP 401, wrong key; check address"):
        http(server).write(["p"], 9)
    assert len(server.requests) == 1
    server.faults = [refuse(429, Retry_After="9999")]
    with pytest.raises(TeacherError, match="asks to wait 9999 s"):
        http(server).write(["p"], 9)


def test_a_server_that_is_not_there_is_named():
    nobody = HttpTeacher("http://127.0.0.1:1/v1", "big", retries=0)
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1:1"):
        nobody.write(["p"], 9)
    with pytest.raises(ValueError, match="write http://HOST/v1"):
        HttpTeacher("ftp://x", "big")


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("7", 0.0) == 7.0
    assert retry_after(formatdate(1000.0, usegmt=True), 990.0) == 10.0
    assert retry_after(formatdate(1000.0, usegmt=True), 2000.0) == 0.0
    assert retry_after("soon", 0.0) is None
    assert retry_after(None, 0.0) is None


def test_a_run_is_replayed_without_the_server(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "secret")
    path = tmp_path / "replay.jsonl"
    first = http(server, replay=Replay(path)).score(["ab", "b"], ["cd", "c"], margin=True)
    asked = len(server.requests)
    again = http(server, replay=Replay(path)).score(["ab", "b"], ["cd", "c"], margin=True)
    assert len(server.requests) == asked == 4
    elsewhere = HttpTeacher("http://127.0.0.1:1/v1", "big", retries=0, replay=Replay(path, offline=True))
    for found in (again, elsewhere.score(["ab", "b"], ["cd", "c"], margin=True)):
        for a, b in zip(first, found, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="has no answer to this request"):
        elsewhere.score(["ab"], ["other"])
    assert "secret" not in path.read_text()


def test_a_replay_file_survives_a_crash_but_not_other_content(tmp_path):
    path = tmp_path / "replay.jsonl"
    kept = Replay(path)
    kept.put({"a": 1}, {"x": 1})
    kept.put({"a": 2}, {"x": 2})
    path.write_text(path.read_text() + '{"key": "ab')
    again = Replay(path)
    assert len(again) == 2
    again.put({"a": 3}, {"x": 3})
    assert Replay(path).get({"a": 3}) == {"x": 3}
    assert Replay(path).get({"a": 4}) is None
    path.write_text("hello\n" + path.read_text())
    with pytest.raises(ValueError, match=r"replay\.jsonl:1: no line of a replay file"):
        Replay(path)
    with pytest.raises(FileNotFoundError, match="run once online"):
        Replay(tmp_path / "none", offline=True)
