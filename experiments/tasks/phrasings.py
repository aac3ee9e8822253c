"""How an answer is put after a chain of thought: a template of a completion, and how its answer is read back.

A template has `{value}` and `{letter}` where choices are given (the right choice's text and its label), and `{steps}`
(or `{plain_steps}`) and `{answer}` for GSM8K (the worked solution and its number).
"""

import re
import string
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

CHOICES = {
    "took": " It is {value}, so Tom took {letter}",
    "so": " {value}, so the choice was {letter}",
    "answer": " It is {value}. The answer is {letter}",
    "wanted": " Tom wanted {value} and took {letter}",
    "short": " {value}. {letter}",
    "why": "{why} It is {value}, so Tom took {letter}",
}
"""Phrasings of benchmarks with choices, by name. `{why}` is a space and what decides: a record's own `rationale`, or of
the pocket world's questions the fact and the rule; nothing where there is none."""
NUMBERS = {
    "gold": " {steps}\n#### {answer}",
    "plain": " {plain_steps}\n#### {answer}",
    "words": " {plain_steps}\nThe answer is {answer}",
}
"""Phrasings of GSM8K: the records' own solutions, those without the calculator's `<<...>>`, and with a sentence at the
end."""
BY_TASK: Mapping[str, Mapping[str, str]] = {"mmlu": CHOICES, "gsm8k": NUMBERS, "winogrande": CHOICES, "arc": CHOICES}
FIELDS: Mapping[str, tuple[str, ...]] = {
    name: ("steps", "plain_steps", "answer") if name == "gsm8k" else ("value", "why", "letter") for name in BY_TASK
}
AUTO = "auto"
"""Stands for the phrasing that does best on the validation split."""


class Phrasing(NamedTuple):
    """One way to put an answer after a chain."""

    name: str
    """`own` for one that is none of the project's."""
    template: str


def phrasing(task: str, wanted: str) -> Phrasing:
    """Returns a phrasing of a benchmark.

    Args:
      task: mmlu, gsm8k, winogrande or arc.
      wanted: its name, or a template of one's own.

    Raises:
      ValueError: in one line: no such name, or a template without an answer.
    """
    known = BY_TASK[task]
    if "{" not in wanted:
        if wanted not in known:
            raise ValueError(f"{task} has no phrasing {wanted!r} (there are: {', '.join(known)}, or a template)")
        return Phrasing(wanted, known[wanted])
    template = wanted if wanted[0].isspace() or wanted.startswith("{why}") else f" {wanted}"
    fields = FIELDS[task]
    try:
        used = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"the template {wanted!r} cannot be read ({error})") from None
    if wrong := [field for field in used if field not in fields]:
        raise ValueError(f"the template {wanted!r} has a field {wrong[0]!r} (of {task}: {', '.join(fields)})")
    if used.count(fields[-1]) != 1 or used[-1] != fields[-1] or len(set(used)) < 2:
        chain = " or ".join(f"{{{field}}}" for field in fields[:-1])
        raise ValueError(f"the template {wanted!r} needs {chain} and, once and after them, {{{fields[-1]}}}")
    return Phrasing("own", template)


def chosen(spec: str | None, task: str) -> str | None:
    """Returns what a setting says for one benchmark: a name, a template, `auto`, or None for the exact protocol.

    Args:
      spec: one of these for all benchmarks, or `mmlu=took,gsm8k=gold`, in which others keep the exact protocol.
      task: mmlu, gsm8k, winogrande or arc.

    Raises:
      ValueError: in one line, for a benchmark that does not exist.

    Example:
      >>> chosen("mmlu=took,arc=so", "arc"), chosen("mmlu=took", "gsm8k"), chosen("took", "mmlu")
      ('so', None, 'took')
    """
    if spec is None or "{" in spec or "=" not in spec:
        return spec
    by_task: dict[str, str] = {}
    for part in spec.split(","):
        name, equals, wanted = (word.strip() for word in part.partition("="))
        if not equals or name not in BY_TASK:
            raise ValueError(f"{part.strip()!r} is not BENCHMARK=PHRASING (benchmarks: {', '.join(BY_TASK)})")
        by_task[name] = wanted
    return by_task.get(task)


def answer_pattern(template: str, labels: Sequence[str]) -> re.Pattern[str]:
    """Returns what matches a whole text of this phrasing up to its label; groups `value`, `why` and `letter`."""
    return _pattern(template, tuple(labels))


@lru_cache(maxsize=256)
def _pattern(template: str, labels: tuple[str, ...]) -> re.Pattern[str]:
    parts, seen = [r"\s*"], set[str]()
    for literal, field, _, _ in string.Formatter().parse(template.lstrip()):
        free = literal.lstrip() if seen == {"why"} else literal
        parts.append((r"\s*" if free != literal else "") + re.escape(free))
        if field == "letter":
            parts.append(rf"(?P<letter>{'|'.join(map(re.escape, labels))})(?!\w)")
            break
        if field is not None:
            parts.append(rf"(?P={field})" if field in seen else rf"(?P<{field}>{'.*?' if field == 'why' else '.+?'})")
            seen.add(field)
    return re.compile("".join(parts), re.DOTALL)


def last_label(text: str, labels: Sequence[str]) -> str | None:
    """Returns the last label that stands alone in a text; None if there is none.

    A capital `A` that opens a sentence and is followed by a small letter is an article.

    Example:
      >>> last_label("A dog is B, not a C.", "ABCD"), last_label("A dog barks", "ABCD")
      ('C', None)
    """
    found = None
    for match in re.finditer(rf"(?<![\w'])(?:{'|'.join(map(re.escape, labels))})(?!\w)", text):
        before, after = text[: match.start()].rstrip(), text[match.end() :]
        opens = not before or before[-1] in ".!?\n:" or "\n" in text[len(before) : match.start()]
        if not (match.group() == "A" and opens and re.match(r" [a-z]", after)):
            found = match.group()
    return found


def last_choice(text: str, choices: Sequence[str]) -> int | None:
    """Returns the number of the choice whose text stands last in a text; None if none does, or two end there.

    Of choices that are parts of one another the longer counts.
    """
    ends: list[tuple[int, int, int]] = []
    for number, choice in enumerate(choices):
        plain = choice.strip()
        places = list(re.finditer(rf"(?<!\w){re.escape(plain)}(?!\w)", text)) if plain else []
        if places:
            ends.append((places[-1].end(), len(plain), number))
    ends.sort()
    if not ends or (len(ends) > 1 and ends[-1][:2] == ends[-2][:2]):
        return None
    return ends[-1][2]


def number_pattern(template: str) -> re.Pattern[str]:
    """Returns what matches the number of a GSM8K text in this phrasing: the words before it, as in the template."""
    literals = [literal for literal, _, _, _ in string.Formatter().parse(template)]
    words = literals[[field for _, field, _, _ in string.Formatter().parse(template)].index("answer")]
    return re.compile(re.escape(words.strip("\n")) + r"(\-?[0-9\.\,]+)")
