"""The page in a real browser, without a request to anywhere else."""

import re
from pathlib import Path

import pytest

from experiments.serve.app import PAGE
from tests.browser import Page, browser, find_browser


@pytest.fixture(scope="module")
def page():
    program = find_browser()
    if program is None:
        pytest.skip("no chromium or google-chrome on the path, and RWKV7_TEST_CHROMIUM is not set")
    with browser(program) as found:
        yield found


def ready(page: Page, url: str, width: int, height: int) -> None:
    page.open(url, width, height)
    page.wait("document.querySelector('#status')?.textContent.includes('states')")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_both_columns_answer_from_their_states(page, served, states, width, height, tmp_path):
    """What the columns show is what the server answers for the state that each has chosen."""
    ready(page, served.url, width, height)
    page.run("['temperature', 'max_tokens'].forEach((id, i) => document.getElementById(id).value = [0, 8][i])")
    page.run("document.getElementById('text').focus()")
    page.type("Where is Mira?\n")
    page.wait("document.querySelectorAll('.turn.assistant:not(.running)').length === 2")
    shown = page.run(
        "[...document.querySelectorAll('.turn.assistant > span:last-child')].map((one) => one.textContent)"
    )
    messages = [{"role": "user", "content": "Where is Mira?"}]
    settings = {"messages": messages, "max_tokens": 8, "temperature": 0}
    models = ["student", "student:calm"]
    alone = [served.post("/v1/chat/completions", model=model, **settings) for model in models]
    assert shown == [answer["choices"][0]["message"]["content"] for answer in alone]
    assert "tokens in" in str(page.run("document.querySelector('.speed').textContent"))
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth"), "it is wider than the window"
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000
    page.run("document.getElementById('clear').click()")
    assert page.run("document.querySelectorAll('.turn').length") == 0


def test_the_slider_mixes_two_states_and_the_picture_follows(page, served):
    ready(page, served.url, 1280, 900)
    page.run(
        """(() => {
        const column = document.querySelectorAll('.column')[1];
        column.querySelector('.picture').open = true;
        const choose = (name, value) => {
            const field = column.querySelector(name);
            field.value = value;
            field.dispatchEvent(new Event(name === 'input' ? 'input' : 'change'));
        };
        choose('.first', 'calm');
        choose('.second', 'wild');
        choose('input', '25');
        })()"""
    )
    column = "document.querySelectorAll('.column')[1]"
    page.wait(f"{column}.querySelector('img').naturalWidth > 0")
    assert page.run(f"{column}.querySelector('output').textContent") == "0.75 × calm + 0.25 × wild"
    page.wait(f"{column}.querySelector('img').alt.includes('wild')")


def test_a_message_of_markup_is_shown_as_text(page, served):
    ready(page, served.url, 1280, 900)
    page.run("document.getElementById('max_tokens').value = 1; document.getElementById('text').focus()")
    page.type("<img src=x onerror=\"document.title='taken'\">\n")
    page.wait("document.querySelectorAll('.turn.assistant:not(.running)').length === 2")
    assert page.run("document.title") == "rwkv7 serve"
    assert page.run("document.querySelectorAll('.turn img').length") == 0


def test_an_error_of_the_server_is_shown(page, served):
    ready(page, served.url, 1280, 900)
    page.run("document.getElementById('max_tokens').value = 1000; document.getElementById('text').focus()")
    page.type("Hi\n")
    page.wait("document.querySelectorAll('.turn.wrong').length === 2")
    assert "max_tokens" in str(page.run("document.querySelector('.turn.wrong').textContent"))
    page.complaints[:] = [one for one in page.complaints if "400" not in one]


def test_the_page_asks_its_own_server_alone_and_complains_of_nothing(page, served):
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith((served.url, f"blob:{served.url}", "about:"))] == []


def test_the_files_name_no_other_place():
    for path in PAGE.iterdir():
        found = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}", path.read_text(encoding="utf-8"))
        assert [one for one in found if "www.w3.org" not in one] == [], path


def test_the_page_belongs_to_the_package():
    assert {path.name for path in Path(PAGE).iterdir()} >= {"index.html", "page.js", "column.js", "api.js", "style.css"}
