"""A griffe extension: `Example:` in docstrings is the section that griffe knows as `Examples:`."""

import re

import griffe

SECTION = re.compile(r"^( *)Example:$", re.MULTILINE)


class Sections(griffe.Extension):
    """Renames the section before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Called with every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub(r"\1Examples:", obj.docstring.value)
