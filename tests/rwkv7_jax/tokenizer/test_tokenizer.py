"""Tokenizers: the World one against its specification and the authors' ids; decoding never shows half characters."""

import importlib.util
import itertools
import json
import re
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv7_jax.generation.stop_strings import cut_tokens
from rwkv7_jax.tokenizer import ByteTokenizer, JsonTokenizer, TextDecoder, WorldTokenizer, load_tokenizer, world
from rwkv7_jax.tokenizer.abilities import decode_bytes_after, encode_after

TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=" \n\t.aetT19é中😀", max_size=200),
    st.binary(max_size=60).map(lambda b: str(b)),
)


def naive_greedy(ids: dict[bytes, int], data: bytes) -> list[int]:
    """The specification: at every place the longest token that fits."""
    longest, out, at = max(map(len, ids)), [], 0
    while at < len(data):
        size = next(n for n in range(min(longest, len(data) - at), 0, -1) if data[at : at + n] in ids)
        out.append(ids[data[at : at + size]])
        at += size
    return out


@pytest.fixture(scope="module")
def world_tokenizer():
    return WorldTokenizer()


@pytest.fixture(scope="module")
def json_path(tmp_path_factory):
    """A small byte-level BPE with a special end token."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["the cat sat on the mat, then the other cat sat"] * 5, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return path


def test_world_gives_the_authors_ids(world_tokenizer, shared_data):
    lines = (shared_data / "tokenizer/world_golden_part.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    assert len(records) == 900
    wrong = [r["text"] for r in records if world_tokenizer.encode(r["text"]) != r["ids"]]
    assert wrong == []
    assert all(world_tokenizer.decode(r["ids"]) == r["text"] for r in records)


@settings(max_examples=150)
@given(st.one_of(st.binary(max_size=200), TEXTS.map(str.encode)))
def test_world_is_greedy_and_reversible_on_any_bytes(world_tokenizer, data):
    ids = world_tokenizer.encode_bytes(data)
    assert ids == naive_greedy(world_tokenizer._tables.ids, data)
    assert world_tokenizer.decode_bytes(ids) == data


@settings(max_examples=60)
@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=9).map(str.encode), max_size=30),
    st.lists(st.sampled_from(b"abcd"), max_size=120).map(bytes),
)
def test_any_vocabulary_is_matched_greedily(tokens, data):
    vocabulary = dict.fromkeys([*(bytes([b]) for b in range(256)), *tokens])
    ids = {token: i for i, token in enumerate(vocabulary, 1)}
    assert world.WorldTables(ids).encode(data) == naive_greedy(ids, data)


def test_world_splits_long_tokens_across_every_boundary(world_tokenizer):
    tables = world_tokenizer._tables
    tokens = sorted(tables.ids, key=len)[-300:]
    data = b"".join(token + b"x" + token[:-1] for token in tokens)
    assert tables.encode(data) == naive_greedy(tables.ids, data)


def test_world_special_ids(world_tokenizer):
    assert (world_tokenizer.vocab_size, world_tokenizer.eos_id) == (65536, 0)
    assert world_tokenizer.encode("") == []
    assert world_tokenizer.decode([0]) == ""
    with pytest.raises(ValueError, match="-1"):
        world_tokenizer.decode([-1])


def test_ids_that_only_a_model_has_decode_to_the_replacement_character(world_tokenizer, json_path):
    """Models have rows beyond the tokenizer's ids, and a sampled one must not end the text."""
    assert world_tokenizer.decode([65530, 65535, 66000]) == "\ufffd\ufffd\ufffd"
    assert ByteTokenizer().decode([97, 256]) == "a\ufffd"
    tokenizer = JsonTokenizer(json_path)
    assert tokenizer.decode([tokenizer.vocab_size]) == "\ufffd"


def test_world_vocabulary_is_read_as_data(tmp_path):
    path = tmp_path / "vocabulary.txt"
    singles = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
    path.write_text("\n".join([*singles, "300 'été' 5", '301 "it\'s" 4', "302 b'\\xff\\xfe' 2"]), encoding="utf-8")
    tokenizer = WorldTokenizer(path)
    assert tokenizer.encode("étéit's") == [300, 301]
    assert tokenizer.encode_bytes(b"\xff\xfe\xff") == [302, 256]
    assert tokenizer.vocab_size == 303
    assert load_tokenizer(path, 303).encode("a") == [98]
    with pytest.raises(ValueError, match="ids up to 302"):
        load_tokenizer(path, 302)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("300 __import__('os').system('false') 3", "line 257"),
        ("300 'abc' 4", "line 257.*3 bytes, 4 announced"),
        ("three 'abc' 3", "line 257"),
        ("300", "line 257"),
        ("300 '' 0", "line 257"),
        ("300 ('a') 1 1", "line 257"),
        ("300 {'a'} 1", "line 257.*type set"),
        ("300 'ab 1", "line 257"),
        ("-1 'ab' 2", "line 257.*id -1"),
        ("300 'ab' " + "9" * 900, "line 257"),
        ("300 " + "(" * 300 + "'ab'" + ")" * 300 + " 2", "line 257.*literal of 604 characters"),
        ("300 'ab'\n301 'ab' 2", "line 257"),
        ("300 'ab' 2\n301 'ab' 2", "line 258.*the id 300 already"),
        ("256 'ab' 2", "two tokens have the same id"),
        ("300 '\u202e' 5", "line 257"),
    ],
)
def test_a_malformed_vocabulary_is_named_by_line(tmp_path, line, message):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join([*(f"{i + 1} {bytes([i])!r} 1" for i in range(256)), line]), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        WorldTokenizer(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 300


def test_a_damaged_copy_of_the_released_vocabulary_is_not_taken_silently(tmp_path):
    lines = world.find_vocabulary().read_bytes().replace(b"\r\n", b"\n")
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_bytes(lines)
    assert WorldTokenizer(same).encode(" the") == world.WorldTokenizer().encode(" the")
    other.write_bytes(lines.replace(b" ' the' 4\n", b" ' thf' 4\n"))
    with pytest.warns(UserWarning, match="other.txt: of the released World vocabulary 1 tokens are missing"):
        WorldTokenizer(other)
    (tmp_path / world.FILE_NAME).write_bytes(b"".join(lines.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="differs from the released World vocabulary"):
        WorldTokenizer(tmp_path / world.FILE_NAME)


def test_a_vocabulary_without_every_byte_is_refused(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("1 'a' 1\n")
    with pytest.raises(ValueError, match="255 single bytes"):
        WorldTokenizer(path)


def test_missing_world_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install rwkv"):
        world.find_vocabulary()


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_bytes_round_trip(data):
    tokenizer = ByteTokenizer()
    assert tokenizer.encode_bytes(data) == list(data)
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data
    assert tokenizer.decode(list(data)) == data.decode(errors="replace")


@settings(max_examples=80)
@given(text=TEXTS)
def test_json_round_trip(json_path, text):
    tokenizer = JsonTokenizer(json_path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.decode_bytes([i]) for i in ids) == text.encode()
    assert tokenizer.encode_bytes(text.encode()) == ids


def test_json_special_tokens(json_path):
    tokenizer = JsonTokenizer(json_path)
    library = tokenizers.Tokenizer.from_file(str(json_path))
    assert tokenizer.eos_id == library.token_to_id("<|endoftext|>")
    assert tokenizer.vocab_size == library.get_vocab_size()
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    assert JsonTokenizer(json_path, eos_token="<pad>").eos_id == library.token_to_id("<pad>")
    with pytest.raises(ValueError, match="no token '<nope>'"):
        JsonTokenizer(json_path, eos_token="<nope>")
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])


def test_json_takes_the_end_token_from_the_config_beside_it(json_path, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(json_path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<pad>"}}))
    assert JsonTokenizer(path).eos_id == 0
    assert load_tokenizer(tmp_path).eos_id == 0


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "{", "", '{"eos_token": 5}', '{"eos_token": {"id": 1}}', '{"eos_token": "\\ud800"}', "[" * 100_000],
)
def test_a_damaged_config_beside_a_tokenizer_is_named(json_path, tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(json_path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not a"):
        load_tokenizer(tmp_path)


def test_a_json_tokenizer_neither_cuts_nor_fills_a_text(json_path, tmp_path):
    library = tokenizers.Tokenizer.from_file(str(json_path))
    library.enable_truncation(3)
    library.enable_padding(length=16, pad_id=0)
    library.save(str(tmp_path / "tokenizer.json"))
    text = "the cat sat on the mat"
    assert JsonTokenizer(tmp_path / "tokenizer.json").encode(text) == JsonTokenizer(json_path).encode(text)


def test_what_is_no_text_is_a_value_error(json_path):
    for tokenizer in (JsonTokenizer(json_path), ByteTokenizer()):
        with pytest.raises(ValueError, match="surrogates"):
            tokenizer.encode("a\udcff")


def wrong_line(path, call):
    """The error of a call: one printable line of bounded length that begins with the path."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        call()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 300
    return str(error.value)


def edited(path, folder, **model):
    """A copy of a tokenizer.json with other values in its model."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec["model"] |= model
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder / "tokenizer.json"


def test_what_the_library_says_of_a_file_is_one_short_line(json_path, tmp_path):
    for name in ("\u202eevil", "\x1b[2J", "x" * 5000):
        path = edited(json_path, tmp_path, merges=[[name, "t"]])
        assert "not a tokenizer.json" in wrong_line(path, lambda: JsonTokenizer(path))  # noqa: B023
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "x" * 5000}))
    path = edited(json_path, tmp_path)
    assert "no token 'xxx" in wrong_line(path, lambda: JsonTokenizer(path))


def test_what_the_library_raises_later_is_one_line(json_path, tmp_path):
    path = edited(json_path, tmp_path, unk_token="no such\u2028token", vocab={"a": 0}, merges=[])
    tokenizer = JsonTokenizer(path)
    assert tokenizer.encode("a") == [0]
    assert "the tokenizers library fails" in wrong_line(path, lambda: tokenizer.encode("b"))


@pytest.mark.parametrize("prefix", ["a long prefix", "af", "\u2581"])
def test_a_merge_without_its_prefix_is_refused(json_path, tmp_path, capfd, prefix):
    """The library cuts the prefix off unseen, which ends the process if it is not there."""
    path = edited(json_path, tmp_path, continuing_subword_prefix=prefix)
    assert "does not continue with" in wrong_line(path, lambda: JsonTokenizer(path))
    assert capfd.readouterr().err == ""


def test_merges_with_their_prefix_are_read(tmp_path):
    model = tokenizers.models.BPE({"a": 0, "##b": 1, "ab": 2}, [("a", "##b")], continuing_subword_prefix="##")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert JsonTokenizer(tmp_path / "tokenizer.json").encode("ab") == [2]


def test_an_id_of_ten_digits_takes_no_memory(json_path, tmp_path, capfd):
    """The library writes a tokenizer with a loop over all ids, so it is not asked to."""
    vocab = json.loads(json_path.read_text(encoding="utf-8"))["model"]["vocab"]
    tokenizer = JsonTokenizer(edited(json_path, tmp_path, vocab=vocab | {"e": 2**31}, merges=[]))
    assert (tokenizer.encode("the")[-1], tokenizer.vocab_size) == (2**31, 2**31 + 1)
    assert tokenizer.decode([2**31]) == "e"
    assert capfd.readouterr() == ("", "")


def test_ids_may_have_gaps(tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 9}, unk_token="a"))
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("c"))) == (10, "c")
    with pytest.raises(ValueError, match="ids up to 9"):
        load_tokenizer(tmp_path, 5)


@pytest.fixture(scope="module")
def fallback(tmp_path_factory):
    """A tokenizer as Llama has it: spaces in front, and bytes for characters without a token."""
    symbols = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefo", "▁a", "▁f", "▁fo"]
    merges = [("▁", "a"), ("▁", "f"), ("▁f", "o")]
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE({s: i for i, s in enumerate(symbols)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    normal, out = tokenizers.normalizers, tokenizers.decoders
    library.normalizer = normal.Sequence([normal.Prepend("▁"), normal.Replace(" ", "▁")])
    library.decoder = out.Sequence([out.Replace("▁", " "), out.ByteFallback(), out.Fuse(), out.Strip(" ", 1, 0)])
    path = tmp_path_factory.mktemp("fallback") / "tokenizer.json"
    library.save(str(path))
    return JsonTokenizer(path)


@pytest.fixture(scope="module", params=["always", "first", "legacy", "prepend", "byte-level"])
def prefixing(request, tmp_path_factory, fallback):
    """Tokenizers that put a space before a whole text: T5's and Llama's, and GPT-2's with `add_prefix_space`."""
    if request.param == "prepend":
        return fallback
    symbols = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefo", "▁a", "▁f", "▁fo"]
    merges = [("▁", "a"), ("▁", "f"), ("▁f", "o")]
    scheme = request.param if request.param in ("always", "first") else "always"
    if request.param == "byte-level":
        pre, out = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True), tokenizers.decoders.ByteLevel()
        symbols, merges = [*"Ġabcdefo", "Ġa", "Ġf"], [("Ġ", "a"), ("Ġ", "f")]
    else:
        pre = tokenizers.pre_tokenizers.Metaspace("▁", scheme)
        out = tokenizers.decoders.Sequence(
            [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace("▁", scheme)]
        )
    model = tokenizers.models.BPE({s: i for i, s in enumerate(symbols)}, merges, byte_fallback=True)
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer, library.decoder = pre, out
    path = tmp_path_factory.mktemp("prefixing") / "tokenizer.json"
    library.save(str(path))
    if request.param == "legacy":
        spec = json.loads(path.read_text())
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
        spec["decoder"]["decoders"][1] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
        path.write_text(json.dumps(spec))
    return JsonTokenizer(path)


@pytest.mark.parametrize("after", [" foa", "foa", "a", " a fo", "  a"])
def test_a_text_that_follows_another_gets_no_space_and_loses_none(prefixing, after):
    before = prefixing.encode("abc fo")
    ids = encode_after(prefixing, after)
    assert decode_bytes_after(prefixing, ids).decode() == after
    whole = prefixing.decode([*before, *ids])
    assert whole.removeprefix(" ") == "abc fo" + after
    decoder = TextDecoder(prefixing, after=True)
    assert "".join([*(decoder.push([i]) for i in ids), decoder.finish()]) == after


def test_a_tokenizer_without_such_a_space_encodes_alike_everywhere(json_path, world_tokenizer):
    for tokenizer in (JsonTokenizer(json_path), world_tokenizer, ByteTokenizer()):
        assert encode_after(tokenizer, " the cat") == tokenizer.encode(" the cat")


@settings(max_examples=60)
@given(text=st.text(alphabet=" abfoé漢😀", max_size=20))
def test_characters_that_fall_back_to_bytes_stream_whole(fallback, text):
    ids = fallback.encode(text)
    decoder = TextDecoder(fallback)
    assert "".join([*(decoder.push([i]) for i in ids), decoder.finish()]) == fallback.decode(ids) == text


def test_tokens_cut_at_a_text_decode_to_it_whatever_is_put_before_a_text(fallback):
    assert fallback.decode(cut_tokens(fallback, fallback.encode("a fo"), "a f")) == "a f"


@settings(max_examples=80)
@given(data=st.one_of(TEXTS.map(str.encode), st.binary(max_size=40)), cuts=st.lists(st.integers(0, 40), max_size=8))
def test_streamed_pieces_join_to_the_text_and_hold_no_half_character(world_tokenizer, data, cuts):
    for tokenizer in (world_tokenizer, ByteTokenizer()):
        ids = tokenizer.encode_bytes(data)
        bounds = [0, *sorted(cuts), len(ids)]
        decoder = TextDecoder(tokenizer)
        pieces = [decoder.push(ids[a:b]) for a, b in itertools.pairwise(bounds)]
        whole = tokenizer.decode(ids)
        joined = "".join(pieces)
        assert whole.startswith(joined)
        assert joined + decoder.finish() == whole


def test_a_character_in_four_tokens_is_shown_once():
    decoder = TextDecoder(ByteTokenizer())
    assert [decoder.push([byte]) for byte in "😀".encode()] == ["", "", "", "😀"]
    assert decoder.push([0xF0]) == ""
    assert decoder.finish() == "\ufffd"


@pytest.mark.parametrize(("size", "kind"), [(65536, WorldTokenizer), (65530, WorldTokenizer), (256, ByteTokenizer)])
def test_auto_goes_by_the_size_of_the_vocabulary(size, kind):
    assert isinstance(load_tokenizer("auto", size), kind)


@pytest.mark.parametrize(
    ("name", "size", "error", "message"),
    [
        ("auto", 300, ValueError, "not 300"),
        ("auto", None, ValueError, "not None"),
        ("wrld", None, ValueError, "unknown tokenizer 'wrld'"),
        ("nowhere/tokenizer.json", None, FileNotFoundError, "nowhere"),
        ("nowhere.txt", None, FileNotFoundError, "nowhere.txt"),
        ("world", 256, ValueError, "vocabulary is 256"),
        ("byte", 64, ValueError, "vocabulary is 64"),
    ],
)
def test_a_wrong_tokenizer_gets_one_line(name, size, error, message):
    with pytest.raises(error, match=message) as caught:
        load_tokenizer(name, size)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_tokenizer_gets_one_line(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_needs_no_torch(world_tokenizer):
    assert world_tokenizer.encode("no torch")
    assert "rwkv.model" not in sys.modules
