"""Why the right choice of a pocket question is right: the fact and the rule that decide it, read off the record.

What a solution written by a person is to a real benchmark. The records keep the public schemas, so the fact is found by
the question's words.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from experiments.pocket import common_sense, text
from experiments.pocket.relations import RELATIONS, Derived
from experiments.pocket.world import Fact, World, default_world, noun


def rationale(benchmark: str, record: Mapping[str, Any]) -> str:
    """Returns one or two sentences, '' where nothing has to be known beside what the question says.

    Args:
      benchmark: mmlu, gsm8k, winogrande or arc.
      record: of a pocket benchmark; of another one nothing is known.

    Example:
      >>> question = {"question": "Who asks this?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}
      >>> rationale("arc", question)
      ''
    """
    if benchmark == "arc":
        labels, texts = record["choices"]["label"], record["choices"]["text"]
        return _derived(record["question"], texts[labels.index(record["answerKey"])])
    return _common_sense(record) if benchmark == "winogrande" else ""


def statement(fact: Fact) -> str:
    """The first sentence that the text has for a fact."""
    name = noun(fact.entity, fact.relation.category)
    opening = f"the town of {fact.entity}" if fact.relation.category == "town" else name
    return text.capital(fact.relation.statements[0].format(S=opening, e=name, v=fact.value))


def _derived(question: str, right: str) -> str:
    """The base fact and the rule behind a derived one; of a thing without a name the rule alone."""
    direct, wanted, given = _questions()
    fact = direct.get((question, right))
    if fact is None:
        asked = question.partition(" looks for ")[2].removesuffix(". Which one is right?")
        fact = wanted.get((asked, right))
    if fact is not None:
        base = _base(default_world(), fact)
        return f"{statement(base)} {_rule(fact.relation, base.value)}"
    return given.get((question.partition(" ")[2], right), "")


@cache
def _questions() -> tuple[dict[tuple[str, str], Fact], dict[tuple[str, str], Fact], dict[tuple[str, str], str]]:
    """(question, answer) -> fact, asked directly and by what is wanted; and -> the rule, of a thing without a name."""
    world = default_world()
    direct: dict[tuple[str, str], Fact] = {}
    wanted: dict[tuple[str, str], Fact] = {}
    given: dict[tuple[str, str], str] = {}
    for fact in world.derived:
        relation = fact.relation
        assert isinstance(relation, Derived)
        for wording in range(len(relation.questions)):
            direct[fact.asks(wording), fact.value] = fact
        wanted[relation.wanted.format(v=fact.value), noun(fact.entity, relation.category)] = fact
    for relation in RELATIONS:
        if not isinstance(relation, Derived):
            continue
        for source, value in relation.mapping.items():
            meeting = text.meeting(relation, source, "").removeprefix(" ")
            for asked in relation.questions:
                words = f"{meeting} {asked.format(e=text.UNNAMED[relation.category])}"
                given[words, value] = _rule(relation, source)
    return direct, wanted, given


def _base(world: World, fact: Fact) -> Fact:
    relation = fact.relation
    assert isinstance(relation, Derived)
    about = world.about(fact.entity, relation.category)
    return next(one for one in about if one.relation.name == relation.source)


def _rule(relation: object, source: str) -> str:
    assert isinstance(relation, Derived)
    return relation.rule.format(s=source, v=relation.mapping[source])


def _common_sense(record: Mapping[str, Any]) -> str:
    """The fact that decides a sentence of `common_sense`; nothing of one whose structure decides."""
    meant, other = record[f"option{record['answer']}"], record[f"option{3 - int(record['answer'])}"]
    for fact in _base_facts().get(meant, ()):
        template = common_sense.TEMPLATES[fact.relation.category, fact.relation.name]
        for first, second in ((meant, other), (other, meant)):
            if template.format(X=first, Y=second, r="_", w=fact.value) == record["sentence"]:
                return statement(fact)
    return ""


@cache
def _base_facts() -> dict[str, list[Fact]]:
    """Entity -> the facts that sentences are made of."""
    found: dict[str, list[Fact]] = {}
    for fact in default_world().base:
        if (fact.relation.category, fact.relation.name) in common_sense.TEMPLATES:
            found.setdefault(fact.entity, []).append(fact)
    return found
