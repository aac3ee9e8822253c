"""/v1/chat/completions and sessions against a real server, through the official client."""

import threading

import openai
import pytest

from rwkv7_jax.generation.chat_template import STOPS, render

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Mira?"}]


def alone(served, messages, **settings) -> str:
    return served.lm.generate(render(messages, think=settings.pop("think", None)), stop=STOPS, **settings)


def test_an_answer_is_that_of_generate(served):
    found = served.openai.chat.completions.create(model="student", messages=MESSAGES, max_tokens=12, seed=5, top_p=0.8)
    assert found.choices[0].message.content == alone(served, MESSAGES, max_new_tokens=12, seed=5, top_p=0.8).lstrip()
    assert found.choices[0].finish_reason in ("stop", "length")


def test_a_stream_joins_to_the_answer(served, states):
    stream = served.openai.chat.completions.create(
        model="student:calm", messages=MESSAGES, max_completion_tokens=12, temperature=0, stream=True
    )
    text = "".join(choice.delta.content or "" for part in stream for choice in part.choices)
    assert text == alone(served, MESSAGES, state=states["calm"], max_new_tokens=12, temperature=0).lstrip()


def test_log_probabilities_stand_beside_each_token(served):
    found = served.openai.chat.completions.create(
        model="student", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert found.choices[0].logprobs is not None
    told = found.choices[0].logprobs.content or []
    assert [len(one.top_logprobs) for one in told] == [3] * len(told) != []
    assert all(one.logprob == max(top.logprob for top in one.top_logprobs) for one in told)
    assert "".join(one.token for one in told).lstrip() == found.choices[0].message.content


@pytest.mark.parametrize(("effort", "think"), [("none", "off"), ("low", "short"), ("high", "long")])
def test_effort_chooses_how_an_answer_begins(served, effort, think):
    found = served.openai.chat.completions.create(
        model="student", messages=MESSAGES, max_tokens=8, temperature=0, reasoning_effort=effort
    )
    own = served.post("/v1/chat/completions", messages=MESSAGES, max_tokens=8, temperature=0, think=think)
    assert own["choices"][0]["message"]["content"] == found.choices[0].message.content
    assert own["usage"]["prompt_tokens"] == len(served.lm.encode(render(MESSAGES, think=think)))


def test_a_session_reads_new_messages_alone(served):
    settings = {"max_tokens": 6, "temperature": 0, "session": "reads-new"}
    first = served.post("/v1/chat/completions", messages=MESSAGES, **settings)
    more = [{"role": "user", "content": "And Boris?"}]
    second = served.post("/v1/chat/completions", messages=more, **settings)
    read = second["usage"]["prompt_tokens"]
    assert read == len(served.lm.encode("\n\n" + render(more)))
    kept = served.http.get("/v1/sessions/reads-new").json()
    counts = [part["usage"]["total_tokens"] for part in (first, second)]
    assert (kept["tokens"], kept["answers"]) == (sum(counts), 2)
    tokens = served.lm.encode(render(MESSAGES)) + served.lm.encode(first_text(served, first, settings))
    text = served.lm.decode(tokens) + "\n\n" + render(more)
    whole = served.lm.generate(text, stop=STOPS, max_new_tokens=6, temperature=0)
    assert second["choices"][0]["message"]["content"] == whole.lstrip()


def first_text(served, answer, settings) -> str:
    """The answer as it was generated, with the blank before it."""
    whole = alone(served, MESSAGES, max_new_tokens=settings["max_tokens"], temperature=0)
    assert whole.lstrip() == answer["choices"][0]["message"]["content"]
    return whole


def test_a_session_keeps_its_state_and_refuses_another(served):
    ask = {"messages": MESSAGES[1:], "max_tokens": 3, "session": "keeps-its-state"}
    served.post("/v1/chat/completions", model="student:calm", **ask)
    again = served.post("/v1/chat/completions", model="student", **ask)
    assert again["model"] == "student:calm"
    error = served.refused(400, "/v1/chat/completions", model="student:wild", **ask)
    assert error["param"] == "session"
    assert "another state" in error["message"]


def test_a_session_that_is_sent_the_whole_conversation_again_says_so(served):
    ask = {"max_tokens": 3, "session": "sent-again"}
    served.post("/v1/chat/completions", messages=MESSAGES, **ask)
    whole = [*MESSAGES, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "Why?"}]
    assert "new messages alone" in served.refused(400, "/v1/chat/completions", messages=whole, **ask)["message"]


def test_a_session_answers_one_request_at_a_time(served):
    """The second is told to wait; the first is not disturbed."""
    held = threading.Event()
    served.service.sessions.begin("one-at-a-time")
    try:
        ask = {"messages": MESSAGES, "max_tokens": 2, "session": "one-at-a-time"}
        answer = served.http.post("/v1/chat/completions", json=ask)
        assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
    finally:
        served.service.sessions.end("one-at-a-time")
        held.set()
    served.post("/v1/chat/completions", **ask)


def test_sessions_are_listed_and_deleted(served):
    served.post("/v1/chat/completions", messages=MESSAGES, max_tokens=2, session="to-delete")
    names = [one["id"] for one in served.http.get("/v1/sessions").json()["data"]]
    assert "to-delete" in names
    assert served.http.delete("/v1/sessions/to-delete").json()["deleted"] is True
    assert served.http.get("/v1/sessions/to-delete").status_code == 404
    assert served.http.delete("/v1/sessions/to-delete").status_code == 404


def test_the_client_raises_its_own_errors(served):
    with pytest.raises(openai.NotFoundError, match="no model"):
        served.openai.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError, match="no state"):
        served.openai.chat.completions.create(model="student:nothing", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        served.openai.chat.completions.create(model="student", messages=MESSAGES, max_tokens=65)


def test_models_are_listed_with_their_states(served):
    names = [model.id for model in served.openai.models.list()]
    assert {"student", "student:calm", "student:wild"} <= set(names)
    assert served.openai.models.retrieve("student:calm").id == "student:calm"
    with pytest.raises(openai.NotFoundError):
        served.openai.models.retrieve("student:nothing")
