"""A griffe extension: docstrings in the sections that griffe knows."""

import re

import griffe
import reference

SECTION = re.compile(r"^( *)Example:$", re.MULTILINE)


class Sections(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Called with every module, class, function and attribute: `Example:` is the section `Examples:`."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub(r"\1Examples:", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: object) -> None:
        """Called with every class once its members are known: strings under fields are its section `Attributes:`."""
        fields = {}
        for name, member in cls.members.items():
            if isinstance(member, griffe.Attribute) and member.docstring and "property" not in member.labels:
                shown = member.annotation is not None and member.value is not None and "dataclass" not in cls.labels
                fields[name] = member.docstring.value + (f" Default: `{member.value}`." if shown else "")
        if fields:
            cls.docstring = cls.docstring or griffe.Docstring("", parent=cls)
            cls.docstring.value = reference.with_fields(cls.docstring.value, fields)
