"""The pocket world: the same everywhere, consistent with its facts, and no benchmark format in its text."""

import hashlib
import json
import re
from collections import Counter
from itertools import combinations, islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.pocket import benchmarks, common_sense, coreference, problems, question_kinds, text, vocab, words
from experiments.pocket.draw import Draw, Weighted
from experiments.pocket.relations import RELATIONS, Derived
from experiments.pocket.world import World, default_world, noun

ASSET = Path(vocab.__file__).parents[1] / "assets" / "pocket" / "tokenizer.json"
EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
HASHES = {
    "text": "eef6c01c18760836",
    "mmlu": "ce49077612df5b2d",
    "gsm8k": "7c6c72ae70fbf5b3",
    "winogrande": "1043e5dd9b284ef3",
    "arc": "1504850952117821",
}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def documents(count: int, seed: int = 0, kind: str | None = None) -> list[str]:
    stream = (doc for name, doc in text.labelled_documents(seed) if kind in (None, name))
    return list(islice(stream, count))


def asked_fact(question: str) -> set[tuple[str, str, str]]:
    """Every fact that a direct question may ask, after what it may tell."""
    asked = question.split(". ")[-1]
    return {fact.key for fact in default_world().facts for i in range(2) if fact.asks(i) == asked}


def test_text_and_splits_are_pinned() -> None:
    found = {"text": digest(documents(50))}
    for name in benchmarks.BUILDERS:
        found[name] = digest([benchmarks.load(name, split) for split in benchmarks.SIZES])
    assert found == HASHES


def test_seeds_matter() -> None:
    assert documents(20, seed=1) == documents(20, seed=1)
    assert documents(20, seed=1) != documents(20, seed=2)
    assert benchmarks.load("arc", "test", 1) != benchmarks.load("arc", "test", 0)
    assert World(1).facts != World(0).facts
    assert [f.value for f in World(0).facts] == [f.value for f in default_world().facts]


@given(st.integers(-5, 5), st.integers(0, 9), st.text(max_size=5))
@settings(max_examples=20)
def test_draws_stay_in_range(low: int, span: int, key: str) -> None:
    draw = Draw(key)
    assert {draw.integer(low, low + span) for _ in range(50)} <= set(range(low, low + span + 1))
    assert sorted(draw.shuffled(range(span))) == list(range(span))
    assert draw.weighted(Weighted(("never", "always"), (0.0, 1.0))) == "always"
    with pytest.raises(ValueError, match="cannot draw"):
        draw.sample(range(span), span + 1)


def test_world_has_one_value_for_each_fact_and_keeps_its_rules() -> None:
    world = default_world()
    assert len({fact.key for fact in world.facts}) == len(world.facts)
    for fact in world.facts:
        assert fact.value in fact.relation.pool
        assert fact.value != fact.entity
        if isinstance(fact.relation, Derived):
            base = world.value(fact.relation.category, fact.entity, fact.relation.source)
            assert fact.value == fact.relation.mapping[base]
    assert all(len(relation.pool) >= 4 for relation in RELATIONS)
    unstated = [fact for fact in world.derived if fact.weight == 0]
    assert 0.25 * len(world.derived) < len(unstated) < 0.55 * len(world.derived)


def test_text_agrees_with_the_world() -> None:
    """Every sentence of the fact documents that some statement of the world can produce states a true fact."""
    world = default_world()
    true, false = set(), set()
    for fact in world.base:
        for template in fact.relation.statements:
            name = noun(fact.entity, fact.relation.category)
            for value in fact.relation.pool:
                sentence = text.capital(template.format(S=name, e=name, v=value)).removesuffix(".")
                (true if value == fact.value else false).add(sentence)
    false -= true
    told = [s.removesuffix(".") for doc in documents(3000, kind="gathering") for s in doc.split(". ")]
    assert sum(sentence in true for sentence in told) > 0.4 * len(told)
    assert not false.intersection(told)


def test_unstated_facts_are_never_told() -> None:
    world = default_world()
    told = set(". ".join(documents(20_000)).replace("?", ".").split(". "))
    for fact in world.derived:
        name = noun(fact.entity, fact.relation.category)
        sentences = {text.capital(t.format(S=name, e=name, v=fact.value)).rstrip(".") for t in fact.relation.statements}
        assert fact.weight > 0 or not sentences & told


def test_every_equation_of_the_text_is_right() -> None:
    found = EQUATION.findall(" ".join(documents(2500)))
    assert len(found) > 1000
    for left, sign, right, result in found:
        assert benchmarks.SIGNS[sign](int(left), int(right)) == int(result)
        assert 0 <= int(result) <= problems.LARGEST or sign == "*"


def test_quizzes_name_the_letter_of_the_true_value() -> None:
    pattern = re.compile(r"It is (.+?), so \w+ took ([A-D])\.")
    seen = 0
    for doc in documents(500, kind="quiz"):
        if match := pattern.search(doc):
            value, letter = match.groups()
            seen += 1
            assert any(form.format(l=letter, v=value) in doc for form, _ in text.LISTS)
    assert seen > 50


@pytest.mark.parametrize(
    "form", [r"Question:", r"\nAnswer:", r"#### \d+$", r"\n#### ", r"A\. .*\nB\. ", "multiple choice questions"]
)
def test_text_has_no_benchmark_format(form: str) -> None:
    assert not any(re.search(form, doc) for doc in documents(5000))


def test_kinds_come_as_often_as_their_weights_say() -> None:
    counts = Counter(kind for kind, _ in islice(text.labelled_documents(), 5000))
    total = sum(weight for weight, _ in text.KINDS.values())
    for kind, (weight, _) in text.KINDS.items():
        assert counts[kind] / 5000 == pytest.approx(weight / total, abs=0.02)


def test_benchmark_scenes_stay_out_of_the_text() -> None:
    pairs = {(s.first, s.second) for s in coreference.scenes(held_out=True)}
    assert not pairs & {(s.first, s.second) for s in coreference.scenes(held_out=False)}
    told = " ".join(documents(3000, kind="coreference") + documents(3000))
    for record in benchmarks.load("winogrande", "test"):
        option = record[f"option{record['answer']}"]
        assert record["sentence"].replace("_", option) not in told


@pytest.mark.parametrize("split", list(benchmarks.SIZES))
def test_common_sense_ends_with_what_is_true_of_one(split: str) -> None:
    world = default_world()
    scenes = common_sense.scenes(Draw(split), world, split, 120)
    assert len(set(scenes)) == 120
    kinds = [(fact, (fact.relation.category, fact.relation.name)) for fact in world.base]
    facts = {(common_sense.TEMPLATES.get(kind), fact.entity): fact for fact, kind in kinds}
    for scene in scenes:
        first, second = (facts[scene.template[0], entity] for entity in (scene.first, scene.second))
        assert (first.value, second.value) == scene.template[1:]
        assert first.value != second.value
        assert world.split_of(first) == world.split_of(second) == split
        for turn, fact in enumerate((first, second)):
            assert fact.value in scene.text(turn, "_").split("_")[1]
    assert {scene.template[0] for scene in scenes} == set(common_sense.TEMPLATES.values())


def test_kinds_of_questions() -> None:
    found = {
        name: Counter(question_kinds.kind(name, r) for r in benchmarks.load(name, "test"))
        for name in question_kinds.KINDS
    }
    assert {name: set(counts) for name, counts in found.items()} == {n: set(k) for n, k in question_kinds.KINDS.items()}
    assert found["mmlu"]["sum"] == 50
    assert found["winogrande"] == {"common sense": 200, "structure": 200}
    structure = {s.text(turn, "_") for s in coreference.scenes(held_out=True) for turn in (0, 1)}
    for record in benchmarks.load("winogrande", "train"):
        assert (question_kinds.kind("winogrande", record) == "structure") == (record["sentence"] in structure)


@pytest.mark.parametrize("name", list(benchmarks.BUILDERS))
def test_splits_have_their_size_and_share_no_question(name: str) -> None:
    splits = {split: benchmarks.load(name, split) for split in benchmarks.SIZES}
    assert {split: len(records) for split, records in splits.items()} == benchmarks.SIZES
    texts = {s: {r.get("question", r.get("sentence")) for r in records} for s, records in splits.items()}
    assert all(not texts[a] & texts[b] for a, b in combinations(texts, 2))
    if name != "winogrande":
        assert all(len(texts[s]) == len(splits[s]) for s in splits)


@pytest.mark.parametrize("name", ["mmlu", "arc"])
def test_splits_ask_different_facts(name: str) -> None:
    asked = {
        split: set().union(*(asked_fact(r["question"]) for r in benchmarks.load(name, split)))
        for split in benchmarks.SIZES
    }
    assert all(asked.values())
    assert all(not asked[a] & asked[b] for a, b in combinations(asked, 2))


def test_arc_wanted_things_stay_in_their_split() -> None:
    gold = {}
    for split in benchmarks.SIZES:
        gold[split] = {
            (re.sub(r"^\w+ ", "", r["question"]), r["choices"]["text"]["ABCD".index(r["answerKey"])])
            for r in benchmarks.load("arc", split)
            if "looks for" in r["question"]
        }
    assert all(not gold[a] & gold[b] for a, b in combinations(gold, 2))


@pytest.mark.parametrize("name", ["mmlu", "arc"])
@pytest.mark.parametrize("split", list(benchmarks.SIZES))
def test_letters_are_balanced_and_choices_differ(name: str, split: str) -> None:
    records = benchmarks.load(name, split)
    letters = Counter(r["answer"] if name == "mmlu" else r["answerKey"] for r in records)
    assert set(letters.values()) == {len(records) // 4}
    for record in records:
        choices = record["choices"] if name == "mmlu" else record["choices"]["text"]
        assert len(set(choices)) == 4


def test_mmlu_answers_are_true_and_half_are_told() -> None:
    values = {f.asks(i): f.value for f in default_world().base for i in range(2)}
    told = 0
    for record in benchmarks.load("mmlu", "test"):
        right = record["choices"][record["answer"]]
        if record["subject"] == "arithmetic":
            left, sign, number = record["question"].removeprefix("What is ").rstrip("?").split()
            assert benchmarks.SIGNS[sign](int(left), int(number)) == int(right)
        else:
            *opening, question = record["question"].split(". ")
            assert values[question] == right
            assert all(right in sentence for sentence in opening)
            told += len(opening)
    assert told == pytest.approx(200, abs=30)


@pytest.mark.parametrize("split", list(benchmarks.SIZES))
def test_winogrande_is_twins_with_balanced_answers(split: str) -> None:
    records = benchmarks.load("winogrande", split)
    assert Counter(r["answer"] for r in records) == {"1": len(records) // 2, "2": len(records) // 2}
    assert all(r["sentence"].count("_") == 1 for r in records)
    twins = Counter((r["sentence"].split("_")[0], frozenset((r["option1"], r["option2"]))) for r in records)
    assert all(count % 2 == 0 for count in twins.values())


def test_gsm8k_steps_lead_to_the_answer() -> None:
    for split in benchmarks.SIZES:
        for record in benchmarks.load("gsm8k", split):
            *steps, last = record["answer"].split("\n")
            for step in steps:
                left, sign, right, result = EQUATION.fullmatch(step).groups()  # pyright: ignore[reportOptionalMemberAccess]
                assert benchmarks.SIGNS[sign](int(left), int(right)) == int(result)
            assert last == f"#### {steps[-1].split(' = ')[1]}"
            assert 1 <= len(steps) <= 3


def test_gsm8k_splits_share_no_numbers_of_one_template() -> None:
    def shape(record: dict) -> tuple[str, str]:
        sentences = re.sub(r"\b(" + "|".join(words.WOMEN + words.MEN) + r")\b", "X", record["question"])
        return record["answer"], re.sub("|".join(words.ITEMS + words.BOXES), "i", re.sub("She|He", "X", sentences))

    shapes = {split: {shape(r) for r in benchmarks.load("gsm8k", split)} for split in benchmarks.SIZES}
    assert all(not shapes[a] & shapes[b] for a, b in combinations(shapes, 2))


def test_load_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown pocket benchmark 'sums'"):
        benchmarks.load("sums", "test")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        benchmarks.load("arc", "dev")


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(ASSET))


def test_shipped_tokenizer_is_what_the_command_makes(tokenizer) -> None:
    assert json.loads(vocab.build_tokenizer().to_str()) == json.loads(tokenizer.to_str())
    assert tokenizer.get_vocab_size() == vocab.VOCAB_SIZE
    assert tokenizer.token_to_id(vocab.END_OF_TEXT) == 0


@given(st.text(max_size=40))
@settings(max_examples=100)
def test_tokenizer_round_trips_any_text(tokenizer, content: str) -> None:
    assert tokenizer.decode(tokenizer.encode(content).ids, skip_special_tokens=False) == content


@given(st.integers(0, 10**9))
@settings(max_examples=30)
def test_one_digit_one_token(tokenizer, number: int) -> None:
    assert len(tokenizer.encode(str(number)).ids) == len(tokenizer.encode(f" {number}").ids) == len(str(number))


def test_words_of_the_world_are_single_tokens(tokenizer) -> None:
    for doc in documents(300, seed=7):
        pieces = re.findall(r" ?[^\W\d_]+| ?\d| ?[^\s\w]+|\s", doc)
        assert len(tokenizer.encode(doc).ids) == len(pieces)
    for piece in ("Question", "Answer", "####", " A", "\n"):
        assert len(tokenizer.encode(piece).ids) == 1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.cli import main

    out = tmp_path / "x.jsonl"
    assert main(["pocket", "benchmark", "pocket:gsm8k", "--split", "test", "--output", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == benchmarks.load("gsm8k", "test")
    assert main(["pocket", "text", "--n", "2"]) == 0
    assert capsys.readouterr().out == "".join(f"{doc}\n" for doc in documents(2))
    assert main(["pocket", "benchmark", "gsm8k"]) == 2
    assert "did you mean pocket:gsm8k" in capsys.readouterr().err
    assert main(["pocket", "benchmark", "pocket:gms8k"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pocket:gsm8k" in said
    for wrong in (["text", "--n", "-1"], ["tokenizer", "--size", "256"], ["benchmark"]):
        assert main(["pocket", *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
