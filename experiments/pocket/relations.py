"""What can be said and asked of each kind of thing in the pocket world.

In the templates {S} is the subject that opens a sentence (a name, or a pronoun once it is known), {e} the entity
elsewhere and {v} the value. A derived relation follows from a base relation of the same entity by a general rule, which
{s} (the base value) and {v} state; it is what the ARC-like questions ask.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.pocket import words


@dataclass(frozen=True)
class Relation:
    """One relation: who has it, its possible values, and its wordings (tuples of templates)."""

    name: str
    category: str
    pool: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Derived(Relation):
    """A relation that `mapping` (base value -> value) gives from the base relation `source`.

    `rule` states the mapping; `given` describes an unknown thing by its base value, `wanted` by its derived value.
    """

    source: str
    mapping: Mapping[str, str]
    rule: str
    given: str
    wanted: str


def _derived(name, category, source, mapping, statements, questions, rule, given, wanted) -> Derived:
    pool = tuple(dict.fromkeys(mapping.values()))
    return Derived(name, category, pool, statements, questions, source, mapping, rule, given, wanted)


def _column(table: Mapping[str, tuple[str, ...]], index: int) -> dict[str, str]:
    return {key: values[index] for key, values in table.items()}


_TRADES, _COVERINGS, _KINDS = words.TRADES, words.COVERINGS, words.KINDS

PERSON = (
    Relation("town", "person", words.TOWNS,
        ("{S} lives in {v}.", "The home of {e} is in {v}.", "{S} has a house in {v}."),
        ("Where does {e} live?", "In which town is the home of {e}?")),
    Relation("trade", "person", tuple(_TRADES),
        ("{S} is a {v}.", "{S} works as a {v}.", "The trade of {e} is that of a {v}."),
        ("What is the trade of {e}?", "What does {e} work as?")),
    Relation("colour", "person", words.COLOURS,
        ("{S} likes the colour {v}.", "{S} always wears {v}.", "The best colour for {e} is {v}."),
        ("Which colour does {e} like?", "Which colour does {e} always wear?")),
    Relation("pet", "person", words.ANIMALS,
        ("{S} has a pet {v}.", "The pet of {e} is a {v}.", "{S} feeds a {v} at home."),
        ("What is the pet of {e}?", "Which animal does {e} feed at home?")),
    Relation("instrument", "person", words.INSTRUMENTS,
        ("{S} plays the {v}.", "{S} makes music on the {v}.", "The music of {e} comes from the {v}."),
        ("What does {e} play?", "On what does {e} make music?")),
    Relation("friend", "person", words.WOMEN + words.MEN,
        ("The best friend of {e} is {v}.", "{S} is often with {v}.", "{S} trusts {v} most of all."),
        ("Who is the best friend of {e}?", "Who is often with {e}?")),
    Relation("food", "person", words.FOODS,
        ("{S} likes to eat {v}.", "The best food for {e} is {v}.", "{S} eats {v} every day."),
        ("What does {e} like to eat?", "What does {e} eat every day?")),
    _derived("tool", "person", "trade", _column(_TRADES, 0),
        ("{S} uses the {v} at work.", "At work {e} needs the {v}."), ("Which tool does {e} use at work?",),
        "A {s} uses the {v} at work.", "a {s}", "someone who uses the {v} at work"),
    _derived("workplace", "person", "trade", _column(_TRADES, 1),
        ("{S} works in the {v}.", "You can find {e} in the {v}."), ("In which place does {e} work?",),
        "A {s} works in the {v}.", "a {s}", "someone who works in the {v}"),
)  # fmt: skip

TOWN = (
    Relation("region", "town", words.REGIONS,
        ("{S} is a town of {v}.", "{S} lies in {v}.", "The people of {e} belong to {v}."),
        ("In which part of the land is {e}?", "Where does {e} lie?")),
    Relation("river", "town", words.RIVERS,
        ("{S} lies on {v}.", "The river of {e} is {v}.", "The water of {e} comes from {v}."),
        ("What is the river of {e}?", "Which river brings water to {e}?")),
    Relation("product", "town", words.GOODS,
        ("{S} is known for {v}.", "{S} makes the best {v}.", "The people of {e} sell {v}."),
        ("What is {e} known for?", "What do the people of {e} sell?")),
    Relation("weather", "town", words.WEATHER,
        ("{S} has much {v}.", "The weather of {e} brings {v}."),
        ("What does the weather of {e} bring?", "Which weather does {e} have?")),
    Relation("mayor", "town", words.WOMEN + words.MEN,
        ("The mayor of {e} is {v}.", "The head of {e} is {v}.", "{S} chose {v} as its mayor."),
        ("Who is the mayor of {e}?", "Who is the head of {e}?")),
    Relation("sign", "town", words.ANIMALS,
        ("The sign of {e} shows a {v}.", "{S} has a {v} on its sign."),
        ("Which animal does the sign of {e} show?", "What is on the sign of {e}?")),
    _derived("gear", "town", "weather", words.GEAR,
        ("{S} needs {v}.", "The people of {e} need {v}."), ("What do the people of {e} need?",),
        "Towns with much {s} need {v}.", "a town with much {s}", "a town that needs {v}"),
)  # fmt: skip

TRADE = (
    Relation("tool", "trade", tuple(_column(_TRADES, 0).values()),
        ("The tool of {e} is the {v}.", "{S} uses the {v} at work."),
        ("What is the tool of {e}?", "Which tool does {e} use?")),
    Relation("place", "trade", tuple(_column(_TRADES, 1).values()),
        ("{S} works in the {v}.", "The place of {e} is the {v}."),
        ("What is the place of {e}?", "Where does {e} work?")),
    Relation("makes", "trade", tuple(_column(_TRADES, 2).values()),
        ("{S} brings us {v}.", "The work of {e} gives {v}."),
        ("What does {e} bring us?", "What does the work of {e} give?")),
)  # fmt: skip

ANIMAL = (
    Relation("covering", "animal", tuple(_COVERINGS),
        ("{S} is covered with {v}.", "The body of {e} has {v}."),
        ("What is {e} covered with?", "What does the body of {e} have?")),
    Relation("diet", "animal", tuple(words.DIETS),
        ("{S} eats {v}.", "The food of {e} is {v}."),
        ("What does {e} eat?", "What is the food of {e}?")),
    Relation("home", "animal", tuple(words.HOMES),
        ("{S} lives in {v}.", "The home of {e} is in {v}."),
        ("Where does {e} live?", "In what is the home of {e}?")),
    Relation("sound", "animal", words.SOUNDS,
        ("{S} {v} at night.", "When it is afraid, {e} {v}."),
        ("What does {e} do at night?", "What does {e} do when it is afraid?")),
    Relation("colour", "animal", words.COLOURS,
        ("{S} is {v}.", "The colour of {e} is {v}."),
        ("What is the colour of {e}?", "Which colour does {e} have?")),
    _derived("class", "animal", "covering", _column(_COVERINGS, 0),
        ("{S} is a {v}.", "People call {e} a {v}."), ("What kind of animal is {e}?",),
        "An animal covered with {s} is a {v}.", "an animal covered with {s}", "an animal that is a {v}"),
    _derived("young", "animal", "covering", _column(_COVERINGS, 1),
        ("The young of {e} {v}.", "When they are small, the young of {e} {v}."), ("What do the young of {e} do?",),
        "The young of animals with {s} {v}.", "an animal covered with {s}", "an animal whose young {v}"),
    _derived("teeth", "animal", "diet", words.DIETS,
        ("{S} has {v} teeth.", "The teeth of {e} are {v}."), ("What are the teeth of {e} like?",),
        "An animal that eats {s} has {v} teeth.", "an animal that eats {s}", "an animal with {v} teeth"),
    _derived("skill", "animal", "home", words.HOMES,
        ("{S} can {v} well.", "People saw {e} {v}."), ("What can {e} do well?",),
        "An animal that lives in {s} can {v} well.", "an animal that lives in {s}", "an animal that can {v} well"),
)  # fmt: skip

PLANT = (
    Relation("ground", "plant", tuple(words.GROUNDS),
        ("{S} grows in {v}.", "You can find {e} in {v}."),
        ("Where does {e} grow?", "Where can you find {e}?")),
    Relation("colour", "plant", words.COLOURS,
        ("{S} has {v} flowers.", "The flowers of {e} are {v}."),
        ("Which colour are the flowers of {e}?", "Which flowers does {e} have?")),
    Relation("season", "plant", words.SEASONS,
        ("{S} is ripe in {v}.", "The time of {e} is {v}."),
        ("When is {e} ripe?", "What is the time of {e}?")),
    Relation("part", "plant", tuple(words.PARTS),
        ("People eat the {v} of {e}.", "The best part of {e} is the {v}."),
        ("Which part of {e} do people eat?", "What is the best part of {e}?")),
    _derived("need", "plant", "ground", words.GROUNDS,
        ("{S} needs {v}.", "Without {v}, {e} dies."), ("What does {e} need?",),
        "A plant that grows in {s} needs {v}.", "a plant that grows in {s}", "a plant that needs {v}"),
    _derived("cooking", "plant", "part", words.PARTS,
        ("When people have {e}, they {v}.", "To eat {e}, {v}."), ("What do people do with {e}?",),
        "When people eat the {s} of a plant, they {v}.", "a plant with a good {s}", "a plant for people who {v}"),
)  # fmt: skip

MATERIAL = (
    Relation("kind", "material", tuple(_KINDS),
        ("People know that {e} is a kind of {v}.", "A sort of {v} is {e}."),
        ("What kind of thing is {e}?", "Of what sort is {e}?")),
    Relation("colour", "material", words.COLOURS,
        ("The colour of {e} is {v}.", "Good {e} is {v}."),
        ("What is the colour of {e}?", "Which colour has good {e}?")),
    Relation("origin", "material", words.TOWNS,
        ("People find {e} near {v}.", "The best {e} comes from {v}."),
        ("Where do people find {e}?", "From where does the best {e} come?")),
    Relation("price", "material", words.GOODS,
        ("You can buy {e} with {v}.", "For {e} people give {v}."),
        ("With what can you buy {e}?", "What do people give for {e}?")),
    _derived("fire", "material", "kind", _column(_KINDS, 0),
        ("In a fire {e} {v}.", "When it is hot, {e} {v}."), ("What happens to {e} in a fire?",),
        "In a fire {s} {v}.", "some {s}", "something that {v} in a fire"),
    _derived("water", "material", "kind", _column(_KINDS, 1),
        ("In water {e} {v}.", "When it falls in a river, {e} {v}."), ("What happens to {e} in water?",),
        "In water {s} {v}.", "some {s}", "something that {v} in water"),
    _derived("use", "material", "kind", _column(_KINDS, 2),
        ("People make {v} of {e}.", "From {e} come {v}."), ("What do people make of {e}?",),
        "People make {v} of {s}.", "some {s}", "something to make {v} of"),
)  # fmt: skip

RELATIONS: tuple[Relation, ...] = PERSON + TOWN + TRADE + ANIMAL + PLANT + MATERIAL
