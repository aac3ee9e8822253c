"""What an HTTP teacher makes of servers that answer wrongly, late, without end, or with what should not be shown.

`RWKV7_TEST_SERVERS=N` tries N random servers instead of 20.
"""

import contextlib
import gzip
import itertools
import json
import os
import socket
import threading
import time
import tracemalloc
from email.utils import formatdate

import numpy as np
import pytest

from rwkv7_jax.tokenizer.json import byte_symbols
from state_tuning.test_time_scaling.teacher import log_probs
from state_tuning.test_time_scaling.teacher.echo import NotEchoed, tokens_of_sample
from state_tuning.test_time_scaling.teacher.foreign_text import quoted
from state_tuning.test_time_scaling.teacher.http import HttpTeacher
from state_tuning.test_time_scaling.teacher.http_client import TeacherError
from state_tuning.test_time_scaling.teacher.replay import Replay

KEY = "sk-7Hq2mZ0vT4xWb9Lk"
SERVERS = int(os.environ.get("RWKV7_TEST_SERVERS", "20"))
SEED = int(os.environ.get("RWKV7_TEST_SEED", "0"))
SOUND = {"choices": [{"text": "fine", "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
SLACK = 5.0
"""Seconds that a busy machine may add to a deadline."""


class Server:
    """Reads one request a connection and calls `behave(connection, request)`, until the test ends."""

    def __init__(self, behave):
        self.behave, self.requests, self.listener = behave, [], socket.create_server(("127.0.0.1", 0))
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            try:
                file = connection.makefile("rb")
                length = 0
                while (line := file.readline()) not in (b"\r\n", b""):
                    length = int(line.split(b":")[1]) if line.lower().startswith(b"content-length") else length
                self.requests.append(json.loads(file.read(length)))
                self.behave(connection, self)
                connection.shutdown(socket.SHUT_WR)
                while not self.over.is_set() and connection.recv(4096):
                    pass
            except (OSError, ValueError):
                pass

    def close(self):
        """Ends all that the server does."""
        self.over.set()
        with contextlib.suppress(OSError):  # Wakes the thread that accepts, which closing alone does not do on Linux.
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def drip(self, connection, piece, seconds=0.02):
        """Sends `piece` again and again until the test ends."""
        while not self.over.wait(seconds):
            connection.sendall(piece)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("TEST_KEY", KEY)
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def http(server, **options):
    settings = {"backoff": 0.01, "timeout": 5.0, "retries": 1, "key_variable": "TEST_KEY"}
    return HttpTeacher(server.address, "big", **{**settings, **options})


def reply(body, status="200 OK", *headers, length=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def sends(*pieces):
    """A server that sends these and closes."""

    def behave(connection, _):
        for piece in pieces:
            connection.sendall(piece)

    return behave


def drips(beginning, piece, seconds=0.02):
    """A server that sends a beginning, and then a piece for ever."""

    def behave(connection, server):
        connection.sendall(beginning)
        server.drip(connection, piece, seconds)

    return behave


def silent(_, server):
    server.over.wait(20)


def floods(beginning, piece):
    return drips(beginning, piece, 0.0)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVIL = f"\x1b[31m\x1b]0;owned\x07‮{KEY}‬\r\nnext line\x00"
MANY = b'{"choices": [' + b"[]," * 1_200_000 + b"0]}"


def usage(**numbers):
    return sends(reply({**SOUND, "usage": {"prompt_tokens": 3, **numbers}}))


HOSTILE = {
    "silence": silent,
    "closes at once": sends(),
    "a status line that drips": drips(b"HTTP/1.1 200 ", b"O"),
    "headers that drip": drips(HEAD, b"X-More: 1\r\n"),
    "one header that drips": drips(HEAD + b"X-More: ", b"1"),
    "100 Continue for ever": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "100 Continue as fast as it can": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a body that drips": drips(HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
    "chunks that drip": drips(CHUNKED, b"1\r\n \r\n"),
    "a chunk size that drips": drips(CHUNKED, b"0"),
    "trailers that drip": drips(CHUNKED + b"0\r\n", b"X: y\r\n"),
    "a refusal that drips": drips(b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n", b"x"),
    "an endless body": floods(HEAD + b"\r\n", b" " * 65536),
    "an endless refusal": floods(b"HTTP/1.1 503 No\r\n\r\n", b" " * 65536),
    "endless chunks": floods(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "a gzip bomb": sends(reply(gzip.compress(b" " * 2**24), "200 OK", "Content-Encoding: gzip")),
    "a header of 60 kB a hundred times": sends(HEAD + (b"X: " + b"y" * 60_000 + b"\r\n") * 100 + b"\r\n"),
    "millions of values": sends(reply(MANY)),
    "deep nesting": sends(reply(b'{"choices": ' + b"[" * 500 + b"]" * 500 + b"}")),
    "an integer of 10,000 digits": sends(reply(b'{"usage": ' + b"9" * 10_000 + b"}")),
    "a body that is too short": sends(reply(SOUND, length=1000)),
    "a length of 10^30": sends(reply(SOUND, length=10**30)),
    "a negative chunk": sends(CHUNKED + b"-5\r\n" + b"x" * 100),
    "no HTTP": sends(b"SSH-2.0-" + EVIL.encode() + b"\r\n"),
    "a version with escapes": sends(b"HTTP/" + EVIL.encode().replace(b"\r\n", b" ") + b" 200 OK\r\n\r\n"),
    "the key in a 401": sends(reply(EVIL.encode(), "401 No")),
    "the key in a 500": sends(reply(EVIL.encode(), "500 No")),
    "the key in an error": sends(reply({"error": {"message": EVIL}})),
    "the key at the cut of a message": sends(reply(b"x " * 90 + KEY.encode(), "401 No")),
    "half of the key": sends(reply(f"wrong key {KEY[:12]}", "401 No")),
    "the key in what is not JSON": sends(reply(EVIL.encode())),
    "a redirect with escapes": sends(reply(b"", "302 Found", f"Location: http://x/\x1b[31m{KEY}\x9b31m")),
    "a reason of 60 kB": sends(reply(b"x" * 5000, "400 " + "y" * 60_000)),
    "wait for a day": sends(reply(b"busy", "429 No", "Retry-After: 86400")),
    "wait for a while": sends(reply(b"busy", "429 No", "Retry-After: 100")),
    "wait until a near date": sends(reply(b"busy", "503 No", f"Retry-After: {formatdate(time.time() + 100)}")),
    "wait until the year 9999": sends(reply(b"busy", "429 No", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT")),
    "wait until no date": sends(reply(b"busy", "429 No", "Retry-After: Fri, 99 Foo 20 25:61:61 GMT")),
    "wait for a word": sends(reply(b"busy", "429 No", "Retry-After: later")),
    "wait for 1e2": sends(reply(b"busy", "429 No", "Retry-After: 1e2")),
    "usage of 10^30": usage(completion_tokens=10**30),
    "negative usage": usage(completion_tokens=-5),
    "boolean usage": usage(completion_tokens=True),
    "usage that is a half": usage(prompt_tokens=0.5),
    "usage in words": usage(prompt_tokens=EVIL),
    "usage that is infinite": sends(reply(b'{"choices": [{"text": ""}], "usage": {"prompt_tokens": 1e999}}')),
    "a list of texts of numbers": sends(reply({**SOUND, "choices": [{"text": [1, 2]}]})),
}


@contextlib.contextmanager
def bounded_memory(limit=64 * 2**20):
    """Checks the bytes that Python objects take at once in the block."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        assert tracemalloc.get_traced_memory()[1] - before < limit
    finally:
        tracemalloc.stop()


def ends(call, limit):
    """The one line in which a call ends, within its time."""
    begin = time.monotonic()
    with pytest.raises(TeacherError) as error:
        call()
    assert time.monotonic() - begin < limit + SLACK
    fit_to_show(str(error.value))
    assert error.value.__cause__ is None
    return str(error.value)


def fit_to_show(message):
    assert message.isprintable()
    assert len(message) < 450
    assert not any(KEY[i : i + 8] in message for i in range(len(KEY) - 7))


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_servers_are_given_up_in_time_in_one_line(serve, name):
    server = serve(HOSTILE[name])
    teacher = http(server, timeout=0.15)
    with bounded_memory():
        message = ends(lambda: teacher.generate(["p"], 9), 2 * 0.15 + 0.01)
    assert server.address.removesuffix("/v1") in message


@pytest.mark.parametrize(
    "name", ["an endless body", "endless chunks", "a gzip bomb", "an endless refusal", "millions of values"]
)
def test_the_size_of_an_answer_is_bounded(serve, name):
    server = serve(HOSTILE[name])
    with bounded_memory(), pytest.raises(TeacherError):
        http(server, timeout=10.0, retries=0).generate(["p"], 9)


@pytest.mark.parametrize("value", [b'{"":[]},', '"\N{GRINNING FACE}",'.encode()])
def test_the_values_of_an_answer_are_bounded(serve, value):
    """The longest answer that is not refused unread."""
    separators = sum(map(value.count, (b",", b":", b"[", b"{")))
    count = min(390_000 // separators, 4_000_000 // len(value))
    body = b'{"choices": [' + value * count + b"0]}"
    server = serve(sends(reply(body)))
    with bounded_memory(), pytest.raises(TeacherError, match="it has no"):
        http(server, timeout=60.0, retries=0).generate(["p"], 9)


INSTEAD = [b"1e999", b"-1", b"true", b"null", b"[]", b"{}", b"NaN", b"9" * 50, b'"\\ud800\\u001b[2J"']
INSTEAD += [json.dumps(text).encode() for text in (KEY, EVIL, "x" * 5000)]
MORE = [
    "Retry-After: 5",
    "Retry-After: x",
    "Transfer-Encoding: chunked",
    f"Location: {KEY}\x1b",
    "Content-Encoding: br",
]


def damaged(rng):
    """A sound answer with up to three faults, sent in some way."""
    body, status, headers, length = json.dumps(SOUND).encode(), "200 OK", [], None
    faults = rng.choice(["value", "value", "status", "header", "length", "byte", "cut", "drip"], rng.integers(4))
    for fault in faults:
        if fault == "value":
            old = [b'"fine"', b"3", b"1", b'"stop"'][rng.integers(4)]
            body = body.replace(old, INSTEAD[rng.integers(len(INSTEAD))], 1)
        elif fault == "status":
            status = ["500 No", "429 No", "301 Moved", "204 No", "401 No", "200 \x1b[2J"][rng.integers(6)]
        elif fault == "header":
            headers.append(MORE[rng.integers(len(MORE))])
        elif fault == "length":
            length = [0, 5, 10**9, -1][rng.integers(4)]
    whole = bytearray(reply(body, status, *headers, length=length))
    for _ in range(3 * int("byte" in faults)):
        whole[rng.integers(len(whole))] = rng.integers(256)
    whole = bytes(whole[: rng.integers(len(whole)) if "cut" in faults else None])
    if "drip" in faults:
        at = rng.integers(len(whole) + 1)
        return drips(whole[:at], whole[at : at + 1] or b" ", 0.01)
    return sends(whole)


def test_damaged_answers_are_read_or_given_up_in_time(serve, tmp_path):
    """Whatever comes, there is a text or one line, in time, in little memory, without the key, also in the replay file.

    Every fifth server is one of the `HOSTILE` ones.
    """
    texts, slowest = 0, 0.0
    for number in range(SERVERS):
        rng, path = np.random.default_rng([SEED, number]), tmp_path / f"{number}.jsonl"
        server = serve(damaged(rng) if number % 5 else list(HOSTILE.values())[rng.integers(len(HOSTILE))])
        teacher = http(server, timeout=0.15, replay=Replay(path))
        begin = time.monotonic()
        try:
            with bounded_memory():
                found = teacher.generate(["p"], 9)
            assert KEY not in found.texts[0]
            found.texts[0].encode()
            assert 0 <= found.tokens[0] < 10**9
            texts += 1
        except TeacherError as error:
            fit_to_show(str(error))
        slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 0.31 + SLACK, number
        server.close()
        kept = path.read_text() if path.exists() else ""
        assert KEY not in kept
        for line in kept.splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    print(f"{SERVERS} servers: {texts} texts, {SERVERS - texts} given up; one at most {slowest:.1f} s")
    assert texts


def test_a_request_with_a_slow_reader_is_given_up_in_time(monkeypatch):
    """The server takes the connection and reads nothing of a request that no buffer holds."""
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        teacher = HttpTeacher(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "big", timeout=0.3, retries=0)
        assert "no answer in time" in ends(lambda: teacher.generate(["p" * 30_000_000], 9), 2.0)


def test_a_short_wait_that_the_server_asks_for_is_waited(serve):
    replies = [reply(b"busy", "429 No", "Retry-After: 1"), reply(SOUND)]
    server = serve(lambda connection, _: connection.sendall(replies.pop(0)))
    begin = time.monotonic()
    assert http(server).generate(["p"], 9).texts == ["fine"]
    assert time.monotonic() - begin > 0.9


def test_a_key_in_an_answer_is_taken_out_of_it_and_of_the_replay_file(serve, tmp_path):
    server = serve(sends(reply({**SOUND, "choices": [{"text": f"the key is {KEY}.", KEY: [KEY]}]})))
    path = tmp_path / "replay.jsonl"
    assert http(server, replay=Replay(path)).generate(["p"], 9).texts == ["the key is [key]."]
    assert KEY not in path.read_text()
    assert http(server, replay=Replay(path, offline=True)).generate(["p"], 9).texts == ["the key is [key]."]


def test_words_that_stand_for_a_key_stay_in_answers(serve, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "EMPTY")
    server = serve(sends(reply({**SOUND, "choices": [{"text": "EMPTY means empty"}]})))
    assert http(server).generate(["p"], 9).texts == ["EMPTY means empty"]
    monkeypatch.setenv("TEST_KEY", "ollama")
    server = serve(sends(reply({**SOUND, "choices": [{"text": "an ollama"}]})))
    assert http(server).generate(["what is ollama"], 9).texts == ["an ollama"]


def test_foreign_text_is_quoted_and_cut():
    assert quoted("a\n\x1b[0m‮b\x9b") == r"'a \x1b[0m\u202eb\x9b'"
    assert len(quoted("\U000e0001" * 5000)) <= 203
    assert quoted("x" * 5000).startswith("'xxx")
    assert quoted(b"\xff\x00") == r"'�\x00'"


def test_half_characters_become_whole_ones(serve):
    server = serve(sends(reply(b'{"choices": [{"text": "a\\ud83dz \\ud83d\\ude00"}], "usage": {"prompt_tokens": 1}}')))
    assert http(server).generate(["p"], 9).texts == ["a�z \N{GRINNING FACE}"]


# Where a chain lies in what a server echoes.

PROMPT, CHAIN = "Q: 2+2?\nA:", " 4 is it."
TOKENS = ["Q", ":", " 2", "+", "2", "?", "\n", "A", ":", " 4", " is", " it", "."]
NATS = [None, *[-7.0] * 8, -0.5, -1.5, -2.5, -3.5]


def echoes(tokens, nats, **more):
    found = {"tokens": [*tokens, "!"], "token_logprobs": [*nats, -9.0], **more}
    return sends(reply({"choices": [{"text": "".join(tokens), "logprobs": found}], "usage": {"prompt_tokens": 9}}))


def offsets(tokens):
    return np.cumsum([0, *map(len, tokens)])[:-1].tolist()


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("first", [[], ["<s>"], ["<|begin_of_text|>"], ["<s>", "<s>"], [""]])
def test_tokens_before_the_text_do_not_move_it(serve, first, offset):
    tokens, nats = [*first, *TOKENS], [*[None] * len(first), *([-7.0] if first else [None]), *NATS[1:]]
    more = {"text_offset": offsets([*tokens, "!"])} if offset else {}
    found = http(serve(echoes(tokens, nats, **more))).score([PROMPT], [CHAIN])
    np.testing.assert_allclose(found.log_probability, [-2.0])
    np.testing.assert_array_equal(found.length, [4])


@pytest.mark.parametrize("shown", ["�", "", "bytes"])
def test_tokens_of_partial_characters_do_not_move_it(serve, shown):
    """Four tokens of one byte each before the chain, three in it."""
    parts = {"�": ["�"] * 4, "": [""] * 4, "bytes": ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]}[shown]
    inside = {"�": ["�"] * 3, "": [""] * 3, "bytes": ["<0xE2>", "<0x82>", "<0xAC>"]}[shown]
    tokens, nats = ["<s>", "A", *parts, ":", " ", *inside, "."], [None, *[-7.0] * 6, *[-1.0, -2.0, -1.0, -2.0], -1.5]
    server = serve(echoes(tokens, nats, text_offset=offsets([*tokens, "!"])))
    found = http(server).score(["A\N{GRINNING FACE}:"], [" €."])
    np.testing.assert_allclose(found.log_probability, [-1.5])
    np.testing.assert_array_equal(found.length, [5])


def test_texts_of_many_scripts_are_found_however_parts_of_characters_are_shown():
    """Bytes cut into tokens at random, shown as servers show them."""
    rng = np.random.default_rng(0)
    alphabet = [*"ab :.\n", "é", "ß", "€", "中", "文", "ქ", "\N{GRINNING FACE}", "�"]
    for _ in range(300):
        prompt = "".join(rng.choice(alphabet, rng.integers(1, 12))) + ":"
        sample = " " + "".join(rng.choice(alphabet, rng.integers(1, 12))) + "."
        raw, own = prompt.encode() + sample.encode(), len(prompt.encode())
        cuts = sorted({0, own, len(raw), *rng.integers(0, len(raw), len(raw) // 2).tolist()})
        parts = [raw[a:b] for a, b in itertools.pairwise(cuts)]
        for errors in ("replace", "ignore"):
            tokens = ["<s>", *(one.decode(errors=errors) for one in parts), "!"]
            found = tokens_of_sample(tokens, prompt, sample)
            assert found == range(1 + cuts.index(own), len(tokens) - 1)
        symbols = byte_symbols()
        for spelled in (
            ["".join(symbols[byte] for byte in part) for part in parts],
            ["bytes:" + "".join(f"\\x{byte:02x}" for byte in part) for part in parts],
        ):
            assert tokens_of_sample(["<s>", *spelled, "!"], prompt, sample) == found


@pytest.mark.parametrize(
    ("tokens", "prompt", "sample", "found"),
    [
        (["▁Q", ":", "▁4", "."], "Q:", " 4", range(2, 3)),
        (["<s>", "▁Q", ":", "▁4"], "Q:", " 4", range(3, 4)),
        (["<s>", "b", "c", "!"], "", "bc", range(1, 3)),
        (["a", "a", "a"], "a", "a", range(1, 2)),
        (["aa", "a", "b"], "a", "aa", range(1, 2)),
        (["<s>", "<s>", "x", "y"], "<s>", "x", range(2, 3)),
        (["<|endoftext|>", "Q", ":", "Ġ4", "Ċ", "!"], "Q:", " 4\n", range(3, 5)),
        (["ĠQ", ":", "Ġ4"], "Q:", " 4", range(2, 3)),
        (["Q", ":", "Ġâ", "Ĥ", "¬", "."], "Q:", " €.", range(2, 6)),
        (["Q", "bytes: \\xe2\\x82", "bytes:\\xac", "."], "Q", " €.", range(1, 4)),
        (
            ["What", " is", " it", "token_id:9", "\n", "A:", " 4", "token_id:7", "!"],
            "What is it?\nA:",
            " 4.",
            range(6, 8),
        ),
        (["Q", ":", " bytes:x", "token_id:12"], "Q:", " bytes:xtoken_id:12", range(2, 4)),
    ],
)
def test_the_chain_is_found_by_its_text(tokens, prompt, sample, found):
    assert tokens_of_sample(tokens, prompt, sample) == found


@pytest.mark.parametrize("count", [2, 3, 5, 6, 9])
def test_ids_instead_of_tokens_are_refused_by_name(count):
    tokens = [f"token_id:{i}" for i in range(count)]
    with pytest.raises(NotEchoed, match=r"ids instead of tokens \(token_id:|leave open where the chain begins"):
        tokens_of_sample(tokens, "Q: 2", " 4")


def test_verdicts_are_read_in_any_spelling():
    for yes in (" yes", "Ġyes", "▁Yes", "yes"):
        assert log_probs.yes_or_no({yes: -0.5, "x": -1.5}, " yes", " no") == 1.0


@pytest.mark.parametrize(
    "tokens",
    [["!"], [], ["Q", ":", "4"], ["q", ":", " ", "4"], ["token_id:5"] * 4, ["�"] * 4, [""] * 40, ["Q", ":", " "]],
)
def test_tokens_that_do_not_spell_the_request_are_refused(serve, tokens):
    server = serve(echoes(tokens, [-1.0] * len(tokens), text_offset=list(range(len(tokens) + 1))))
    message = ends(lambda: http(server).score(["Q:"], [" 4"]), 5.0)
    assert "do not spell prompt and chain" in message
    assert len(server.requests) == 1


def test_hostile_tokens_take_no_time():
    text, begin = "€" * 20_000, time.process_time()
    for tokens in (["�"] * 100_000, [""] * 100_000, ["€€"] * 9000, ["a" * 4_000_000], ["�" * 100_000] * 9):
        with pytest.raises(ValueError, match=r"spell|leave open"):
            tokens_of_sample(tokens, text, text + ".")
    assert time.process_time() - begin < 10


def test_a_missing_log_probability_inside_the_chain_is_malformed(serve):
    server = serve(echoes(TOKENS, [*NATS[:10], None, *NATS[11:]]))
    assert "None is not a log-probability" in ends(lambda: http(server).score([PROMPT], [CHAIN]), 5.0)


@pytest.mark.parametrize("value", [True, False, "-1.0", 10**400, float("nan"), [], {}])
def test_log_probabilities_are_numbers(serve, value):
    server = serve(echoes(TOKENS, [*NATS[:10], value, *NATS[11:]]))
    assert "is not a log-probability" in ends(lambda: http(server).score([PROMPT], [CHAIN]), 5.0)


def test_a_log_probability_far_below_counts_as_the_least(serve):
    server = serve(echoes(TOKENS, [*NATS[:10], -(10**400), *NATS[11:]]))
    found = http(server).score([PROMPT], [CHAIN])
    np.testing.assert_allclose(found.log_probability, [(-0.5 - 100.0 - 2.5 - 3.5) / 4])


# Answers that say nothing.


@pytest.mark.parametrize("logprobs", [None, {}, {"tokens": None}, {"content": [{"token": "!", "logprob": -1.0}]}])
def test_a_server_without_log_probabilities_is_asked_once(serve, logprobs):
    server = serve(sends(reply({**SOUND, "choices": [{"text": "x", "logprobs": logprobs}]})))
    message = ends(lambda: http(server, retries=4).score([PROMPT], [CHAIN]), 5.0)
    assert "the server gives no log-probabilities" in message
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "logprobs", [None, {"content": None}, {"content": []}, {"content": [{"token": "yes", "top_logprobs": []}]}]
)
def test_a_chat_server_without_log_probabilities_is_asked_once(serve, logprobs):
    server = serve(sends(reply({**SOUND, "choices": [{"message": {"content": "yes"}, "logprobs": logprobs}]})))
    message = ends(lambda: http(server, api="chat", retries=4).score(["Q"], ["A"], margin=True), 5.0)
    assert "the server gives no log-probabilities" in message
    assert len(server.requests) == 1


def thinks(connection, server):
    """A model that reasons first, as its server answers."""
    rows = [{"token": "<think>", "logprob": -0.0001}, {"token": "\n", "logprob": -12.0}]
    message = {"role": "assistant", "content": "", "reasoning": "The user asks"}
    choice = {
        "finish_reason": "length",
        "message": message,
        "logprobs": {"content": [{**rows[0], "top_logprobs": rows}]},
    }
    connection.sendall(reply({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}))


def test_a_model_that_reasons_first_gives_no_verdict_and_no_text(serve):
    teacher = http(serve(thinks), api="chat")
    message = ends(lambda: teacher.score(["Q", "R"], ["A", "B"], margin=True), 5.0)
    assert "no verdict: '<think>' is the likeliest first token, and neither of 'yes' and 'no'" in message
    assert "an answer without text that was cut short (length)" in ends(lambda: teacher.generate(["Q"], 9), 5.0)


def test_single_verdicts_that_are_missing_are_counted(serve):
    """The one of three that cannot be scored is NaN, which counts as the smallest and moves nothing."""

    def behave(connection, server):
        sure = "unsure" not in server.requests[-1]["messages"][0]["content"]
        top = {"yes": -1.0, "no": -3.0} if sure else {"maybe": -0.1}
        rows = [{"token": token, "logprob": value} for token, value in top.items()]
        choice = {"message": {"content": "y"}, "logprobs": {"content": [{"top_logprobs": rows}]}}
        connection.sendall(reply({"choices": [choice], "usage": {"prompt_tokens": 9}}))

    teacher = http(serve(behave), api="chat", workers=1)
    found = teacher.score(["Q"] * 3, [" a", " unsure", " b"], margin=True)
    np.testing.assert_array_equal(found.margin, [2.0, np.nan, 2.0])
    np.testing.assert_array_equal(found.tokens, [9, 9, 9])
    assert dict(teacher.missing) == {"margin": 1}


@pytest.mark.parametrize("reason", ["length", "content_filter"])
@pytest.mark.parametrize("text", ["", None])
def test_an_empty_text_that_was_cut_short_is_not_an_answer(serve, text, reason):
    server = serve(sends(reply({**SOUND, "choices": [{"text": text, "finish_reason": reason}]})))
    assert f"cut short ({reason})" in ends(lambda: http(server, retries=4).generate(["p"], 9), 5.0)
    assert len(server.requests) == 1
    server = serve(sends(reply({**SOUND, "choices": [{"text": "", "finish_reason": "stop"}]})))
    assert http(server).generate(["p"], 9).texts == [""]


def test_the_parts_of_a_text_are_joined(serve):
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "It is"}, {"type": "text", "text": " 4."}]
    server = serve(sends(reply({**SOUND, "choices": [{"message": {"content": parts}}]})))
    assert http(server, api="chat").generate(["p"], 9).texts == ["It is 4."]


def test_words_that_are_not_listed_give_no_verdict():
    assert np.isnan(log_probs.yes_or_no({"maybe": -0.5, "x": -4.0}, " yes", " no"))


@pytest.mark.parametrize("more", [{"refusal": "I cannot."}, {"reasoning_content": "Hm."}, {}])
def test_an_answer_without_text_is_not_an_empty_one(serve, more):
    choice = {"message": {"content": None} | more, "finish_reason": "stop"}
    server = serve(sends(reply({"choices": [choice], "usage": {"prompt_tokens": 9}})))
    assert "an answer without text" in ends(lambda: http(server, api="chat").generate(["p"], 9), 5.0)
