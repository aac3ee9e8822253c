"""The benchmark of servers: what a client sees is what is counted, and a server that answers wrong gets no time."""

import ast
import sys

import pytest

from experiments import cli
from experiments.bench import serving, serving_files
from experiments.bench.gguf_file import CONTROL, NORMAL, UNUSED, spelled
from experiments.bench.inputs import SHAPES
from experiments.bench.serving import CACHED, COLD, OTHER, RESTART, SAME, Comparison, Line, Wait
from experiments.bench.serving_files import OURS, PEER, Files
from experiments.bench.streams import Answer, Served
from rwkv7_jax.tokenizer import WorldTokenizer

SCRIPT = """
import http.server, json, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_POST(self):
        table = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if table["prompt"] == [0]:
            self.send_error(400, "no")
            return
        self.send_response(200)
        self.end_headers()
        if not table.get("stream"):
            logprobs = {"token_logprobs": [-1.0, -2.0]}
            logprobs = logprobs if table["prompt"] == [1] else {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}
            self.wfile.write(json.dumps({"choices": [{"logprobs": logprobs}]}).encode())
            return
        def part(**more):
            self.wfile.write(b"data: " + json.dumps(more).encode() + b"\\n\\n")
        part(choices=[{"text": ""}])
        part(choices=[{"text": "a"}], usage=None)
        time.sleep(0.05)
        part(choices=[{"text": "bc"}], usage=None)
        if table["prompt"] == [3]:
            part(error={"message": "it broke"})
        elif table["prompt"] != [4]:
            part(choices=[], usage={"completion_tokens": table["max_tokens"]})
        self.wfile.write(b"data: [DONE]\\n\\n")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("a banner")
print(f"serving some at http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def server():
    with Served([sys.executable, "-c", SCRIPT]) as found:
        yield found


def test_an_answer_is_timed_as_its_client_sees_it(server):
    answer = server.ask({"prompt": [2], "max_tokens": 3})
    assert answer.tokens == 3
    assert 0 < answer.first_s < answer.first_s + 0.04 < answer.whole_s
    answers, seconds = server.burst([{"prompt": [2], "max_tokens": count} for count in (1, 2, 3, 4)])
    assert [one.tokens for one in answers] == [1, 2, 3, 4]
    assert max(one.whole_s for one in answers) <= seconds
    assert server.logprobs({"prompt": [1]}) == server.logprobs({"prompt": [2]}) == [-1.0, -2.0]


@pytest.mark.parametrize(("token", "told"), [(0, "answers 400"), (3, "breaks off: .*it broke"), (4, "no number")])
def test_what_is_no_whole_answer_is_an_error(server, token, told):
    with pytest.raises(RuntimeError, match=told):
        server.ask({"prompt": [token], "max_tokens": 1})


@pytest.mark.parametrize(
    ("code", "told"),
    [("raise SystemExit('error: no such model')", "^error: no such model$"), ("pass", "ended without a message")],
)
def test_a_server_that_does_not_start_is_one_line(code, told):
    with pytest.raises(RuntimeError, match=told):
        Served([sys.executable, "-c", code])


class Fake:
    """A server that answers every second request at once."""

    model = "m"

    def __init__(self, words):
        self.who, self.asked = PEER if "llama" in " ".join(words) else OURS, 0

    def ask(self, table):
        self.asked += 1
        first = 0.01 * len(table["prompt"]) if self.asked % 2 else 0.001
        return Answer(first, 1.0, table["max_tokens"])

    def burst(self, tables):
        assert len({tuple(table["prompt"]) for table in tables}) == len(tables)
        return [self.ask(table) for table in tables], 2.0 if self.who == OURS else 4.0

    def logprobs(self, table):
        return [-1.0] * table["max_tokens"]

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def files(tmp_path):
    return Files("tiny", tmp_path / "random.pth", "auto", tmp_path, "")


def test_every_measurement_is_taken_of_every_contender(files, monkeypatch):
    monkeypatch.setattr(serving, "Served", Fake)
    lines = serving.throughput(files, (OURS, PEER), 4, 6, 2)
    assert [(line.who, line.tokens_per_s, line.problem) for line in lines] == [(OURS, 12.0, ""), (PEER, 6.0, "")]
    waits = serving.first_tokens(files, (OURS, PEER), 2)
    assert [(wait.what, wait.who) for wait in waits] == [(COLD, OURS), (COLD, PEER), (CACHED, OURS), (CACHED, PEER)]
    assert [wait.seconds for wait in waits] == [20.0, 20.0, 0.001, 0.001]
    assert [(wait.what, wait.problem) for wait in serving.swaps(files, 1)] == [(SAME, ""), (OTHER, "")]
    assert serving.restart(2).what == RESTART


def test_a_server_that_disagrees_gets_no_time(files, monkeypatch):
    class Wrong(Fake):
        def logprobs(self, table):
            return [-1.0 if self.who == PEER else -1.1] * table["max_tokens"]

    monkeypatch.setattr(serving, "Served", Wrong)
    ours, peer = serving.throughput(files, (OURS, PEER), 1, 2, 1)
    assert ours.problem.startswith("wrong: differs by")
    assert peer.problem == ""
    short = type("Short", (Fake,), {"logprobs": lambda self, table: [-1.0] * (3 + (self.who == PEER))})
    monkeypatch.setattr(serving, "Served", short)
    assert serving.throughput(files, (OURS, PEER), 1, 2, 1)[0].problem == "wrong: answers with 3 tokens, not 4"


def test_what_cannot_be_measured_is_a_line(files, monkeypatch):
    def refused(words):
        raise RuntimeError("error: serve needs starlette")

    monkeypatch.setattr(serving, "Served", refused)
    lines = serving.throughput(files._replace(problem="No module named 'gguf'"), (OURS, PEER), 1, 2, 1)
    waits = [*serving.swaps(files, 1), serving.restart(1)]
    text = serving.show(Comparison("tiny", 1, 2, lines, waits))
    assert "| 1 | ours | not measured: error: serve needs starlette |" in text
    assert "| 1 | llama.cpp | not measured: No module named 'gguf' |" in text
    assert text.count("not measured") == 5


def test_the_tables_show_ratios():
    lines = [Line(8, OURS, 30.0, 0.5), Line(8, PEER, 20.0, 1.5), Line(1, OURS, 9.0, 0.1)]
    waits = [Wait(COLD, OURS, 2.0), Wait(CACHED, OURS, 0.1), Wait(SAME, OURS, 0.02), Wait(OTHER, OURS, 0.0205)]
    text = serving.show(Comparison("tiny", 1, 2, lines, waits))
    assert "| 8 | ours | 30.0 | 1.50 | 500.0 ms |" in text
    assert "| 8 | llama.cpp | 20.0 | 1.00 | 1.50 s |" in text
    assert "| 1 | ours | 9.0 |  | 100.0 ms |" in text
    assert f"| {CACHED} | ours | 100.0 ms | 0.050 of that (-1900.00 ms) |" in text
    assert f"| {OTHER} | ours | 20.5 ms | 1.025 of that (+0.50 ms) |" in text


def test_the_small_vocabulary_is_one(tmp_path):
    path = serving_files.write_vocabulary(tmp_path / "v.txt", SHAPES["tiny"].vocab_size)
    tokenizer = WorldTokenizer(path)
    assert tokenizer.used == SHAPES["tiny"].vocab_size
    assert tokenizer.decode(tokenizer.encode("a, bc")) == "a, bc"
    assert serving_files.write_vocabulary(tmp_path / "w.txt", 65536) == "auto"


@pytest.mark.parametrize("text", [b"'", b'"', b"\\", b"\n", b"\xff\x00", b"it's", "ä".encode(), b"a\tb"])
def test_tokens_are_spelled_as_llama_cpp_reads_them(text):
    name, kind = spelled(7, text)
    assert (name.isascii(), name.isprintable(), kind) == (True, True, NORMAL)
    quote = '"' if "'" in name and '"' not in name and "\\'" not in name else "'"
    assert ast.literal_eval(f"b{quote}{name}{quote}") == text
    assert (spelled(0, b""), spelled(9, b"")) == (("<s>", CONTROL), ("[PAD9]", UNUSED))


@pytest.mark.parametrize(
    ("words", "told"),
    [("--streams 0", "error: --streams: 0 clients"), ("--tokens 0", "error: tokens: 0"), ("--without x", "no 'x'")],
)
def test_mistakes_are_one_line(words, told, capsys):
    assert cli.main(["bench", "serve", *words.split()]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_server_itself_is_measured_on_the_tiny_shape():
    pytest.importorskip("uvicorn")
    found = serving.compare("tiny", [2], 3, 1, [PEER], waits=False)
    assert [(line.streams, line.who, line.problem) for line in found.lines] == [(2, OURS, "")]
    assert found.lines[0].tokens_per_s > 0
    assert found.as_json()["waits"] == []


def test_llama_cpps_server_answers_alike_on_the_tiny_shape():
    for needed in ("uvicorn", "gguf", "xllamacpp"):
        pytest.importorskip(needed)
    found = serving.compare("tiny", [2], 3, 1, waits=False)
    assert [(line.who, line.problem) for line in found.lines] == [(OURS, ""), (PEER, "")]
