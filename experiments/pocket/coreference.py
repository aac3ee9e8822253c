"""Sentences in which one word decides who or what is meant: the reading text and the WinoGrande-like benchmark.

In the templates X and Y are the two antecedents, {r} is the place of the one that is meant, and {w} one of two words;
the first makes it X, the second Y.
"""

from dataclasses import dataclass

from experiments.pocket import words
from experiments.pocket.draw import Draw

PEOPLE_TEMPLATES = (
    ("{X} thanked {Y} because {r} had {w} help.", "got", "given"),
    ("{X} paid {Y} because {r} had {w} the work.", "wanted", "done"),
    ("{X} taught {Y} because {r} knew {w}.", "much", "little"),
    ("{X} ran faster than {Y}, so {r} came {w}.", "first", "last"),
    ("{X} is older than {Y}, so {r} was born {w}.", "first", "last"),
    ("{X} sold the lamp to {Y}, so {r} now has the {w}.", "money", "lamp"),
    ("{X} hid from {Y} because {r} was {w}.", "afraid", "angry"),
    ("{X} carried {Y} because {r} was {w}.", "strong", "tired"),
    ("{X} gave soup to {Y} because {r} was {w}.", "kind", "hungry"),
    ("{X} could not hear {Y} because {r} was {w}.", "deaf", "quiet"),
    ("{X} won the game against {Y}, so {r} was {w}.", "glad", "sad"),
    ("{X} lent a book to {Y}, so {r} must {w} it back.", "get", "give"),
    ("{X} followed {Y} because {r} {w} the way.", "asked", "knew"),
    ("{X} scolded {Y} because {r} was {w}.", "strict", "late"),
)
THING_TEMPLATES = (
    ("The {X} did not fit in the {Y} because the {r} was too {w}.", "big", "small"),
    ("The {X} broke the {Y} because the {r} was {w}.", "hard", "thin"),
    ("The {X} cost more than the {Y}, so the {r} was {w}.", "dear", "cheap"),
    ("The {X} stood in front of the {Y}, so the {r} was {w}.", "seen", "hidden"),
    ("The {X} lay on top of the {Y}, so the {r} was {w}.", "above", "below"),
    ("The {X} is heavier than the {Y}, so the {r} is {w} to lift.", "hard", "easy"),
    ("The {X} was filled from the {Y} until the {r} was {w}.", "full", "empty"),
    ("The {X} is newer than the {Y}, so the {r} was made {w}.", "later", "earlier"),
)
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Scene:
    """One template with its two antecedents."""

    template: tuple[str, str, str]
    first: str
    second: str

    def text(self, turn: int, referent: str | None = None) -> str:
        """The sentence with the word of `turn` (0 or 1) and `referent` (the one that is meant when None)."""
        sentence, *turns = self.template
        referent = (self.first, self.second)[turn] if referent is None else referent
        return sentence.format(X=self.first, Y=self.second, r=referent, w=turns[turn])


def _is_held_out(first: str, second: str, pool: tuple[str, ...]) -> bool:
    return (pool.index(first) + pool.index(second)) % HELD_OUT_EVERY == 0


def _pools() -> tuple[tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]], ...]:
    return (
        (words.WOMEN, PEOPLE_TEMPLATES),
        (words.MEN, PEOPLE_TEMPLATES),
        (words.THINGS, THING_TEMPLATES),
    )


def scenes(*, held_out: bool) -> list[Scene]:
    """Every scene; the antecedent pairs of benchmark scenes (`held_out`) never meet in the text, in any template."""
    return [
        Scene(template, first, second)
        for pool, templates in _pools()
        for template in templates
        for first in pool
        for second in pool
        if first != second and _is_held_out(first, second, pool) == held_out
    ]


def passage(draw: Draw) -> str:
    """One to three scenes told as prose, some with a sentence that says again who was meant."""
    parts = []
    for _ in range(draw.integer(1, 3)):
        pool, templates = draw.pick(_pools())
        first, second = draw.sample(pool, 2)
        while _is_held_out(first, second, pool):
            first, second = draw.sample(pool, 2)
        parts.append(_told(Scene(draw.pick(templates), first, second), draw))
    return " ".join(parts)


def _told(scene: Scene, draw: Draw) -> str:
    turn = draw.integer(0, 1)
    meant = (scene.first, scene.second)[turn]
    is_thing = scene.template in THING_TEMPLATES
    told = scene.text(turn)
    if draw.chance(0.3):
        told += f" This was about the {meant}." if is_thing else f" This was about {meant}."
    return told
