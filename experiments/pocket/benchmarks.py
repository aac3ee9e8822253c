"""Four small benchmarks about the pocket world, in the public record schemas of MMLU, GSM8K, WinoGrande and ARC.

The splits of one benchmark share no item: no question text, no asked fact, no numbers of a problem template, no scene.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle

from experiments.pocket import common_sense, coreference, problems, text
from experiments.pocket.draw import Draw
from experiments.pocket.relations import Derived
from experiments.pocket.world import SUBJECTS, Fact, World, default_world, noun

SIZES = {"train": 800, "validation": 200, "test": 400}
SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
ARITHMETIC_SHARE, TOLD_SHARE, DIRECT_SHARE, WANTED_SHARE = 0.125, 0.5, 0.2, 0.5


def load(name: str, split: str, seed: int = 0) -> list[dict]:
    """The records of one split.

    `seed` redraws the items; the world, and which of its facts each split may ask, stay.
    Raises ValueError for an unknown name or split.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown pocket benchmark {name!r}: choose one of {', '.join(BUILDERS)}")
    if split not in SIZES:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SIZES)}")
    return list(_build(name, seed)[split])


@cache
def _build(name: str, seed: int) -> dict[str, list[dict]]:
    draw = Draw(f"benchmark/{name}/{seed}")
    splits = BUILDERS[name](draw, default_world())
    return {split: draw.shuffled(splits[split]) for split in SIZES}


def _letters(draw: Draw, count: int) -> Iterator[int]:
    """Positions 0..3 of the right choice, equally often, in random order."""
    return iter(draw.shuffled([i % 4 for i in range(count)]))


def _facts(draw: Draw, facts: tuple[Fact, ...], world: World, split: str) -> list[Fact]:
    return draw.shuffled([fact for fact in facts if world.split_of(fact) == split])


def _mmlu(draw: Draw, world: World) -> dict[str, list[dict]]:
    """Base facts by subject, more than half of them after a sentence that tells the answer, and arithmetic."""
    equations = draw.shuffled(_small_equations())
    splits = {}
    for split, size in SIZES.items():
        sums = int(ARITHMETIC_SHARE * size)
        letters = _letters(draw, size)
        mine, equations = equations[:sums], equations[sums:]
        records = [_sum_record(draw, equation, next(letters)) for equation in mine]
        facts = _facts(draw, world.base, world, split)
        for number, fact in enumerate(cycle(facts)):
            if len(records) == size:
                break
            choices, answer = text.options(fact, draw, next(letters))
            question = fact.asks(number // len(facts) + facts.index(fact))
            if draw.chance(TOLD_SHARE / (1 - ARITHMETIC_SHARE)):
                question = f"{text.state(fact, draw)} {question}"
            records.append(_mmlu_record(question, choices, answer, SUBJECTS[fact.relation.category]))
        splits[split] = records
    return splits


def _mmlu_record(question: str, choices: list[str], answer: int, subject: str) -> dict:
    return {"question": question, "choices": choices, "answer": answer, "subject": subject}


def _small_equations() -> list[tuple[int, str, int]]:
    plus = [(a, "+", b) for a in range(2, 31) for b in range(2, 13)]
    minus = [(a, "-", b) for a in range(5, 41) for b in range(2, 13) if b < a]
    return plus + minus + [(a, "*", b) for a in range(2, 10) for b in range(2, 10)]


def _sum_record(draw: Draw, equation: tuple[int, str, int], answer: int) -> dict:
    left, sign, right = equation
    result = SIGNS[sign](left, right)
    near = [result + d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if result + d >= 0]
    choices = [str(n) for n in draw.sample(near, 3)]
    choices.insert(answer, str(result))
    return _mmlu_record(f"What is {left} {sign} {right}?", choices, answer, "arithmetic")


def _gsm8k(draw: Draw, world: World) -> dict[str, list[dict]]:
    """Word problems; the answer is one equation a line and `#### n`."""
    del world
    found: dict[tuple, dict] = {}
    while len(found) < sum(SIZES.values()):
        problem = problems.make_problem(draw)
        question = " ".join((*problem.story, problem.question))
        steps = "\n".join(step.text for step in problem.steps)
        found.setdefault(problem.key, {"question": question, "answer": f"{steps}\n#### {problem.answer}"})
    return _cut(draw.shuffled(list(found.values())), 1)


def _cut(items: list, records_each: int) -> dict[str, list]:
    """Consecutive parts, so that each split gets its size in records."""
    parts, start = {}, 0
    for split, size in SIZES.items():
        parts[split] = items[start : start + size // records_each]
        start += size // records_each
    return parts


def _winogrande(draw: Draw, world: World) -> dict[str, list[dict]]:
    """Both turns of each scene, which differ in one word and in the answer; half of the scenes need common sense."""
    pairs = sum(SIZES.values()) // 2
    told = _cut(draw.sample(coreference.scenes(held_out=True), pairs // 2), 4)
    known = {split: common_sense.scenes(draw, world, split, size // 4) for split, size in SIZES.items()}
    return {split: [turn for scene in told[split] + known[split] for turn in _twins(draw, scene)] for split in SIZES}


def _twins(draw: Draw, scene: coreference.Scene) -> Iterator[dict]:
    options = draw.shuffled([scene.first, scene.second])
    for turn, meant in enumerate((scene.first, scene.second)):
        yield {
            "sentence": scene.text(turn, "_"),
            "option1": options[0],
            "option2": options[1],
            "answer": str(options.index(meant) + 1),
        }


def _arc(draw: Draw, world: World) -> dict[str, list[dict]]:
    """Derived facts, asked directly, from a wanted property back to the thing, or of an unnamed thing."""
    splits, asked = {}, set()
    for split, size in SIZES.items():
        letters = _letters(draw, size)
        facts = cycle(_facts(draw, world.derived, world, split))
        records: list[dict] = []
        while len(records) < size:
            share = len(records) / size
            ask = _direct if share < DIRECT_SHARE else _wanted if share < DIRECT_SHARE + WANTED_SHARE else _given
            question, right, wrong = ask(draw, world, next(facts))
            if question not in asked:
                asked.add(question)
                answer = next(letters)
                choices = draw.sample(wrong, 3)
                choices.insert(answer, right)
                name = f"pocket_{split}_{len(records)}"
                records.append(_arc_record(name, question, choices, answer))
        splits[split] = records
    return splits


def _arc_record(name: str, question: str, choices: list[str], answer: int) -> dict:
    labels = list("ABCD")
    return {
        "id": name,
        "question": question,
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[answer],
    }


def _direct(draw: Draw, world: World, fact: Fact) -> tuple[str, str, tuple[str, ...]]:
    del world
    return fact.asks(draw.integer(0, 5)), fact.value, text.wrong_values(fact)


def _wanted(draw: Draw, world: World, fact: Fact) -> tuple[str, str, tuple[str, ...]]:
    relation, who = fact.relation, draw.pick(tuple(person for person in text.PEOPLE if person != fact.entity))
    assert isinstance(relation, Derived)
    wrong = tuple(
        noun(other.entity, relation.category)
        for other in world.derived
        if other.relation is relation and other.value != fact.value and other.entity != who
    )
    question = f"{who} looks for {relation.wanted.format(v=fact.value)}. Which one is right?"
    return question, noun(fact.entity, relation.category), wrong


def _given(draw: Draw, world: World, fact: Fact) -> tuple[str, str, tuple[str, ...]]:
    relation, who = fact.relation, draw.pick(text.PEOPLE)
    assert isinstance(relation, Derived)
    source = world.value(relation.category, fact.entity, relation.source)
    asked = draw.pick(relation.questions).format(e=text.UNNAMED[relation.category])
    return f"{text.meeting(relation, source, who)} {asked}", fact.value, text.wrong_values(fact)


BUILDERS: dict[str, Callable[[Draw, World], dict[str, list[dict]]]] = {
    "mmlu": _mmlu,
    "gsm8k": _gsm8k,
    "winogrande": _winogrande,
    "arc": _arc,
}
