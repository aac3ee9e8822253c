"""The two rules for where stop strings cut a text."""

from rwkv7_jax.generation.stop_strings import StopText, cut_at_earliest_start, cut_at_first_complete
from rwkv7_jax.tokenizer import ByteTokenizer

TEXT, STOPS = "xabcdy", ("abcd", "bc")


def test_the_harness_cuts_at_the_earliest_start_and_a_stream_at_the_first_complete():
    assert cut_at_earliest_start(TEXT, STOPS) == "x"
    assert cut_at_first_complete(TEXT, STOPS) == "xa"
    streamed = StopText(ByteTokenizer(), STOPS)
    assert "".join(streamed.push([byte]) for byte in TEXT.encode()) + streamed.finish() == "xa"


def test_a_text_without_a_stop_stays_whole():
    assert cut_at_earliest_start("xy", STOPS) == cut_at_first_complete("xy", STOPS) == "xy"
    assert cut_at_earliest_start("xy", ()) == cut_at_first_complete("xy", ()) == "xy"
