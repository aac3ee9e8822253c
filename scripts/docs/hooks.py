"""What MkDocs calls while it builds the site: adds the reference, and files outside of docs/ that pages link to."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import reference
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"(?<=\]\()((?:\.\./)+)([^)#\s]+)(?=[)#])")
"""A link upwards: the way up, and the path from there."""
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site that lie beside docs/."""


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Fills the reference of the navigation."""
    from experiments.cli import COMMANDS

    commands = [{name: reference.command_file(name)} for name in COMMANDS]
    sections = [{face: _below(face)} for face in reference.FACES]
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] = ["reference/index.md", {"Commands": commands}, *sections]
    return config


def _below(face: str) -> list[dict[str, str]]:
    """The navigation of a package: its page, and those of its modules by their names below it."""
    own = [module for module in sorted(reference.modules()) if module == face or module.startswith(f"{face}.")]
    return [{module.removeprefix(f"{face}."): reference.module_file(module)} for module in own]


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the pages of the reference, the pages that lie beside docs/, and what is linked outside of it."""
    from experiments.cli import COMMANDS

    pages = {reference.command_file(name): reference.command_page(name, reference.help_of(name)) for name in COMMANDS}
    for module, own in reference.documented().items():
        pages[reference.module_file(module)] = reference.module_page(module, own)
    pages["reference/index.md"] = reference.index_page()
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        pages[page] = text.replace("](docs/", "](")
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    for file in list(files.documentation_pages()):
        for up, path in OUTSIDE.findall(file.content_string):
            _add_outside(files, config, file.src_uri, up, path)
    return files


def _add_outside(files: "Files", config: "MkDocsConfig", page: str, up: str, path: str) -> None:
    """Copies a file of the repository into the site, below files/."""
    if len(up) // 3 > page.count("/") and path not in PAGES:
        place = f"files/{path}"
        if (ROOT / path).is_file() and files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, content=(ROOT / path).read_bytes()))


def on_page_markdown(markdown: str, page: "Page", **_: object) -> str:
    """Turns links that leave docs/ into links to the copies of what they name."""
    depth = page.file.src_uri.count("/")

    def inside(found: re.Match[str]) -> str:
        up, path = found.groups()
        if len(up) // 3 <= depth or not (ROOT / path).exists():
            return found[0]
        return "../" * depth + PAGES.get(path, f"files/{path}")

    return OUTSIDE.sub(inside, markdown)
