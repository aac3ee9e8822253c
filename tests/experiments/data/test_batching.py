"""jsonl in, batches out: errors that name file and line, honest splits, buckets that lose nothing, exact resume."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig
from experiments.data import batching
from experiments.data.jsonl import Pair, hold_out, read_pairs
from rwkv7_jax import LanguageModel, bucketing
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.core import train
from state_tuning.core.objective import Example, collate


def examples_of(lengths):
    """One example for each number of positions, its tokens all different from the others'."""
    return [Example(np.full(n + 1, i, np.int32), 1, 0) for i, n in enumerate(lengths)]


def test_both_kinds_of_record(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n{"text": "c\\u2028d"}\n{"prompt": "", "completion": "e"}')
    assert read_pairs(path) == [Pair("a", "b"), Pair("", "c\u2028d"), Pair("", "e")]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "x.jsonl is empty; write one JSON object on each line"),
        (b"\n  \n", "x.jsonl is empty; write one JSON object on each line"),
        (b'{"text": "a"}\n{"text": ', "x.jsonl:2: not JSON (Expecting value: line 1 column 10 (char 9))"),
        (b'{"text": "a"}\n[1]\n', "x.jsonl:2: a JSON object is wanted, not list"),
        (b'{"question": "a"}\n', "x.jsonl:1: no 'prompt' and 'completion'; a line needs"),
        (b'{"prompt": "a"}\n', "x.jsonl:1: no 'completion'; a line needs"),
        (b'{"prompt": "a", "completion": 3}\n', "x.jsonl:1: 'completion' must be a string, not int"),
        (b'{"prompt": "a", "completion": ""}\n', "x.jsonl:1: the completion is empty, there is nothing to learn"),
        (b'{"text": ""}\n', "x.jsonl:1: the text is empty, there is nothing to learn"),
        (b'{"text": 3}\n', "x.jsonl:1: 'text' must be a string, not int"),
        (b'{"text": "\xff"}\n', "x.jsonl: not UTF-8 text (byte 10)"),
        (b'{"text": "a"}\n{"text": "a\\ud83d"}\n', "x.jsonl:2: '\\ud83d' is half of a surrogate pair"),
        (b'{"question": "a\\udc00", "answer": "b"}\n', "x.jsonl:1: '\\udc00' is half of a surrogate pair"),
        (b'{"text": ' + b"[" * 100_000, "x.jsonl:1: brackets are nested too deep"),
    ],
)
def test_wrong_jsonl_names_file_and_line(tmp_path, content, line):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_pairs(tmp_path / "x.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/{line}")
    assert "\n" not in str(error.value)


def test_folder_and_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder; give a \.jsonl file$"):
        read_pairs(tmp_path)
    with pytest.raises(UsageError, match=r"^no file .*x\.jsonl$"):
        read_pairs(tmp_path / "x.jsonl")


records = st.lists(st.builds(Pair, st.text(max_size=2), st.text("ab", min_size=1, max_size=2)), min_size=1, max_size=40)


@settings(max_examples=50)
@given(records, st.floats(0.01, 0.99), st.integers(0, 5), st.randoms())
def test_hold_out_keeps_equal_records_together(pairs, fraction, seed, random):
    different = set(pairs)
    if len(different) < 3:
        with pytest.raises(UsageError, match="too few to hold some out"):
            hold_out(pairs, fraction, seed)
        return
    train, held = hold_out(pairs, fraction, seed)
    assert set(train) | set(held) == different
    assert not set(train) & set(held)
    assert len(held) >= 2 or len(different) == 3
    shuffled = random.sample(pairs, len(pairs))
    assert hold_out(shuffled, fraction, seed)[1] == held


@settings(max_examples=100)
@given(st.integers(1, 5000))
def test_padded_lengths_hold_and_waste_little(length):
    padded = bucketing.padded_length(length)
    assert padded >= length
    assert length <= 32 or padded - length <= padded / 3
    assert bucketing.padded_length(padded) == padded


@settings(max_examples=50)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 8))
def test_buckets_lose_nothing_and_fill_a_batch(lengths, batch_size):
    examples = examples_of(lengths)
    groups = batching.buckets(examples, batch_size)
    assert sorted(e.tokens[0] for group in groups.values() for e in group) == list(range(len(lengths)))
    assert all(len(e.tokens) - 1 <= length for length, group in groups.items() for e in group)
    assert len(groups) == 1 or all(len(group) >= batch_size for group in groups.values())


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 8))
def test_padded_gives_every_example_once(lengths, batch_size):
    examples = examples_of(lengths)
    seen = []
    for chosen, batch in batching.padded(examples, batch_size):
        assert batch["tokens"].shape[0] == batch_size
        for row, index in enumerate(chosen):
            n = lengths[index]
            assert batch["valid"][row].sum() == n
            np.testing.assert_array_equal(batch["tokens"][row, :n], index)
        assert not batch["valid"][len(chosen) :].any()
        seen += chosen
    assert sorted(seen) == list(range(len(lengths)))


def test_training_batches_are_deterministic_and_resume_exactly():
    examples = examples_of([3, 5, 20, 21, 40, 41, 42, 100, 110, 120] * 3)
    first, second = (batching.training_batches(examples, 4, seed=3) for _ in range(2))
    rows = [next(first) for _ in range(12)]
    for row in rows[:5]:
        np.testing.assert_equal(next(second), row)
    position = json.loads(json.dumps(second.get_state()))
    third = batching.training_batches(examples, 4, seed=3)
    third.set_state(position)
    for row in rows[5:]:
        np.testing.assert_equal(next(third), row)
    other = batching.training_batches(examples, 4, seed=4)
    assert any(not np.array_equal(next(other)["tokens"], row["tokens"]) for row in rows)


@settings(max_examples=100)
@given(
    st.dictionaries(st.sampled_from([16, 32, 48, 64, 96, 128, 192]), st.floats(1, 1e6), min_size=1),
    st.floats(1e3, 1e9),
)
def test_few_lengths_cost_no_more_than_all_or_one(places, flops):
    """And every length fits in one; those of a chunk of the WKV op stay."""
    kept = batching.few_lengths(places, flops)
    compilation = batching.COMPILATION_FLOPS["cpu"] / flops

    def cost(lengths):
        longer = {n: min(length for length in lengths if length >= n) for n in places}
        return len(lengths) * compilation + sum(places[n] * (longer[n] / n - 1) for n in places)

    short = [n for n in places if n <= batching.ONE_CHUNK]
    assert list(kept) == sorted(set(kept))
    assert set(short) <= set(kept) <= set(places)
    assert max(kept) == max(places)
    assert cost(kept) <= min(cost(sorted(places)), cost(sorted({*short, max(places)}))) * (1 + 1e-9)


def test_lengths_pad_batches_and_change_nothing_else():
    examples = examples_of([3, 5, 20, 21, 40, 41, 42, 50, 60, 100, 110, 120] * 3)
    plain, few = (batching.training_batches(examples, 4, seed=3, lengths=lengths) for lengths in ((), (16, 32, 128)))
    seen = set()
    for _ in range(24):
        one, other = next(plain), next(few)
        length = one["tokens"].shape[1]
        seen.add((length, other["tokens"].shape[1]))
        for name, part in one.items():
            np.testing.assert_array_equal(other[name][:, :length], part)
            assert not other[name][:, length:].any()
    assert {after for _, after in seen} <= {16, 32, 128}
    assert any(before < after for before, after in seen)
    assert few.get_state() == plain.get_state()


def test_padding_beyond_one_chunk_changes_no_bit_of_a_tuned_state(tiny_checkpoint):
    lm, tune = LanguageModel.load(tiny_checkpoint), train.TuneConfig(learning_rate=1.0, steps=4)
    optimizer = train.make_optimizer(tune)
    step = train.make_train_step(lm.model, optimizer, tune)
    examples = examples_of([40, 41, 47, 33])
    found = []
    for length in (48, 96):
        tuned = train.init(optimizer, train.init_trainable(lm.config, tune))
        for _ in range(2):
            tuned, metrics = step(lm.params, tuned, collate(examples, length))
        found.append((np.asarray(tuned.trainable.wkv), float(metrics["loss"])))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][0].any()


def test_an_epoch_shows_every_example_once():
    examples = examples_of([5] * 12)
    batches = batching.training_batches(examples, 4, seed=0)
    epochs = [sorted(int(i) for _ in range(3) for i in next(batches)["tokens"][:, 0]) for _ in range(3)]
    assert epochs == [list(range(12))] * 3


@settings(max_examples=30)
@given(st.text("abcdef", min_size=1, max_size=60), st.integers(2, 20))
def test_windows_cover_a_text(text, max_length):
    pieces = batching.encode_pairs(ByteTokenizer(), [Pair("", text)], DataConfig(max_length=max_length))
    assert all(len(piece.tokens) - 1 <= max_length for piece in pieces)
    covered = [t for piece in pieces for t in piece.tokens[piece.completion_start :]]
    assert covered == [*text.encode(), 0]


def test_a_long_prompt_keeps_its_end():
    (example,) = batching.encode_pairs(ByteTokenizer(), [Pair("abcdef", "xy")], DataConfig(max_length=5))
    assert bytes(example.tokens.tolist()) == b"defxy\0"
    assert example.truncated == 3


def test_nothing_to_encode():
    with pytest.raises(UsageError, match="no records"):
        batching.encode_pairs(ByteTokenizer(), [], DataConfig())
