"""The check of a built site finds each kind of fault, and nothing in a sound page."""

import pytest

from scripts.docs import links

SOUND = (
    '<a href="b.html#here">b</a><a href="#top">t</a><a id="top"></a>'
    '<a href="https://example.org">far</a><img src="p.svg">'
)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text(SOUND, encoding="utf-8")
    (tmp_path / "b.html").write_text('<h2 id="here">B</h2><code>| a |\n|---|\n</code>', encoding="utf-8")
    (tmp_path / "p.svg").write_text("<svg/>", encoding="utf-8")
    return tmp_path


def test_a_sound_site_has_no_faults(site):
    assert links.faults(site) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="c.html">c</a>', "c.html is not there"),
        ('<a href="b.html#there">b</a>', "no such place"),
        ('<a href="#bottom">b</a>', "no such place"),
        ('<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js"),
        ('<link href="//example.org/font.css">', "loads //example.org/font.css"),
        ("<p>| a | b |\n|---|---|\n</p>", "Markdown is left"),
        ("<p>see [the page](page.md)</p>", "Markdown is left"),
        ("<ul><li>one<p>rwkv7 tune --config quickstart</p></li></ul>", "Markdown is left"),
    ],
)
def test_each_kind_of_fault_is_found(site, text, fault):
    (site / "a.html").write_text(text, encoding="utf-8")
    found = links.faults(site)
    assert len(found) == 1
    assert found[0].startswith("a.html: ")
    assert fault in found[0]


def test_an_empty_folder_is_a_fault(tmp_path):
    assert links.faults(tmp_path) == [f"{tmp_path}: there is no page"]
