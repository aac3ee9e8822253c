"""The two rules for where stop strings cut a text."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from rwkv7_jax.generation.stop_strings import (
    StopText,
    cut_at_earliest_start,
    cut_at_first_complete,
    cut_tokens,
    generated_text,
)
from rwkv7_jax.inference.stop_automaton import HIT, START, token_table
from rwkv7_jax.tokenizer import ByteTokenizer, JsonTokenizer, load_tokenizer

TEXT, STOPS = "xabcdy", ("abcd", "bc")


def test_the_harness_cuts_at_the_earliest_start_and_a_stream_at_the_first_complete():
    assert cut_at_earliest_start(TEXT, STOPS) == "x"
    assert cut_at_first_complete(TEXT, STOPS) == "xa"
    streamed = StopText(ByteTokenizer(), STOPS)
    assert "".join(streamed.push([byte]) for byte in TEXT.encode()) + streamed.finish() == "xa"


def test_a_text_without_a_stop_stays_whole():
    assert cut_at_earliest_start("xy", STOPS) == cut_at_first_complete("xy", STOPS) == "xy"
    assert cut_at_earliest_start("xy", ()) == cut_at_first_complete("xy", ()) == "xy"


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory):
    """A byte-level tokenizer.json with the special tokens of chats, whose end token is another one."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([GENERATED] * 5, trainer)
    path = tmp_path_factory.mktemp("chat") / "tokenizer.json"
    library.save(str(path))
    return path


GENERATED = " It is grey.<|im_end|>\n<|im_start|>user\nQuestion: and"
SHOWN = " It is grey.\nuser\nQuestion: and"


def streamed(tokenizer, ids, stops, size=1):
    text = StopText(tokenizer, stops)
    pieces = [text.push(ids[begin : begin + size]) for begin in range(0, len(ids), size)]
    whole = "".join(pieces) + text.finish()
    assert whole == text.text
    return whole, text.hit


def on_the_device(tokenizer, ids, stops):
    """How many tokens are fed until the automaton is hit, None if it never is."""
    table, state = token_table(tokenizer, tokenizer.vocab_size, stops), START
    for fed, token in enumerate(ids, 1):
        state = table[state, token]
        if state == HIT:
            return fed
    return None


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["<|im_end|>"], " It is grey."),
        (["Question:", "</s>", "<|im_end|>"], " It is grey."),
        (["<|im_end|>\n<|im_start|>user"], " It is grey."),
        (["grey.<|im"], " It is "),
        (["\n<|im_start|>"], " It is grey."),
        (["grey.\nuser"], " It is "),
        (["</s>"], SHOWN),
        ([], SHOWN),
    ],
)
def test_stops_are_looked_for_where_special_tokens_are_spelled_out(chat_tokenizer, stops, text):
    tokenizer = JsonTokenizer(chat_tokenizer)
    ids = tokenizer.encode(GENERATED)
    assert len(ids) < len(GENERATED)
    for size in (1, 3, len(ids)):
        assert streamed(tokenizer, ids, stops, size) == (text, text != SHOWN)
    assert generated_text(tokenizer, ids, stops) == text
    kept = cut_tokens(tokenizer, ids, text)
    assert tokenizer.decode(kept) == text
    if text == " It is grey.":
        assert kept == ids[: len(kept)], "without the special token"
        assert on_the_device(tokenizer, ids, stops) is not None
        assert 2 not in kept


def test_a_special_token_between_parts_of_a_character_changes_no_text(chat_tokenizer):
    tokenizer = JsonTokenizer(chat_tokenizer)
    parts = tokenizer.encode("\N{EURO SIGN}")
    assert len(parts) == 3
    ids = [*parts[:1], 2, *parts[1:], *tokenizer.encode("grey")]
    assert streamed(tokenizer, ids, ["nothing"])[0] == tokenizer.decode(ids) == "\N{EURO SIGN}grey"


@pytest.mark.parametrize("size", [1, 4, 99])
def test_the_end_ids_of_a_checkpoints_folder_end_a_text(chat_tokenizer, tmp_path, size):
    (tmp_path / "tokenizer.json").write_bytes(chat_tokenizer.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2, 3]}')
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode(GENERATED)
    assert streamed(tokenizer, ids, [], size) == (" It is grey.", True)
    assert streamed(tokenizer, ids, ["grey.\n", "gr"], size) == (" It is ", True)
    assert generated_text(tokenizer, ids, ["."]) == " It is grey"
    assert cut_tokens(tokenizer, ids, " It is grey.") == ids[: ids.index(2)]
    assert on_the_device(tokenizer, ids, []) == on_the_device(tokenizer, ids, ["user"]) == ids.index(2) + 1


@given(st.lists(st.sampled_from([*range(1, 4), *range(40, 300)]), max_size=12), st.integers(1, 4))
def test_what_is_shown_holds_no_stop_and_is_what_the_tokens_decode_to(chat_tokenizer, ids, size):
    tokenizer, stops = JsonTokenizer(chat_tokenizer), ["<|im_end|>", "ab", "</s>\n"]
    text, hit = streamed(tokenizer, ids, stops, size)
    assert not any(stop in text for stop in stops)
    assert text == tokenizer.decode(ids) if not hit else tokenizer.decode(ids).startswith(text.rstrip("\ufffd"))
    assert tokenizer.decode(cut_tokens(tokenizer, ids, text)) == text
    assert text.startswith(generated_text(tokenizer, ids, stops))
