"""The page at `/` in headless Chromium: stopping, errors, keys; hostile and long answers."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from langchain_pos import ReasoningResult
from langchain_pos.results.plain_text import strip_control_characters
from tests.support.browsing import needs_chromium, opened, playwright, streamed, wire
from tests.support.hostile import HTML, MARKDOWN, WIDE, hostile_result
from tests.support.page_questions import INJECTION, RULES, halted, many, shown
from tests.support.scripted import Script
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import Running, running

pytestmark = needs_chromium
expect = playwright.expect


@pytest.mark.parametrize("way", ["button", "escape", "leaving"])
def test_stopping_frees_the_slots(browser: Any, server: Running, script: Script, way: str) -> None:
    """The pass under way is the last, and the next question is answered."""
    with opened(browser, server) as page:
        with halted(script, 40) as halt:
            page.ask("Long?", "sequential")
            expect(page.reply()).not_to_be_empty()
            halt.inside.wait()
            assert server.chat.engine.slots_in_use > 0
            if way == "leaving":
                page.tab.goto("about:blank")
            else:
                stop = page.tab.get_by_role("button", name="Stop", exact=True)
                stop.click() if way == "button" else page.tab.keyboard.press("Escape")
                expect(page.tab.get_by_role("status")).to_have_text("Stopped")
                assert stop.is_hidden()
            while not server.chat.engine.scheduler._live[0].cancelled:
                time.sleep(0.005)
        assert server.at_rest()
        assert len(script.passes) == 41
        if way == "leaving":
            page.tab.goto("/")
        page.ask("Who?")
        page.done()
        expect(page.tab.locator("#error")).to_be_hidden()


def test_stopped_branches_are_no_longer_writing(
    browser: Any, server: Running, script: Script
) -> None:
    """What they have written stays, marked as cancelled."""
    server.ask()
    branching = [n for n, fed in enumerate(script.passes) if len(fed) == 2]
    fifth = len(script.passes) + branching[4]
    with opened(browser, server) as page, halted(script, fifth) as halt:
        page.ask("Who?")
        halt.inside.wait()
        expect(page.tab.locator(".card.writing")).to_have_count(2)
        page.tab.get_by_role("button", name="Stop", exact=True).click()
        expect(page.tab.locator(".card.cancelled")).to_have_count(2)
        assert page.tab.locator(".card .note").all_inner_texts() == ["cancelled"] * 2


def test_errors_are_told_in_the_servers_words(
    browser: Any, server: Running, script: Script
) -> None:
    """A refusal, and a stream that breaks; an alert, and the next answer takes it away."""
    with opened(browser, server, complains=True) as page:
        alert = page.tab.get_by_role("alert")
        page.ask("Who? " * 5000)
        expect(alert).to_contain_text("Shorten the question")
        expect(page.tab.get_by_role("status")).to_have_text("The answer is incomplete")

        def broken() -> None:
            if len(script.passes) == 20:
                raise ZeroDivisionError("a secret of ours")

        script.before = broken
        page.ask("Who?")
        expect(alert).to_have_text("the server failed; its log says how")
        script.before = lambda: None
        page.ask("Who?")
        page.done()
        expect(page.tab.locator("#error")).to_be_hidden()


def test_a_server_that_is_full_or_gone(browser: Any) -> None:
    """The one says when to try again, the other cannot be reached."""
    chat, script = scripted_chat(RULES)
    with (
        running(chat, max_concurrency=1, max_queue=0) as server,
        opened(browser, server) as first,
        opened(browser, server, complains=True) as page,
    ):
        alert = page.tab.get_by_role("alert")
        with halted(script, 5) as halt:
            first.ask("Who?")
            halt.inside.wait()
            page.ask("Who?")
            expect(alert).to_contain_text("all that this server allows")
            expect(alert).to_contain_text(re.compile(r"\(try again in \d+ s\)"))
        first.done()
        page.tab.route("**/v1/**", lambda route: route.abort("connectionrefused"))
        page.ask("Who?")
        expect(alert).to_have_text("the server cannot be reached; is it still running?")


def test_the_key_is_asked_for_and_kept_nowhere(browser: Any) -> None:
    """The page comes without one; a wrong one is told and may be mended, the right one opens."""
    chat, _ = scripted_chat(RULES)
    with (
        running(chat, api_key="secret") as server,
        opened(browser, server, complains=True) as page,
    ):
        key = page.tab.get_by_label("API key")
        expect(key).to_be_visible()
        assert page.complaints == [], "it does not ask before it has a key"
        key.fill("wrong")
        page.ask("Who?")
        expect(page.tab.get_by_role("alert")).to_contain_text("the API key is missing or wrong")
        expect(key).to_be_focused()
        key.fill("secret")
        page.tab.keyboard.press("Enter")
        page.done()
        assert key.get_attribute("type") == "password"
        stored = "() => [localStorage.length, sessionStorage.length, document.cookie]"
        assert page.tab.evaluate(stored) == [0, 0, ""]
        assert page.tab.url == f"{server.url}/"
        page.tab.reload()
        assert key.input_value() == ""


def test_a_key_refused_late_leaves_those_alone_who_write(browser: Any) -> None:
    """The focus stays in the question; else the rest of it would go into the key."""
    chat, _ = scripted_chat(RULES)
    with (
        running(chat, api_key="secret") as server,
        opened(browser, server, complains=True) as page,
    ):
        held: list[Any] = []
        page.tab.route("**/v1/models", lambda route: held.append(route))
        question = page.tab.get_by_label("Question")
        page.tab.get_by_label("API key").fill("wrong")
        question.focus()  # the key is tried as soon as it is left
        while not held:
            page.tab.wait_for_timeout(10)
        held.pop().continue_()
        expect(page.tab.get_by_role("alert")).to_contain_text("the API key is missing or wrong")
        expect(question).to_be_focused()


def test_without_a_key_none_is_asked_for(browser: Any, server: Running) -> None:
    """There is no field for what the server does not want."""
    with opened(browser, server) as page:
        assert not page.tab.get_by_label("API key").is_visible()


def test_markup_that_a_model_writes_stays_text(browser: Any, server: Running) -> None:
    """Through the whole server: no element is made, no script runs."""
    with opened(browser, server) as page:
        page.ask("Evil?")
        page.done()
        assert page.cards() == [("Eve", INJECTION), ("Mallory", "<b>bold</b>")]
        assert page.reply().text_content() == "</div><svg onload=x()>"
        assert page.tab.title() == "langchain-pos"
        assert page.tab.locator(".answer :is(script, b:not(.stages b), svg, img)").count() == 0


ELEMENTS = frozenset(
    "P H3 H4 H5 H6 PRE CODE BLOCKQUOTE HR OL UL LI TABLE THEAD TBODY TR TH TD STRONG EM DEL BR A "
    "SPAN DIV".split()
)
"""What markdown may become."""
DEEP = (">" * 20_000 + " deep", "- " * 5_000 + "deep", "[" * 5_000 + "deep", "*a " * 5_000)
"""Markdown in markdown in markdown."""


@pytest.mark.parametrize("width", [320, 1280])
def test_hostile_text_in_every_place(browser_in_any_font: Any, server: Running, width: int) -> None:
    """Only elements of markdown are made; every text is shown; nothing sticks out."""
    hostile = hostile_result((*HTML, *WIDE, *MARKDOWN, *DEEP))
    made = "() => [...document.querySelectorAll('.answer .markdown *')]"
    with opened(browser_in_any_font, server, viewport={"width": width, "height": 800}) as page:
        page.answer_with(streamed(hostile, size=20_000))
        page.ask("\n".join(HTML))
        page.done()
        page.unfold()
        for spacing in ("0", ".3em"):  # the latter for fonts that are wider still
            page.tab.evaluate(f"() => (document.body.style.letterSpacing = '{spacing}')")
            assert page.fits()
        assert set(page.tab.evaluate(f"{made}.map(e => e.tagName)")) <= ELEMENTS
        attributes = set(page.tab.evaluate(f"{made}.flatMap(e => e.getAttributeNames())"))
        assert attributes <= {*("href", "title", "target", "rel", "class", "start", "tabindex")}
        links = page.tab.evaluate(f"{made}.filter(e => e.href).map(e => [e.protocol, e.rel])")
        assert {protocol for protocol, _ in links} <= {"http:", "https:", "mailto:"}
        assert all("noopener" in rel for _, rel in links)
        assert page.tab.title() == "langchain-pos"
        titles = [strip_control_characters(branch.title) for branch in hostile.branches]
        assert [title for title, _ in page.cards()] == titles
        for place in (".question", ".reply", ".block > .text"):
            text = page.tab.locator(place).text_content()
            assert all(strip_control_characters(markup) in text for markup in HTML), place
        assert all(markup in text for markup, (_, text) in zip(HTML, page.cards(), strict=False))


@pytest.mark.parametrize(
    ("markdown", "selector", "text"),
    [
        ("- [x] done", ".reply li", "☑ done"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ".reply td", "1"),
        ("[site](https://example.org/a)", ".reply a[href='https://example.org/a']", "site"),
        ("[bad](javascript:alert(1))", ".reply span", "bad"),
        ("![pic](https://example.org/x.png)", ".reply a", "pic"),
        ("```js\nlet a = 1 < 2;\n```", ".reply pre code", "let a = 1 < 2;"),
        ("# Head", ".reply h3", "Head"),
    ],
)
def test_markdown_becomes_elements(
    browser: Any, server: Running, markdown: str, selector: str, text: str
) -> None:
    """Each kind; an image becomes a link, and a link that runs a script becomes its text."""
    with opened(browser, server) as page:
        page.answer_with(wire([markdown], ReasoningResult(mode="sequential", conclusion=markdown)))
        page.ask("Who?")
        page.done()
        expect(page.tab.locator(selector).first).to_have_text(text)


def test_long_answers_are_drawn_by_the_frame(browser: Any, server: Running) -> None:
    """There are far fewer writes than pieces."""
    result = many(16, " ".join(["word"] * 2000))
    events = streamed(result, size=5)
    with opened(browser, server) as page:
        page.answer_with(events)
        page.ask("Who?")
        page.done()
        assert page.cards() == shown(result)
        assert 0 < page.seen("drawn") < len(events) / 10
