"""The pocket world: who and what there is, and every fact about it, from one seed."""

from dataclasses import dataclass
from functools import cache, cached_property

from experiments.pocket import words
from experiments.pocket.draw import Draw, Weighted
from experiments.pocket.relations import RELATIONS, Derived, Relation

ENTITIES = {
    "person": words.WOMEN + words.MEN,
    "town": words.TOWNS,
    "trade": tuple(words.TRADES),
    "animal": words.ANIMALS,
    "plant": words.PLANTS,
    "material": words.MATERIALS,
}
SUBJECTS = {
    "person": "people",
    "town": "geography",
    "trade": "trades",
    "animal": "animals",
    "plant": "plants",
    "material": "materials",
}
ZIPF_EXPONENT = 0.8
DERIVED_WEIGHT = 0.5
UNSTATED_SHARE = 0.4


@dataclass(frozen=True)
class Fact:
    """One atomic fact. `weight` is its relative frequency in text; 0 for derived facts that text never states."""

    entity: str
    relation: Relation
    value: str
    weight: float

    @property
    def key(self) -> tuple[str, str, str]:
        """Category, entity and relation."""
        return (self.relation.category, self.entity, self.relation.name)

    def asks(self, wording: int) -> str:
        """The question about this fact, in one of its wordings."""
        questions = self.relation.questions
        return questions[wording % len(questions)].format(e=noun(self.entity, self.relation.category))


class World:
    """All facts of one seed; equal seeds give equal worlds."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._values: dict[tuple[str, str, str], str] = {}
        self.facts = tuple(self._make_facts())

    def value(self, category: str, entity: str, relation: str) -> str:
        """Returns the value of a fact."""
        return self._values[category, entity, relation]

    def about(self, entity: str, category: str) -> tuple[Fact, ...]:
        """Every fact of one entity."""
        return self._by_entity[category, entity]

    @cached_property
    def _by_entity(self) -> dict[tuple[str, str], tuple[Fact, ...]]:
        groups: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts:
            groups.setdefault((fact.relation.category, fact.entity), []).append(fact)
        return {key: tuple(group) for key, group in groups.items()}

    @cached_property
    def stated(self) -> Weighted[Fact]:
        """The facts that text states, by their frequency."""
        facts = [fact for fact in self.facts if fact.weight > 0]
        return Weighted(facts, [fact.weight for fact in facts])

    @cached_property
    def stated_derived(self) -> Weighted[Fact]:
        """The derived facts that text states, by their frequency."""
        facts = [fact for fact in self.derived if fact.weight > 0]
        return Weighted(facts, [fact.weight for fact in facts])

    @cached_property
    def derived(self) -> tuple[Fact, ...]:
        """The facts that follow from others."""
        return tuple(fact for fact in self.facts if isinstance(fact.relation, Derived))

    @cached_property
    def base(self) -> tuple[Fact, ...]:
        """The facts that do not follow from others."""
        return tuple(fact for fact in self.facts if not isinstance(fact.relation, Derived))

    def split_of(self, fact: Fact) -> str:
        """The one split ("train", "validation" or "test") whose benchmark items may ask this fact."""
        return self._splits[fact.key]

    @cached_property
    def _splits(self) -> dict[tuple[str, str, str], str]:
        splits = {}
        for relation in RELATIONS:
            keys = [fact.key for fact in self.facts if fact.relation is relation]
            order = Draw(f"{self.seed}/split/{relation.category}/{relation.name}").shuffled(keys)
            for i, key in enumerate(order):
                splits[key] = "train" if i < 0.5 * len(order) else "test" if i < 0.85 * len(order) else "validation"
        return splits

    def _make_facts(self) -> list[Fact]:
        facts = []
        for category, entities in ENTITIES.items():
            ranked = Draw(f"{self.seed}/rank/{category}").shuffled(entities)
            rank = {entity: i + 1 for i, entity in enumerate(ranked)}
            for relation in (r for r in RELATIONS if r.category == category):
                draw = Draw(f"{self.seed}/fact/{category}/{relation.name}")
                values = self._column(relation, entities, draw)
                for entity, value in zip(entities, values, strict=True):
                    self._values[category, entity, relation.name] = value
                    weight = rank[entity] ** -ZIPF_EXPONENT
                    if isinstance(relation, Derived):
                        weight *= 0 if draw.chance(UNSTATED_SHARE) else DERIVED_WEIGHT
                    facts.append(Fact(entity, relation, value, weight))
        return _level(facts)

    def _column(self, relation: Relation, entities: tuple[str, ...], draw: Draw) -> list[str]:
        """The values of one relation, one for each entity: each value of the pool about equally often."""
        if isinstance(relation, Derived):
            return [relation.mapping[self.value(relation.category, e, relation.source)] for e in entities]
        if relation.category == "trade":
            column = ("tool", "place", "makes").index(relation.name)
            return [words.TRADES[entity][column] for entity in entities]
        values: list[str] = []
        while len(values) < len(entities):
            values += draw.shuffled(relation.pool)
        return _without_self(list(entities), values[: len(entities)])


def _without_self(entities: list[str], values: list[str]) -> list[str]:
    """The values with those swapped on that equal their own entity (a friend is someone else)."""
    for i, entity in enumerate(entities):
        if values[i] == entity:
            j = (i + 1) % len(values)
            values[i], values[j] = values[j], values[i]
    return values


def _level(facts: list[Fact]) -> list[Fact]:
    """The facts with weights scaled so that each category has weight by its number of facts."""
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for fact in facts:
        category = fact.relation.category
        totals[category] = totals.get(category, 0.0) + fact.weight
        counts[category] = counts.get(category, 0) + 1
    scale = {category: counts[category] / totals[category] for category in totals}
    return [Fact(f.entity, f.relation, f.value, f.weight * scale[f.relation.category]) for f in facts]


def noun(entity: str, category: str) -> str:
    """How a sentence names an entity: "Mira", "the floop", "a baker", "selk"."""
    return {"animal": "the ", "plant": "the ", "trade": "a "}.get(category, "") + entity


def pronoun(entity: str, category: str) -> str:
    """The pronoun that opens a sentence about an entity already named."""
    if category in ("person", "trade"):
        return "She" if entity in words.WOMEN else "He"
    return "It"


@cache
def default_world() -> World:
    """Returns the world of the embedded models and benchmarks."""
    return World(0)
