"""Small word problems with worked steps: told as prose in the text, asked and answered in the GSM8K-like benchmark."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.pocket import words
from experiments.pocket.draw import Draw
from experiments.pocket.world import pronoun

LARGEST = 60


@dataclass(frozen=True)
class Step:
    """One worked equation, and how many sentences of the story it needs."""

    left: int
    sign: str
    right: int
    after: int

    @property
    def result(self) -> int:
        """The right side of the equation."""
        if self.sign == "+":
            return self.left + self.right
        return self.left - self.right if self.sign == "-" else self.left * self.right

    @property
    def text(self) -> str:
        """The equation."""
        return f"{self.left} {self.sign} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """A story, the question that it asks, the equations that solve it and the sentence that states the result."""

    template: str
    story: tuple[str, ...]
    question: str
    steps: tuple[Step, ...]
    conclusion: str

    @property
    def key(self) -> tuple[str | int, ...]:
        """Template and numbers: two problems with one key differ in words only."""
        return (self.template, *(n for step in self.steps for n in (step.left, step.sign, step.right)))

    @property
    def answer(self) -> int:
        """The result of the last equation."""
        return self.steps[-1].result


def _change(draw: Draw, now: int, item: str, they: str, friend: str) -> tuple[str, str, int]:
    """One event: (sentence, sign, amount), with the result within 0..LARGEST."""
    if now >= 4 and draw.chance(0.5):
        count = draw.integer(2, min(now - 1, 12))
        verb = draw.pick(("lost {n}", "sold {n}", "gave {n} to {f}", "used {n}"))
        return f"{they} {verb.format(n=count, f=friend)}.", "-", count
    count = draw.integer(2, min(LARGEST - now, 12))
    verb = draw.pick(("bought {n} more", "found {n} more", "got {n} from {f}", "made {n} more"))
    return f"{they} {verb.format(n=count, f=friend)}.", "+", count


def _cast(draw: Draw) -> tuple[str, str, str, str]:
    """(who, pronoun, friend, item)."""
    who, friend = draw.sample(words.WOMEN + words.MEN, 2)
    return who, pronoun(who, "person"), friend, draw.pick(words.ITEMS)


def _chain(draw: Draw) -> Problem:
    """A start and one to three changes."""
    who, they, friend, item = _cast(draw)
    now = draw.integer(3, 20)
    story, steps = [f"{who} had {now} {item}."], []
    changes = draw.pick((1, 1, 2, 2, 3))
    for _ in range(changes):
        sentence, sign, count = _change(draw, now, item, they, friend)
        story.append(sentence)
        steps.append(Step(now, sign, count, len(story)))
        now = steps[-1].result
    question = f"How many {item} does {who} have now?"
    return Problem(f"chain{changes}", tuple(story), question, tuple(steps), f"So {who} has {now} {item}.")


def _boxes(draw: Draw) -> Problem:
    """Equal groups, and perhaps one change."""
    who, they, friend, item = _cast(draw)
    box = draw.pick(words.BOXES)
    groups, each = draw.integer(2, 6), draw.integer(2, 9)
    story = [f"{who} had {groups} {box} with {each} {item} in each."]
    steps = [Step(groups, "*", each, 1)]
    if draw.chance(0.6):
        sentence, sign, count = _change(draw, steps[-1].result, item, they, friend)
        story.append(sentence)
        steps.append(Step(steps[-1].result, sign, count, 2))
    question = f"How many {item} does {who} have now?"
    return Problem(
        f"boxes{len(steps)}", tuple(story), question, tuple(steps), f"So {who} has {steps[-1].result} {item}."
    )


def _compare(draw: Draw) -> Problem:
    """Two people, one with more or fewer than the other, and perhaps both together."""
    who, _, friend, item = _cast(draw)
    first = draw.integer(4, 20)
    more = draw.chance(0.5)
    gap = draw.integer(2, 10 if more else min(first - 1, 10))
    story = [f"{who} has {first} {item}.", f"{friend} has {gap} {'more' if more else 'fewer'} than {who}."]
    steps = [Step(first, "+" if more else "-", gap, 2)]
    second = steps[0].result
    if draw.chance(0.5):
        steps.append(Step(first, "+", second, 2))
        question, conclusion = "How many {i} do they have together?", "So they have {n} {i} together."
    else:
        question, conclusion = "How many {i} does {f} have?", "So {f} has {n} {i}."
    names = {"i": item, "f": friend, "n": steps[-1].result}
    return Problem(
        f"compare{len(steps)}", tuple(story), question.format(**names), tuple(steps), conclusion.format(**names)
    )


def _price(draw: Draw) -> Problem:
    """So many things at so much each, and perhaps what is left of the money."""
    who, they, _, _ = _cast(draw)
    item = draw.pick(tuple(i for i in words.ITEMS if i != "coins"))
    count, each = draw.integer(2, 6), draw.integer(2, 9)
    buys = f"bought {count} {item} at {each} coins each."
    if draw.chance(0.5):
        paid = Step(count, "*", each, 1)
        return Problem("price1", (f"{who} {buys}",), f"How many coins did {who} pay?", (paid,),
                       f"So {who} paid {paid.result} coins.")  # fmt: skip
    money = draw.integer(count * each, LARGEST)
    story = (f"{who} had {money} coins.", f"{they} {buys}")
    steps = (Step(count, "*", each, 2), Step(money, "-", count * each, 2))
    question = f"How many coins does {who} have now?"
    return Problem("price2", story, question, steps, f"So {who} has {steps[-1].result} coins.")


TEMPLATES: tuple[Callable[[Draw], Problem], ...] = (_chain, _chain, _boxes, _compare, _price)


def make_problem(draw: Draw) -> Problem:
    """Returns a problem of a random kind."""
    return draw.pick(TEMPLATES)(draw)


def prose(problem: Problem, draw: Draw) -> str:
    """The problem told as prose: each equation where the story allows it, or all of them after the question."""
    if draw.chance(0.5):
        parts = []
        for i, sentence in enumerate(problem.story, start=1):
            parts += [sentence, *(f"{step.text}." for step in problem.steps if step.after == i)]
        return " ".join((*parts, problem.conclusion))
    steps = " ".join(f"{step.text}." for step in problem.steps)
    return " ".join((*problem.story, problem.question, steps, problem.conclusion))
