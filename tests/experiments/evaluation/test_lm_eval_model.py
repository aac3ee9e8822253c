"""Our model as the harness drives it: settings that its kinds of requests share."""

from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra lm-eval)")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def asked(model, **settings):
    return model.generate_until([SimpleNamespace(args=(text, settings)) for text in ("A text:", "Another")])


def test_sampled_requests_read_the_prefix_as_greedy_ones_do(tiny):
    from experiments.evaluation.lm_eval_model import ForkingLM

    model = ForkingLM(tiny, batch_size=2, prefix=(7, 99), max_new_tokens=6)
    greedy = asked(model, until=[])
    assert asked(model, do_sample=True, temperature=1e-7) == greedy
    assert asked(ForkingLM(tiny, batch_size=2, max_new_tokens=6), until=[]) != greedy


def test_the_longest_answer_is_the_tasks_or_else_the_commands(tiny):
    from experiments.evaluation.lm_eval_model import ForkingLM

    model = ForkingLM(tiny, batch_size=2, max_new_tokens=6)
    texts = asked(model, until=[])
    assert asked(model, max_new_tokens=6, until=None) == texts
    assert all(len(short) < len(text) for short, text in zip(asked(model, max_tokens=2), texts, strict=True))
