"""/v1/responses against a real server, through the official client."""

import openai
import pytest

from rwkv7_jax.generation.chat_template import STOPS, render


def ask(served, **settings):
    return served.openai.responses.create(model="student", temperature=0, max_output_tokens=6, **settings)


def test_an_answer_is_that_of_generate(served):
    found = ask(served, input="Where is Mira?", instructions="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Mira?"}]
    assert (
        found.output_text == served.lm.generate(render(messages), stop=STOPS, temperature=0, max_new_tokens=6).lstrip()
    )
    assert found.usage is not None
    assert found.usage.output_tokens_details.reasoning_tokens == 0


def test_a_response_is_continued_by_its_name_and_reads_new_tokens_alone(served):
    first = ask(served, input=[{"role": "user", "content": [{"type": "input_text", "text": "Where is Mira?"}]}])
    second = ask(served, input="And Boris?", previous_response_id=first.id)
    assert second.usage is not None
    more = "\n\n" + render([{"role": "user", "content": "And Boris?"}])
    assert second.usage.input_tokens == len(served.lm.encode(more))
    assert second.previous_response_id == first.id
    again = ask(served, input="And Boris?", previous_response_id=first.id)
    assert again.output_text == second.output_text  # a response stays as it was: it may be continued twice
    tokens = served.lm.generate(
        render([{"role": "user", "content": "Where is Mira?"}]), stop=STOPS, temperature=0, max_new_tokens=6
    )
    whole = render([{"role": "user", "content": "Where is Mira?"}]) + tokens + more
    assert second.output_text == served.lm.generate(whole, stop=STOPS, temperature=0, max_new_tokens=6).lstrip()


def test_a_stream_has_the_events_of_the_api(served):
    whole = ask(served, input="Where is Mira?")
    events = list(ask(served, input="Where is Mira?", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert deltas == last.response.output_text == whole.output_text
    assert ask(served, input="More", previous_response_id=last.response.id).status in ("completed", "incomplete")


def test_a_response_that_was_not_stored_or_was_deleted_cannot_be_continued(served):
    unstored, stored = ask(served, input="Hi", store=False), ask(served, input="Hi")
    served.openai.responses.delete(stored.id)
    for gone in (unstored, stored):
        with pytest.raises(openai.NotFoundError, match="no response"):
            ask(served, input="More", previous_response_id=gone.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", 3),
        ("input", []),
        ("previous_response_id", "../../etc/passwd"),
        ("text", {"format": {"type": "json_schema"}}),
        ("tools", [{"type": "web_search"}]),
        ("max_output_tokens", 0),
        ("session", "x"),
    ],
)
def test_what_is_not_served_is_named(served, field, value):
    error = served.refused(400, "/v1/responses", **{"input": "Hi", field: value})
    assert error["param"].startswith(field)
