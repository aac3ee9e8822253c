"""Long texts piece by piece: the same text as at once, at the same cost a token however long it is."""

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv7_jax.generation.stop_strings import StopText
from rwkv7_jax.tokenizer import ByteTokenizer, JsonTokenizer, TextDecoder, WorldTokenizer, streaming

LETTERS = " abfoé漢😀"


class Counting(ByteTokenizer):
    """Counts the ids that it decodes."""

    def __init__(self):
        self.decoded = 0

    def decode_bytes(self, ids):
        self.decoded += len(ids)
        return super().decode_bytes(ids)


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """Tokenizers by name: exact bytes, and the library's with a space in front and bytes for what has no token."""
    folder = tmp_path_factory.mktemp("streaming")
    symbols = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abfo", "▁a", "▁f", "▁fo"]
    merges = [("▁", "a"), ("▁", "f"), ("▁f", "o")]
    model = tokenizers.models.BPE({s: i for i, s in enumerate(symbols)}, merges, byte_fallback=True, unk_token="<unk>")
    library = tokenizers.Tokenizer(model)
    normal, out = tokenizers.normalizers, tokenizers.decoders
    library.normalizer = normal.Sequence([normal.Prepend("▁"), normal.Replace(" ", "▁")])
    library.decoder = out.Sequence([out.Replace("▁", " "), out.ByteFallback(), out.Fuse(), out.Strip(" ", 1, 0)])
    library.add_special_tokens(["<end>"])
    library.save(str(folder / "tokenizer.json"))
    return {
        "world": WorldTokenizer(),
        "byte": ByteTokenizer(),
        "fallback": JsonTokenizer(folder / "tokenizer.json"),
    }


@pytest.fixture
def short_window(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW", 12)
    monkeypatch.setattr(streaming, "KEPT", 6)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["world", "byte", "fallback"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=LETTERS, min_size=20, max_size=120), size=st.integers(1, 9))
def test_a_long_text_is_that_of_all_ids_at_once(tokenizer_of, short_window, name, after, text, size):
    tokenizer = tokenizer_of[name]
    ids = tokenizer.encode(text)
    decoder = TextDecoder(tokenizer, after=after)
    pieces = [decoder.push(ids[at : at + size]) for at in range(0, len(ids), size)]
    found = "".join([*pieces, decoder.finish()])
    assert found == (f" {text}" if after and name == "fallback" else tokenizer.decode(ids))
    assert len(decoder._ids) <= 12 + size + 12


@pytest.mark.parametrize("name", ["world", "byte"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=30, max_size=120))
def test_bytes_that_are_no_text_are_shown_as_at_once(tokenizer_of, short_window, name, data):
    tokenizer = tokenizer_of[name]
    ids = tokenizer.encode_bytes(data)
    decoder = TextDecoder(tokenizer)
    assert "".join([*(decoder.push([token]) for token in ids), decoder.finish()]) == tokenizer.decode(ids)


def test_special_tokens_in_a_row_take_no_space_away(tokenizer_of, short_window):
    tokenizer = tokenizer_of["fallback"]
    (end,) = tokenizer.special_tokens
    ids = [*tokenizer.encode("fo a"), *[end] * 40, *tokenizer.encode(" fo")]
    decoder = TextDecoder(tokenizer)
    assert "".join([*(decoder.push([token]) for token in ids), decoder.finish()]) == tokenizer.decode(ids)


def test_a_token_costs_the_same_however_long_the_text_is():
    costs = []
    for length in (1_000, 10_000):
        tokenizer = Counting()
        text = StopText(tokenizer, ("never",))
        for _ in range(length):
            text.push([97])
        text.finish()
        assert text.text == "a" * length
        costs.append(tokenizer.decoded / length)
    assert costs[1] <= 1.2 * costs[0] <= 2 * streaming.WINDOW
