"""Marks of layout that any real text has: lines, headings, introductions, lists, and the words of questionnaires.

Without them the tokens of a benchmark's format would be new to a base model, as they are to no real one. Only the marks
occur here; how a benchmark puts them together does not.
"""

import re

from experiments.pocket.draw import Draw
from experiments.pocket.world import SUBJECTS

INTRODUCTIONS = (
    "The following are notes about {s}.",
    "The following are questions about {s}, with their answers.",
    "There are multiple kinds of choice questions (with answers) about {s}.",
)


def laid_out(document: str, draw: Draw) -> str:
    """The document, one time in four with a sentence a line, and at times under a heading or an introduction."""
    if draw.chance(0.25):
        document = re.sub(r"(?<![ \n][A-D])\. ", ".\n", document)
    if draw.chance(0.08):
        return f"#### {draw.integer(1, 60)}\n{document}"
    if draw.chance(0.08):
        return f"{draw.pick(INTRODUCTIONS).format(s=draw.pick(tuple(SUBJECTS.values())))}\n\n{document}"
    return document
