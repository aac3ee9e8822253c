"""The pre-training text: an endless seeded stream of short documents, in no benchmark's format."""

from collections.abc import Callable, Iterator

from experiments.pocket import coreference, problems, words
from experiments.pocket.draw import Draw, Weighted
from experiments.pocket.layout import laid_out
from experiments.pocket.relations import RELATIONS, Derived
from experiments.pocket.world import ENTITIES, Fact, World, default_world, noun, pronoun

PEOPLE = ENTITIES["person"]
LISTS = (*(("{l} {v}", ", "),) * 4, ("({l}) {v}", ", "), ("{l}. {v}", ", "), ("{l}: {v}", "; "),
         ("{l}) {v}", "\n"), ("{l}) {v}", "\n"), ("{l} {v}", "\n"), ("{l}: {v}", "\n"))  # fmt: skip
"""How four lettered values are listed: each one's form, and what stands between them."""
LABELS = (("Riddle", "Solution"), ("Task", "Result"), ("Puzzle", "Reply"), ("Test", "Response"))
"""What stands before a question and before its answer."""
MET = {"person": "met", "town": "saw", "animal": "saw", "plant": "found", "material": "found"}
UNNAMED = {"person": "this friend", "town": "this town", "animal": "this animal", "plant": "this plant",
           "material": "this"}  # fmt: skip


def capital(sentence: str) -> str:
    """Returns the sentence with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]


def state(fact: Fact, draw: Draw, *, known: bool = False) -> str:
    """One sentence that states the fact; `known` lets a pronoun open it."""
    category = fact.relation.category
    name = noun(fact.entity, category)
    opening = f"the town of {fact.entity}" if category == "town" else name
    subject = pronoun(fact.entity, category) if known and draw.chance(0.5) else opening
    return capital(draw.pick(fact.relation.statements).format(S=subject, e=name, v=fact.value))


def _stated(world: World, fact: Fact) -> tuple[Fact, ...]:
    facts = world.about(fact.entity, fact.relation.category)
    return tuple(f for f in facts if f.weight > 0 and f.relation is not fact.relation)


def portrait(draw: Draw, world: World) -> str:
    """Two to four facts about one thing."""
    fact = draw.weighted(world.stated)
    others = _stated(world, fact)
    chosen = [fact, *draw.sample(others, min(draw.integer(1, 3), len(others)))]
    return " ".join(state(f, draw, known=i > 0) for i, f in enumerate(chosen))


def gathering(draw: Draw, world: World) -> str:
    """Two to four facts about different things."""
    return " ".join(state(draw.weighted(world.stated), draw) for _ in range(draw.integer(2, 4)))


def reason(draw: Draw, world: World) -> str:
    """A base fact, the rule, and what follows for a thing whose derived fact text may state."""
    fact = draw.weighted(world.stated_derived)
    relation = fact.relation
    assert isinstance(relation, Derived)
    base = next(f for f in world.about(fact.entity, relation.category) if f.relation.name == relation.source)
    rule = relation.rule.format(s=base.value, v=fact.value)
    return " ".join((state(base, draw), rule, state(fact, draw)))


def rules(draw: Draw, world: World) -> str:
    """Two or three general rules, some applied to a thing with no name."""
    del world
    derived = tuple(relation for relation in RELATIONS if isinstance(relation, Derived))
    parts = []
    for relation in draw.sample(derived, draw.integer(2, 3)):
        source = draw.pick(tuple(relation.mapping))
        value = relation.mapping[source]
        if draw.chance(0.5):
            parts.append(relation.rule.format(s=source, v=value))
        else:
            it = UNNAMED[relation.category]
            told = draw.pick(relation.statements).format(S=it, e=it, v=value)
            parts.append(f"{meeting(relation, source, draw.pick(PEOPLE))} {capital(told)}")
    return " ".join(parts)


def meeting(relation: Derived, source: str, who: str) -> str:
    """A sentence in which someone meets an unnamed thing of which only the base value is known."""
    return f"{who} {MET[relation.category]} {relation.given.format(s=source)}."


def search(draw: Draw, world: World) -> str:
    """One to three times: what someone looks for, and which thing it is."""
    parts = []
    for _ in range(draw.integer(1, 3)):
        fact = draw.weighted(world.stated_derived)
        assert isinstance(fact.relation, Derived)
        who, other = draw.sample(PEOPLE, 2)
        wanted = fact.relation.wanted.format(v=fact.value)
        name = noun(fact.entity, fact.relation.category)
        parts.append(draw.pick((f"{who} looked for {wanted}. {other} said: {name}.", f"{who} found {wanted}: {name}.")))
    return " ".join(parts)


def chat(draw: Draw, world: World) -> str:
    """One to three questions, asked and answered by people."""
    asker, answerer = draw.sample(PEOPLE, 2)
    parts = []
    for _ in range(draw.integer(1, 3)):
        fact = draw.weighted(world.stated)
        question = fact.asks(draw.integer(0, 5))
        ask, reply = draw.pick(LABELS)
        parts.append(draw.pick((
            f"{asker} asked: {question} {answerer} said: {fact.value}.",
            f"{asker} wanted to know: {question} The reply was: {fact.value}.",
            f"{question} {answerer} knew it: {fact.value}.",
            f"Question from {asker}. {question} Answer from {answerer}. It is {fact.value}.",
            f"{ask}: {question} {reply}: {fact.value}.",
            f"{ask}: {question}\n{reply}: {fact.value}.",
            f"{ask}: {question} Answer: {fact.value}.",
        )))  # fmt: skip
    return " ".join(parts)


def sums(draw: Draw, world: World) -> str:
    """Four to nine equations."""
    del world
    return " ".join(f"{_equation(draw)}." for _ in range(draw.integer(4, 9)))


def _equation(draw: Draw) -> str:
    sign = draw.pick("++--*")
    if sign == "*":
        left, right = draw.integer(2, 9), draw.integer(2, 9)
        return f"{left} * {right} = {left * right}"
    left = draw.integer(1, draw.pick((10, 20, 40)))
    if sign == "+":
        right = draw.integer(1, draw.pick((10, min(20, problems.LARGEST - left))))
        return f"{left} + {right} = {left + right}"
    right = draw.integer(1, min(left, draw.pick((10, 20))))
    return f"{left} - {right} = {left - right}"


def problem(draw: Draw, world: World) -> str:
    """Returns a worked arithmetic problem."""
    del world
    return problems.prose(problems.make_problem(draw), draw)


def coref(draw: Draw, world: World) -> str:
    """Returns a passage whose pronouns have one meaning."""
    del world
    return coreference.passage(draw)


def lookup(draw: Draw, world: World) -> str:
    """Who has what, then some of it again."""
    del world
    count = draw.integer(3, 5)
    people, things = draw.sample(PEOPLE, count), draw.sample(words.THINGS, count)
    pairs = list(zip(people, things, strict=True))
    told = [f"{who} has the {thing}." for who, thing in pairs]
    again = [
        draw.pick(
            (f"The {thing} is with {who}.", f"Who has the {thing}? It is {who}.", f"What does {who} have? The {thing}.")
        )
        for who, thing in draw.sample(pairs, draw.integer(1, 3))
    ]
    return " ".join(told + again)


def _lettered(draw: Draw, values: list[str]) -> str:
    form, between = draw.pick(LISTS)
    return between.join(form.format(l=letter, v=value) for letter, value in zip("ABCD", values, strict=True))


def doors(draw: Draw, world: World) -> str:
    """Letters for four words, then again and again which letter stands for which."""
    del world
    pool = draw.pick((words.COLOURS, words.FOODS, words.THINGS, words.TOWNS, PEOPLE, words.GOODS, words.ANIMALS))
    values = draw.sample(pool, 4)
    parts = [f"There were four {draw.pick(('doors', 'cards', 'roads', 'boats'))}: {_lettered(draw, values)}."]
    asked = [draw.integer(0, 3) for _ in range(draw.integer(4, 9))]
    style = draw.pick(("{v} {l}", "{v} {l}", "{v} {l}", "{v} is {l}", "{v} is {l}", "{l} {v}"))
    parts.append(f"Now {', '.join(style.format(l='ABCD'[i], v=values[i]) for i in asked)}.")
    guests = tuple(who for who in PEOPLE if who not in values)
    index = draw.integer(0, 3)
    who, letter, value = draw.pick(guests), "ABCD"[index], values[index]
    parts.append(draw.pick((
        f"{who} liked {value} and took {letter}.", f"{who} wanted {value}, so the choice was {letter}.",
        f"For {value} one takes {letter}.",
    )))  # fmt: skip
    return " ".join(parts)


def quiz(draw: Draw, world: World) -> str:
    """A question, four lettered values of one kind, and the letter that is right; often the fact is told first."""
    fact = draw.weighted(world.stated)
    values, index = options(fact, draw)
    asker, answerer = draw.sample(PEOPLE, 2)
    letter, question, listed = "ABCD"[index], fact.asks(draw.integer(0, 5)), _lettered(draw, values)
    ask, reply = draw.pick(LABELS)
    told = state(fact, draw) + " " if draw.chance(0.3) else ""
    return told + draw.pick((
        f"{asker} asked: {question} The cards said {listed}. {answerer} took {letter}, for it is {fact.value}.",
        f"{asker} asked: {question} The cards said {listed}. It is {fact.value}, so {answerer} took {letter}.",
        f"There were four cards: {listed}. {question} {answerer} chose {letter}.",
        f"{question} There were four roads: {listed}. The right road was {letter}.",
        f"{question}\n{listed}\n{answerer}: {letter}, it is {fact.value}.",
        f"{question}\n{listed}\n{reply}: {letter}.",
        f"{ask}: {question}\n{listed}\n{reply}: {letter}.",
        f"{ask}: {question} {listed} Answer: {letter}.",
        f"{question} {listed} Answer: {letter}, it is {fact.value}.",
    ))  # fmt: skip


def options(fact: Fact, draw: Draw, index: int | None = None) -> tuple[list[str], int]:
    """Four different values of the fact's kind, the true one at `index` (drawn when None)."""
    index = draw.integer(0, 3) if index is None else index
    values = draw.sample(wrong_values(fact), 3)
    values.insert(index, fact.value)
    return values, index


def wrong_values(fact: Fact) -> tuple[str, ...]:
    """The values that would be wrong for this fact."""
    return tuple(value for value in fact.relation.pool if value not in (fact.value, fact.entity))


KINDS: dict[str, tuple[float, Callable[[Draw, World], str]]] = {
    "portrait": (0.10, portrait),
    "gathering": (0.04, gathering),
    "reason": (0.06, reason),
    "rules": (0.04, rules),
    "search": (0.06, search),
    "chat": (0.10, chat),
    "sums": (0.04, sums),
    "problem": (0.14, problem),
    "coreference": (0.03, coref),
    "lookup": (0.02, lookup),
    "doors": (0.12, doors),
    "quiz": (0.25, quiz),
}


def documents(seed: int = 0, world: World | None = None) -> Iterator[str]:
    """Documents without end. Equal seeds give equal streams; different seeds different ones about the same world."""
    for _, document in labelled_documents(seed, world):
        yield document


def labelled_documents(seed: int = 0, world: World | None = None) -> Iterator[tuple[str, str]]:
    """The same stream with each document's kind."""
    world = world or default_world()
    draw = Draw(f"text/{seed}")
    table = Weighted(tuple(KINDS), [weight for weight, _ in KINDS.values()])
    while True:
        kind = draw.weighted(table)
        yield kind, laid_out(KINDS[kind][1](draw, world), draw)
