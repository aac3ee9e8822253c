"""Sentences that one fact decides: half of the WinoGrande-like benchmark.

Two things of one kind are named, and the sentence ends with what is true of one of them only. The text tells all these
facts, in none of these sentences. X, Y, {r} and {w} as in `coreference`; {w} is X's value or Y's.
"""

from itertools import cycle

from experiments.pocket.coreference import Scene
from experiments.pocket.draw import Draw
from experiments.pocket.world import Fact, World

TEMPLATES = {
    ("person", "town"): "{X} and {Y} ran home, so {r} came to {w}.",
    ("person", "trade"): "{X} and {Y} wanted work, so {r} came as a {w}.",
    ("person", "colour"): "{X} and {Y} chose a lamp, and {r} wanted the {w} one.",
    ("person", "pet"): "{X} and {Y} were together, and {r} came with a {w}.",
    ("person", "instrument"): "{X} and {Y} were glad, so {r} came with the {w}.",
    ("person", "friend"): "{X} and {Y} wanted help, so {r} asked {w}.",
    ("person", "food"): "{X} and {Y} were hungry, so {r} wanted {w}.",
    ("town", "region"): "People looked for {X} and {Y}, and {r} was found in {w}.",
    ("town", "river"): "People looked for water in {X} and {Y}, and {r} got it from {w}.",
    ("town", "product"): "People of {X} and {Y} made too much, so {r} sold {w}.",
    ("town", "weather"): "People ran from {X} and {Y}, because {r} had too much {w}.",
    ("town", "mayor"): "People of {X} and {Y} wanted help, so {r} asked {w}.",
    ("town", "sign"): "People looked for {X} and {Y}, because {r} shows a {w}.",
    ("animal", "covering"): "People wanted the {X} and the {Y}, because the {r} gives {w}.",
    ("animal", "diet"): "The {X} and the {Y} were hungry, so the {r} looked for {w}.",
    ("animal", "home"): "The {X} and the {Y} were afraid, so the {r} ran to {w}.",
    ("animal", "sound"): "The {X} and the {Y} came near, and the {r} {w}.",
    ("animal", "colour"): "People saw the {X} and the {Y}, and the {r} looked {w}.",
    ("plant", "ground"): "People looked for the {X} and the {Y}, and the {r} was found in {w}.",
    ("plant", "colour"): "People saw the {X} and the {Y}, and the {r} looked {w}.",
    ("plant", "season"): "The {X} and the {Y} were late, so the {r} was cheap in {w}.",
    ("plant", "part"): "People bought the {X} and the {Y}, and of the {r} they used the {w}.",
    ("material", "kind"): "People used {X} and {Y}, because {r} is {w}.",
    ("material", "colour"): "People saw {X} and {Y}, and {r} looked {w}.",
    ("material", "origin"): "People looked for {X} and {Y}, and {r} was found near {w}.",
    ("material", "price"): "People sold {X} and {Y}, and for {r} they got {w}.",
}


def scenes(draw: Draw, world: World, split: str, count: int) -> list[Scene]:
    """`count` different scenes, every template about equally often, all facts of which belong to `split`."""
    facts: dict[tuple[str, str], list[Fact]] = {key: [] for key in TEMPLATES}
    for fact in world.base:
        key = (fact.relation.category, fact.relation.name)
        if key in facts and world.split_of(fact) == split:
            facts[key].append(fact)
    found: dict[Scene, None] = {}
    for key in cycle(TEMPLATES):
        if len(found) == count:
            break
        first, second = draw.sample(facts[key], 2)
        named = {first.entity, second.entity, first.value, second.value}
        if len(named) == 4:
            found[Scene((TEMPLATES[key], first.value, second.value), first.entity, second.entity)] = None
    return list(found)
