"""/v1/completions against a real server, through the official client: every answer is that of `generate` alone."""

import math

import jax
import numpy as np
import pytest

PROMPT = "Mira has 3 red stones. Boris has"


def test_an_answer_is_that_of_generate(served):
    for settings in ({"temperature": 0}, {"temperature": 1.0, "top_p": 0.8}, {"frequency_penalty": 0.7}):
        found = served.openai.completions.create(model="student", prompt=PROMPT, max_tokens=12, seed=5, **settings)
        alone = served.lm.generate(PROMPT, max_new_tokens=12, seed=5, **settings)
        assert found.choices[0].text == alone
        assert found.usage is not None
        assert found.usage.prompt_tokens == len(served.lm.encode(PROMPT))


def test_several_prompts_with_several_answers_each(served):
    prompts = [PROMPT, "Zander went to"]
    found = served.openai.completions.create(model="student", prompt=prompts, max_tokens=6, n=2, seed=2**32 - 1)
    alone = [served.lm.generate(prompt, max_new_tokens=6, seed=seed) for prompt in prompts for seed in (2**32 - 1, 0)]
    assert [(choice.index, choice.text) for choice in found.choices] == list(enumerate(alone))


def test_token_ids_and_texts_are_the_same_prompt(served):
    ids = served.lm.encode(PROMPT)
    alone = served.lm.generate(PROMPT, max_new_tokens=6, temperature=0)
    for prompt in (ids, [ids], [PROMPT]):
        found = served.openai.completions.create(model="student", prompt=prompt, max_tokens=6, temperature=0)
        assert found.choices[0].text == alone


def test_a_stop_ends_an_answer_and_is_left_out(served):
    whole = served.lm.generate(PROMPT, max_new_tokens=12, temperature=0)
    stop = whole.split()[2]
    found = served.openai.completions.create(
        model="student", prompt=PROMPT, max_tokens=12, temperature=0, stop=["never there", stop]
    )
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_a_stream_joins_to_the_answer_and_ends_with_its_usage(served):
    stream = served.openai.completions.create(
        model="student", prompt=PROMPT, max_tokens=12, n=2, seed=3, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons, usage = ["", ""], [None, None], []
    for part in stream:
        for choice in part.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = reasons[choice.index] or choice.finish_reason
        usage += [part.usage] if part.usage else []
    assert texts == [served.lm.generate(PROMPT, max_new_tokens=12, seed=seed) for seed in (3, 4)]
    assert None not in reasons
    assert [one.completion_tokens > 0 for one in usage] == [True]


def test_echo_with_log_probabilities_scores_the_prompt(served):
    """The numbers are those of one pass over the whole text; the first token has none."""
    ids = served.lm.encode(PROMPT)
    found = served.openai.completions.create(
        model="student", prompt=ids, max_tokens=1, temperature=0, logprobs=2, echo=True
    ).choices[0]
    assert found.text.startswith(PROMPT)
    assert found.logprobs is not None
    told = found.logprobs.token_logprobs
    assert told is not None
    logits, _ = served.lm.logits(ids)
    expected = np.asarray(jax.nn.log_softmax(logits))
    assert told[0] is None
    assert len(told) == len(ids) + 1
    np.testing.assert_allclose(told[1 : len(ids)], [expected[i, token] for i, token in enumerate(ids[1:])], atol=1e-4)
    assert found.logprobs.top_logprobs is not None
    assert math.isclose(max(found.logprobs.top_logprobs[-1].values()), expected[-1].max(), abs_tol=1e-4)
    assert "".join(found.logprobs.tokens or []) == found.text


def test_echo_alone_generates_nothing(served):
    found = served.openai.completions.create(model="student", prompt=PROMPT, max_tokens=0, logprobs=1, echo=True)
    assert found.choices[0].text == PROMPT


@pytest.mark.parametrize("name", ["calm", "wild"])
def test_a_state_is_a_model_name(served, states, name):
    for more in ({"model": f"student:{name}"}, {"model": "student", "extra_body": {"state": {"name": name}}}):
        found = served.openai.completions.create(prompt=PROMPT, max_tokens=12, temperature=0, **more)
        assert found.choices[0].text == served.lm.generate(PROMPT, state=states[name], max_new_tokens=12, temperature=0)
    assert found.choices[0].text != served.lm.generate(PROMPT, max_new_tokens=12, temperature=0)


def test_a_mixture_is_the_weighted_sum(served, states):
    found = served.openai.completions.create(
        model="student",
        prompt=PROMPT,
        max_tokens=12,
        temperature=0,
        extra_body={"state": {"mix": {"calm": 0.25, "none": 0.75}}},
    )
    quarter = jax.tree.map(lambda leaf: 0.25 * leaf, states["calm"])
    assert found.choices[0].text == served.lm.generate(PROMPT, state=quarter, max_new_tokens=12, temperature=0)


def test_a_client_holds_its_own_state(served):
    """What `return_state` gives, sent back as `state`, goes on where the answer ended."""
    asked = {"prompt": PROMPT, "max_tokens": 5, "temperature": 0, "return_state": True}
    first = served.post("/v1/completions", **asked)["choices"][0]
    more = {"prompt": " and", "state": first["state"], "max_tokens": 6, "temperature": 0}
    second = served.post("/v1/completions", **more)["choices"][0]
    whole = PROMPT + first["text"] + " and"
    assert second["text"] == served.lm.generate(whole, max_new_tokens=6, temperature=0)
