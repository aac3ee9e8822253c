"""RWKV's chat format, as the harness asks for it."""

import pytest


def test_turns_end_where_they_end():
    pytest.importorskip("lm_eval")
    from experiments.evaluation.lm_eval_model import ForkingLM

    parts = [{"type": "text", "text": "An A.\r\n"}, {"type": "text", "text": "\r\nA B?"}]
    turns = [{"role": "user", "content": "Which?\n\nSay one."}, {"role": "assistant", "content": parts}]
    found = ForkingLM.apply_chat_template(ForkingLM.__new__(ForkingLM), turns)
    assert found == "User: Which?\nSay one.\n\nAssistant: An A.\nA B?\n\nAssistant:"
