"""The tokenizer in the form of vLLM, as lm-evaluation-harness reads it, and health."""

TEXT = "Mira has 3 red stones.\nBoris:"


def test_the_tokenizer_is_that_of_the_model(served):
    told = served.post("/tokenize", prompt=TEXT, add_special_tokens=False)
    assert told["tokens"] == served.lm.encode(TEXT)
    assert told["count"] == len(told["tokens"])
    assert served.post("/detokenize", tokens=told["tokens"])["prompt"] == TEXT
    assert served.post("/tokenize", prompt="")["tokens"] == []
    assert served.post("/detokenize", tokens=[])["prompt"] == ""


def test_the_end_token_is_spelled_so_that_it_is_tokenised_again(served):
    """The harness puts it before prompts without a context."""
    info = served.http.get("/tokenizer_info").json()
    assert served.post("/tokenize", prompt=info["eos_token"])["tokens"] == [served.lm.tokenizer.eos_id]


def test_wrong_tokens_are_named(served):
    for tokens in (3, "x", [1.5], [-1], [10**9], None):
        assert served.refused(400, "/detokenize", tokens=tokens)["param"] == "tokens"


def test_health_tells_what_runs(served):
    assert served.http.get("/healthz").json() == {"status": "ok", "model": "student", "running": 0, "waiting": 0}
