"""The chain of thought is told apart from the answer, wherever pieces of a stream end."""

import pytest

from experiments.serve.thinking import Parts, ThoughtSplitter, opening

CASES = [
    (None, " Hello there", Parts("Hello there", "")),
    ("on", ">\nhm, yes\n</think>\n\nSo </think> it is", Parts("So </think> it is", "hm, yes")),
    ("off", ">\nHi", Parts("Hi", "")),
    (None, " <think>\na\n\nb \n</think>\nc", Parts("c", "a\n\nb")),
    (None, " <thin", Parts("<thin", "")),
    (None, "<b>bold</b>", Parts("<b>bold</b>", "")),
    ("short", ">unfinished </th", Parts("", "unfinished </th")),
    (None, "", Parts()),
    (None, "  \n", Parts()),
]


@pytest.mark.parametrize(("think", "text", "expected"), CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_pieces_of_any_size_join_to_the_same_parts(think, text, expected, size):
    splitter = ThoughtSplitter(opening(think))
    pieces = [splitter.push(text[at : at + size]) for at in range(0, len(text), size)] + [splitter.finish()]
    assert Parts(*("".join(part) for part in zip(*pieces, strict=True))) == expected
    assert (splitter.content, splitter.reasoning) == expected
