"""Marks of layout that any real text has: lines, headings, introductions, lists, and the words of questionnaires.

Without them the tokens of a benchmark's format would be new to a base model, as they are to no real one. Only the marks
occur here; how a benchmark puts them together does not.
"""

from experiments.pocket.draw import Draw
from experiments.pocket.world import SUBJECTS

INTRODUCTIONS = (
    "The following are notes about {s}.",
    "The following are questions about {s}, with their answers.",
    "There are multiple kinds of choice questions (with answers) about {s}.",
)


def laid_out(document: str, draw: Draw) -> str:
    """The document, three times in ten with a sentence a line, and at times under a heading or an introduction."""
    if draw.chance(0.3):
        document = document.replace(". ", ".\n")
    if draw.chance(0.12):
        return f"#### {draw.integer(1, 60)}\n{document}"
    if draw.chance(0.1):
        return f"{draw.pick(INTRODUCTIONS).format(s=draw.pick(tuple(SUBJECTS.values())))}\n\n{document}"
    return document
