"""Teachers: in process against the plain model, over HTTP against a real server on loopback with all its faults."""

import contextlib
import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import zero_state
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.core import surgery
from state_tuning.core.objective import encode_example
from state_tuning.test_time_scaling import baselines, policy_gradient
from state_tuning.test_time_scaling.choices import GivenChoices
from state_tuning.test_time_scaling.rollouts import NOT_CHOSEN, Problem, Session, Student, batch_of
from state_tuning.test_time_scaling.teacher import http as teacher_http
from state_tuning.test_time_scaling.teacher import log_probs
from state_tuning.test_time_scaling.teacher.http import HttpTeacher
from state_tuning.test_time_scaling.teacher.http_client import TeacherError, retry_after
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher, Question, Scores
from state_tuning.test_time_scaling.teacher.replay import Replay
from tests.helpers import CONFIG, MODEL, logits, random_state, weights
from tests.loopback import served

BYTES = ByteTokenizer()
LM = LanguageModel(MODEL, weights(), BYTES)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


@pytest.fixture(scope="module")
def teacher():
    return InProcessTeacher(LM, question=Question("{prompt}{chain}?", "!yes", "!no"), batch_size=2)


def by_hand(text, state=None):
    tokens = jnp.asarray([BYTES.encode(text)], jnp.int32)
    start = zero_state(CONFIG, 1) if state is None else surgery.broadcast(state, 1)
    return log_softmax(logits(weights(), tokens, start)[0])


@pytest.mark.parametrize("margin", [False, True])
def test_a_broken_teacher_is_an_error(teacher, margin):
    params = {**LM.params, "head": {"weight": LM.params["head"]["weight"].at[3, 0].set(jnp.inf)}}
    broken = InProcessTeacher(LM.replace(params=params), question=teacher.question, batch_size=2)
    with pytest.raises(ValueError, match=r"the teacher's logits are not finite: .* weights head\.weight"):
        broken.score(["ab"], [" de"], margin)


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
    tuned = InProcessTeacher(LM, state=state, batch_size=2)
    found = tuned.score(["ab"], [""])
    np.testing.assert_allclose(found.log_probability[0], by_hand("ab", state)[-1, BYTES.eos_id], atol=1e-5)
    assert found.length[0] == 1


def test_in_process_writing_counts_what_is_read_and_written(teacher):
    greedy = teacher.generate(["ab", "c", ""], 5)
    assert teacher.generate(["", "ab", "c"], 5).texts == [greedy.texts[i] for i in (2, 0, 1)]
    assert teacher.generate(["ab", "c", ""], 5, seed=1).texts != teacher.generate(["ab", "c", ""], 5, seed=2).texts
    assert len(greedy.texts) == 3
    for read, count in zip((2, 1, 1), greedy.tokens, strict=True):
        assert read + 1 <= count <= read + 5


def test_in_process_writing_ends_before_a_stop_string(teacher):
    whole = teacher.generate(["ab"], 5).texts[0]
    assert teacher.generate(["ab"], 5, (whole[2:4],)).texts == [whole[: whole.index(whole[2:4])]] != [whole]


def test_no_chains_have_no_scores_and_no_prompts_no_texts(teacher):
    for column in teacher.score([], [], margin=True):
        assert column.shape == (0,)
    texts, tokens = teacher.generate([], 5)
    assert (texts, tokens.tolist(), tokens.dtype) == ([], [], int)


def test_questions_that_cannot_be_asked_are_refused():
    with pytest.raises(ValueError, match="must contain"):
        Question("{prompt} right?")
    with pytest.raises(ValueError, match="must begin with"):
        Question("Q: {prompt}{chain}")
    with pytest.raises(ValueError, match="begins with all tokens of the other"):
        InProcessTeacher(LM, question=Question(yes=" n", no=" no"))


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
    values = [None, *(-abs(float(ord(c) - ord("a"))) for c in tokens[1:])]
    found = {"tokens": tokens, "token_logprobs": values, "text_offset": list(range(len(tokens)))}
    if body["logprobs"] > 1:
        pairs = zip(tokens[1:], values[1:], strict=True)
        found["top_logprobs"] = [None, *({token: value, "y": -30.0} for token, value in pairs)]
    return {"choices": [{"text": body["prompt"], "logprobs": found}], "usage": usage}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with served(Server()) as found:
        yield found


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
    written = http(server).generate(["p", "q"], 9, ("\n",), seed=4)
    assert written.texts == ["after p 4", "after q 5"]
    np.testing.assert_array_equal(written.tokens, [13, 13])


def reading(server, samples):
    teacher = http(server)
    examples = [encode_example(BYTES, "q:", sample, eos=False) for sample in samples]
    return teacher, teacher.read(BYTES, ["q:"] * len(samples), samples, examples, batch_of(examples))


def test_completions_list_the_likeliest_tokens_of_a_given_text(server):
    teacher, found = reading(server, ["cd", "e"])
    assert teacher.reads(LM)
    assert not http(server, api="chat").reads(LM)
    np.testing.assert_allclose(found.scores.log_probability, [-2.5, -4.0])
    assert found.scores.tokens.tolist() == [13, 13]
    assert found.target.known[:, 1:3].tolist() == [[1, 1], [1, 0]]
    row = dict(zip(found.target.ids[0, 2].tolist(), found.target.log_q[0, 2].tolist(), strict=True))
    assert (row[ord("d")], row[ord("y")]) == (-3.0, -30.0)
    np.testing.assert_allclose(found.sampled.log_q[0, 1:3], [-2.0, -3.0])
    assert server.requests[0]["logprobs"] == teacher_http.ALTERNATIVES


def test_a_server_without_lists_is_told_in_one_line(server):
    logprobs = {"tokens": ["q", ":", "c", "!"], "token_logprobs": [None, -1.0, -2.0, -1.0]}
    plain = {"choices": [{"text": "", "logprobs": logprobs}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    server.faults = [json.dumps(plain).encode()]
    with pytest.raises(TeacherError, match=r"lists no likely tokens of a given text.*choose signal reward"):
        reading(server, ["c"])


def test_an_end_that_the_server_shows_counts():
    found = {"tokens": ["a", "b", "</s>"], "token_logprobs": [None, -1.0, -3.0]}
    choice = {"logprobs": found}
    assert log_probs.echoed(choice, "a", "b") == (-1.0, 1)
    assert log_probs.echoed(choice, "a", "b", True) == (-2.0, 2)
    other = {"logprobs": found | {"tokens": ["a", "b", "c"]}}
    assert log_probs.echoed(other, "a", "b", True) == (-1.0, 1)


def test_chat_gives_margins_alone(server):
    found = http(server, api="chat").score(["ab"], ["cd"], margin=True)
    assert np.isnan(found.log_probability[0])
    np.testing.assert_allclose(found.margin[0], np.log(np.exp(-1) + np.exp(-2)) + 3.0)
    assert http(server, api="chat").generate(["p"], 9).texts == ["reply to p"]


def test_sampling_and_stop_strings_are_asked_for(server):
    http(server).generate(["p"], 9)
    http(server).generate(["p"], 7, ("\n", "Q:"), seed=4)
    greedy, sampled = server.requests
    assert (greedy["temperature"], greedy["max_tokens"], "stop" in greedy, "seed" in greedy) == (0.0, 9, False, False)
    assert (sampled["temperature"], sampled["max_tokens"], sampled["seed"]) == (1.0, 7, 4)
    assert sampled["stop"] == ["\n", "Q:"]


def test_texts_are_cut_at_stop_strings_beyond_those_that_servers_take(server):
    assert http(server).generate(["see A and B"], 9, ("1", "2", "3", "4", "A and", " a")).texts == ["after see A"]
    assert server.requests[0]["stop"] == ["1", "2", "3", "4"]
    with pytest.raises(ValueError, match="a stop string is empty"):
        http(server).generate(["p"], 9, ("",))


def test_words_that_are_not_listed_count_as_the_least_likely():
    assert log_probs.yes_or_no({"no": -0.5, "x": -4.0}, " yes", " no") == pytest.approx(-3.5)


@pytest.mark.parametrize("no", [-9999.0, -np.inf])
def test_what_a_server_cut_off_has_a_bounded_log_probability(no):
    margin = log_probs.yes_or_no({" yes": -0.5, "yes": -0.5, " no": no}, " yes", " no")
    assert margin == pytest.approx(np.log(2) - 0.5 + 100.0)
    assert log_probs.yes_or_no({" no": no, "x": -1.0}, " yes", " no") == 0.0
    assert log_probs.yes_or_no({" yes": -0.5, "x": no}, " yes", " no") == pytest.approx(99.5)
    choice = {"logprobs": {"tokens": ["a", "b", "c"], "token_logprobs": [None, no, -2.0]}}
    assert log_probs.echoed(choice, "a", "bc") == (-51.0, 2)


@pytest.mark.parametrize("value", [1000.0, 0.5, np.nan])
def test_what_is_not_a_log_probability_is_malformed(value):
    with pytest.raises(ValueError, match="is not a log-probability"):
        log_probs.yes_or_no({" yes": value, " no": -1.0}, " yes", " no")
    with pytest.raises(ValueError, match="is not a log-probability"):
        log_probs.echoed({"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, value]}}, "a", "b")


def test_offsets_may_be_missing_and_a_token_across_the_boundary_is_left_out():
    choice = {"logprobs": {"tokens": ["a", "bc", "d"], "token_logprobs": [None, -1.0, -2.0]}}
    assert log_probs.echoed(choice, "ab", "cd") == (-2.0, 1)


def refuse(code, text=b"busy", **headers):
    return lambda handler: handler.reply(code, text, **headers)


def hang(handler):
    time.sleep(0.6)
    handler.reply(200, b"{}")


def cut_off(code, text):
    def answer(handler):
        handler.send_response(code)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(text)
        handler.close_connection = True

    return answer


FAULTS = {
    "429": refuse(429, Retry_After="0"),
    "500": refuse(500),
    "not JSON": b"<html>",
    "no choices": b'{"usage": {"prompt_tokens": 1}}',
    "no usage": b'{"choices": [{"text": "x"}]}',
    "a list": b"[1]",
    "cut off": cut_off(200, b'{"choices"'),
    "500, cut off": cut_off(500, b"oops"),
    "infinite usage": b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": Infinity}}',
    "deeply nested": b"[" * 100_000,
    "a number as text": b'{"choices": [{"text": 5}], "usage": {"prompt_tokens": 1}}',
    "an object as text": b'{"choices": [{"text": {}}], "usage": {"prompt_tokens": 1}}',
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_passing_faults_are_retried(server, name):
    server.faults = [FAULTS[name], FAULTS[name]]
    assert http(server).generate(["p"], 9).texts == ["after p None"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("name", list(FAULTS))
def test_lasting_faults_end_in_one_line(server, name):
    server.faults = [FAULTS[name]] * 2
    with pytest.raises(TeacherError, match="2 attempts, given up") as error:
        http(server, retries=1).generate(["p"], 9)
    assert "\n" not in str(error.value)
    assert server.address in str(error.value)


def test_a_server_that_hangs_is_given_up_in_time(server):
    """Had it waited, the error would name the malformed answer that comes in the end."""
    server.faults = [hang]
    with pytest.raises(TeacherError, match="no answer in time"):
        http(server, timeout=0.1, retries=0).generate(["p"], 9)


def test_a_refusal_whose_message_hangs_is_tried_again(server):
    def hang_in_refusal(handler):
        handler.send_response(503)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        time.sleep(0.6)

    server.faults = [hang_in_refusal]
    assert http(server, timeout=0.2).generate(["p"], 9).texts == ["after p None"]


def test_a_server_that_answers_byte_by_byte_is_given_up_in_time(server):
    """Had it waited, the text would have come in the end."""

    def drip(handler):
        text = b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": 1}}'
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        for i in range(len(text)):
            handler.wfile.write(text[i : i + 1])
            time.sleep(0.02)

    server.faults = [drip]
    with pytest.raises(TeacherError, match="no answer in time"):
        http(server, timeout=0.3, retries=0).generate(["p"], 9)


def test_chunked_answers_are_read(server):
    def chunked(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in (b'{"choices": [{"text": "x"}], ', b'"usage": {"prompt_tokens": 1}}'):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    server.faults = [chunked]
    assert http(server, retries=0).generate(["p"], 9).texts == ["x"]


def test_waits_double_and_those_the_server_asks_for_go_before(server, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.faults = [refuse(500), refuse(429, Retry_After="7"), refuse(500), refuse(500)]
    http(server, backoff=0.5).generate(["p"], 9)
    assert waits == [0.5, 7.0, 2.0, 4.0]


def test_the_servers_own_message_is_shown(server):
    server.faults = [b'{"error": {"message": "model\\n overloaded"}}']
    with pytest.raises(TeacherError, match="the server says: 'model overloaded'; 1 attempts"):
        http(server, retries=0).generate(["p"], 9)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_named_and_not_followed(server, monkeypatch, code):
    monkeypatch.setenv("TEST_KEY", "secret")
    elsewhere = f"http://user:password@127.0.0.1:{server.server_address[1]}/other"
    server.faults = [refuse(code, b"", Location=elsewhere)]
    with pytest.raises(TeacherError, match=rf"HTTP {code} redirects to .*/other'; give that address") as error:
        http(server).generate(["p"], 9)
    assert "password" not in str(error.value)
    assert len(server.requests) == 1


def test_keys_are_stripped_and_never_shown(server, monkeypatch):
    monkeypatch.setenv("TEST_KEY", " secret\r\n")
    http(server).generate(["p"], 9)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    for key in ("sec\nret", "secré", "secr€t"):
        monkeypatch.setenv("TEST_KEY", key)
        with pytest.raises(ValueError, match="TEST_KEY: the key has characters") as error:
            http(server)
        assert "sec" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://user:password@x/v1",
        "ftp://user:password@x",
        "user:password@x",
        f"http://{'a' * 300}/v1",
        "http://x/vé",
        "http://x y/v1",
        "http://x:port/v1",
        "http://[::1/v1",
        "http://:80/v1",
    ],
)
def test_addresses_that_cannot_be_are_refused_at_once(address):
    with pytest.raises(ValueError, match=r"^teacher address .* write http://HOST/v1 or https://HOST/v1$") as error:
        HttpTeacher(address, "big")
    assert "password" not in str(error.value).replace("user and password are not sent", "")


def test_what_no_attempt_can_mend_is_not_tried_again(server):
    server.faults = [refuse(401, b"wrong key")]
    with pytest.raises(TeacherError, match="HTTP 401, 'wrong key'; check address"):
        http(server).generate(["p"], 9)
    assert len(server.requests) == 1
    server.faults = [refuse(429, Retry_After="9999")]
    with pytest.raises(TeacherError, match="asks to wait 9999 s"):
        http(server).generate(["p"], 9)


def test_a_server_that_is_not_there_is_named():
    nobody = HttpTeacher("http://127.0.0.1:1/v1", "big", retries=0)
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1:1"):
        nobody.generate(["p"], 9)
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
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ValueError, match=r"replay\.jsonl:1: no line of a replay file"):
        Replay(path)
    with pytest.raises(FileNotFoundError, match="run once online"):
        Replay(tmp_path / "none", offline=True)


def test_a_damaged_answer_is_asked_for_again(tmp_path):
    path = tmp_path / "replay.jsonl"
    kept = Replay(path)
    for number in (1, 2, 3):
        kept.put({"a": number}, {"x": number})
    sound = path.read_text()
    path.write_text(sound.replace('"x": 2', '"x": 7'))
    with pytest.warns(UserWarning, match=r"replay\.jsonl:2 is damaged \(it differs from its checksum\)"):
        offline = Replay(path, offline=True)
    with pytest.raises(ValueError, match="no answer to this request \\(of its lines 1 are damaged\\)"):
        offline.get({"a": 2})
    with pytest.warns(UserWarning, match="their requests are sent again"):
        again = Replay(path)
    assert [again.get({"a": number}) for number in (1, 2, 3)] == [{"x": 1}, None, {"x": 3}]
    again.put({"a": 2}, {"x": 2})
    assert sorted(path.read_text().splitlines()) == sorted(sound.splitlines())


def test_a_replay_file_from_before_checksums_is_read(tmp_path):
    path = tmp_path / "replay.jsonl"
    Replay(path).put({"a": 1}, {"x": 1})
    line = json.loads(path.read_text())
    path.write_text(json.dumps({"key": line["key"], "answer": line["answer"]}) + "\n")
    assert Replay(path).get({"a": 1}) == {"x": 1}


def test_a_replay_file_without_its_last_line_break_can_be_added_to(tmp_path):
    path = tmp_path / "replay.jsonl"
    Replay(path).put({"a": 1}, {"x": 1})
    whole = path.read_text()
    for cut in range(1, len(whole)):
        path.write_text(whole + whole[:cut])
        before = len(Replay(path))
        Replay(path).put({"a": 3}, {"x": 3})
        assert len(Replay(path)) == before + 1
        assert Replay(path).get({"a": 1}) == {"x": 1}


def test_a_file_that_is_none_of_ours_is_not_changed(tmp_path):
    path = tmp_path / "notes"
    for text in (b"hello", b"hello\n", b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="notes:1: no line of a replay file"):
            Replay(path)
        assert path.read_bytes() == text


class Chat:
    """Scores as a chat endpoint gives them: margins, if any."""

    def score(self, prompts, chains, margin=False):
        nan, zero = np.full(len(chains), np.nan), np.zeros(len(chains), int)
        found = np.asarray([-float(len(chain)) for chain in chains])
        return Scores(nan, found if margin else nan, zero, zero + 3)

    def generate(self, prompts, max_tokens, stop=(), seed=None):
        raise NotImplementedError


class Undecided(Chat):
    """Has no verdict on the first of all samples, nor on any that is `silent`."""

    def __init__(self, silent=False):
        self.silent = silent

    def score(self, prompts, chains, margin=False):
        found = super().score(prompts, chains, margin)
        found.margin[: None if self.silent else 1] = np.nan
        return found


def session_of(reward, teacher):
    config = policy_gradient.AdaptConfig(samples=2, steps=1, reward=reward)
    three, two = (("a:", " xx"), ("a:", " y"), ("a:", " xyz")), (("b:", " x"), ("b:", " ww"))
    problems = [Problem("a", three), Problem("b", two)]
    student = Student(LM, zero_state(CONFIG, None))
    keys = jax.random.split(jax.random.key(0), 2)
    return Session(student, policy_gradient.make_program(MODEL, config), teacher, problems, keys, config)


def alone(reward):
    return baselines.teacher_alone(session_of(reward, Chat()))


def test_a_missing_verdict_chooses_nothing_and_moves_nothing():
    session = session_of("margin", Undecided())
    assert baselines.teacher_alone(session)[0].results == [NOT_CHOSEN, 0.0, NOT_CHOSEN]
    examples, _ = GivenChoices(session).teacher_answers()
    assert [BYTES.decode(example.tokens.tolist()) for example in examples] == ["a: y", "b: x"]
    weights = GivenChoices(session).explore(session.program.start(2).delta, 0).weights
    gains = np.asarray(weights[0]).reshape(2, 3)
    assert not gains[0].any()
    assert gains[1, :2].all()
    with pytest.raises(ValueError, match="gives no log_probability of a choice"):
        baselines.teacher_alone(session_of("margin", Undecided(silent=True)))


def test_without_log_probabilities_the_larger_model_chooses_by_margin():
    found = alone("margin")
    assert [a.results for a in found] == [[NOT_CHOSEN, 0.0, NOT_CHOSEN], [0.0, NOT_CHOSEN]]
    assert [a.cost.teacher_tokens for a in found] == [9, 6]
    with pytest.raises(ValueError, match="gives no log_probability of a choice; choose reward margin"):
        alone("log_probability")
