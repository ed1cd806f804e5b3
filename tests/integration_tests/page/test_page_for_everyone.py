"""The page at `/` in headless Chromium: keyboard, screen readers, contrast, any screen."""

from __future__ import annotations

import re
from typing import Any

import pytest

from langchain_pos.results.data import Block, Plan
from tests.support.browsing import needs_chromium, opened, playwright, streamed
from tests.support.page_questions import halted, many
from tests.support.scripted import Script
from tests.support.serving import Running

pytestmark = needs_chromium
expect = playwright.expect


def test_by_keyboard_alone(browser: Any, server: Running, script: Script) -> None:
    """Every control can be reached, shows that it has the focus, and works."""
    focused = "() => document.activeElement.id || document.activeElement.tagName"
    outlined = (
        "() => { const s = getComputedStyle(document.activeElement);"
        " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; }"
    )
    with opened(browser, server) as page, halted(script, 40) as halt:
        keys = page.tab.keyboard
        expect(page.tab.locator("#model")).to_have_text("scripted")

        def walk(steps: int) -> list[str]:
            way = []
            for _ in range(steps):
                keys.press("Tab")
                way.append(page.tab.evaluate(focused))
                assert page.tab.evaluate(outlined), way
            return way

        assert walk(9) == ["open-settings", *["BUTTON"] * 6, "question", "submit"]
        for _ in range(8):
            keys.press("Shift+Tab")
        keys.press("Enter")  # on Settings
        assert page.tab.evaluate(focused) == "mode", "the drawer has the focus"
        keys.press("End")  # the last of the modes
        keys.press("Escape")
        assert page.tab.evaluate(focused) == "open-settings"
        expect(page.tab.locator("#open-settings")).to_have_text("Settings (1)")
        walk(7)
        keys.type("Long?")
        keys.press("Tab")
        keys.press("Enter")  # on Ask
        expect(page.reply()).not_to_be_empty()
        assert page.tab.evaluate(focused) == "stop", "the focus goes where it is of use"
        keys.press("Enter")
        expect(page.tab.get_by_role("status")).to_have_text("Stopped")
        assert page.tab.evaluate(focused) == "submit"
        halt.go_on.set()

        page.set(mode="auto")
        page.tab.get_by_label("Question").fill("")
        keys.type("Who?")
        keys.press("Enter")
        page.done()
        assert page.tab.evaluate(focused) == "question", "who writes goes on writing"
        assert walk(1) == ["submit"]
        for _ in range(5):
            keys.press("Shift+Tab")
        assert page.tab.evaluate(focused) == "SUMMARY"
        keys.press("Enter")
        expect(page.tab.locator(".card").first).to_be_visible()


def test_every_control_has_a_name(browser: Any, server: Running) -> None:
    """In the tree that Chromium gives to screen readers; with roles for what changes."""
    with opened(browser, server) as page:
        page.ask("Who?")
        page.done()
        page.unfold()
        session = page.tab.context.new_cdp_session(page.tab)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
        controls = {"button", "textbox", "DisclosureTriangle", "form", "list"}
        found = [(role, name) for role, name in named if role in controls]
        roles = {role for role, _ in named}
        assert {"main", "form", "status", "timer", "heading", "listitem"} <= roles
        assert len([role for role, _ in found if role == "button"]) == 7
        unnamed = [(role, name) for role, name in found if not name and role != "list"]
        assert unnamed == []
        headings = {name for role, name in named if role == "heading"}
        assert {"langchain-pos", "Question", "Answer", "2 branches"} <= headings


def test_screen_readers_hear_of_stages_and_not_of_tokens(browser: Any, server: Running) -> None:
    """The status changes once a stage; no other live region changes while it is written."""
    with opened(browser, server) as page:
        page.ask("Who?")
        page.done()
        statuses = page.seen("statuses")
        assert statuses == [
            "Asked; waiting for the first token",
            "Planning",
            "Writing 2 branches side by side",
            "Concluding",
            statuses[-1],
        ]
        live = page.tab.locator("[aria-live]:not([aria-live=off]), [role=status], [role=alert]")
        assert live.evaluate_all("all => all.map(e => e.id)") == ["error", "status"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, server: Running, scheme: Any) -> None:
    """All text has 4.5 to 1 at least, as WCAG AA asks, in both colour schemes."""
    measure = """() => {
      const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
      const light = (colour) => {
        const [r, g, b] = parts(colour).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = (e) => {
        for (; e; e = e.parentElement) {
          const colour = getComputedStyle(e).backgroundColor;
          if ((parts(colour)[3] ?? 1) === 1) return colour;
        }
        throw new Error("no ground");
      };
      const found = [];
      for (const e of document.querySelectorAll("body *")) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!own || !e.checkVisibility() || e.disabled || e.closest("noscript")) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
        found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 30)]);
      }
      return found;
    }"""
    with opened(browser, server, color_scheme=scheme, complains=True) as page:
        page.ask("Who? " * 5000)
        expect(page.tab.get_by_role("alert")).not_to_be_empty()
        found = page.tab.evaluate(measure)
        page.ask("Who?")
        page.done()
        page.unfold()
        found += page.tab.evaluate(measure)
        assert len(found) > 30
        assert [each for each in found if each[0] < 4.5] == []
        ground = page.tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 384) is (scheme == "dark")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_reduced_motion(browser: Any, server: Running, script: Script, motion: Any) -> None:
    """Nothing is animated for those who want it so."""
    with opened(browser, server, reduced_motion=motion) as page, halted(script, 8) as halt:
        page.ask("Who?")
        halt.inside.wait()
        expect(page.tab.locator("[aria-current=step]")).to_have_count(1)
        animated = page.tab.evaluate("() => document.getAnimations().length")
        halt.go_on.set()
        page.done()
        assert (animated > 0) is (motion == "no-preference")


@pytest.mark.parametrize("branches", [2, 10, 64])
@pytest.mark.parametrize("width", [320, 768, 1280, 2560])
def test_any_number_of_branches_fits_any_screen(
    browser_in_any_font: Any, server: Running, branches: int, width: int
) -> None:
    """No horizontal scrolling; on wide screens cards stand beside each other."""
    with opened(browser_in_any_font, server, viewport={"width": width, "height": 800}) as page:
        page.answer_with(streamed(many(branches)))
        page.ask("Who?")
        page.done()
        assert page.fits()
        page.unfold()
        assert page.fits()
        lefts = page.tab.locator(".card").evaluate_all(
            "cards => cards.map(c => c.getBoundingClientRect().left)"
        )
        assert len(lefts) == branches
        columns = len(set(lefts))
        assert columns == 1 if width == 320 else columns >= 2
        if width == 2560:
            assert columns >= min(branches, 5)


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_on_a_card_is_cut(browser_in_any_font: Any, server: Running, width: int) -> None:
    """Long titles take no room from how a branch ended; only its text has to be scrolled."""
    cut = """() => [...document.querySelectorAll(".card, .card h4, .card bdi, .card .note")]
      .filter((e) => e.scrollHeight > e.clientHeight + 1 && e.clientHeight)
      .map((e) => `${e.className} ${e.textContent}`)"""
    result = many(24, "word " * 200)
    branches = tuple(
        branch.model_copy(
            update={"title": f"A title of some length {n}", "finish_reason": "length"}
        )
        for n, branch in enumerate(result.branches)
    )
    plan = Plan.of([branch.title for branch in branches])
    result = result.model_copy(update={"blocks": (Block(plan=plan, branches=branches),)})
    with opened(browser_in_any_font, server, viewport={"width": width, "height": 800}) as page:
        page.answer_with(streamed(result, size=100))
        page.ask("Who?")
        page.done()
        page.unfold()
        assert page.tab.locator(".card .note").first.is_visible()
        assert page.tab.evaluate(cut) == []
        texts = page.tab.locator(".card .text")
        scrolled = texts.evaluate_all("all => all.map(e => [e.scrollTop, e.clientHeight > 40])")
        assert scrolled == [[0, True]] * 24, "each is read from its beginning"


@pytest.mark.parametrize("spacing", ["0", ".3em"])  # the latter for fonts that are wider still
def test_on_a_narrow_screen_the_answer_comes_into_sight(
    browser_in_any_font: Any, server: Running, spacing: str
) -> None:
    """Once the branches are folded it stands right below its question; the status is seen too."""
    with opened(browser_in_any_font, server, viewport={"width": 320, "height": 640}) as page:
        page.tab.evaluate(f"() => (document.body.style.letterSpacing = '{spacing}')")
        page.ask("Who?")
        page.done()
        expect(page.tab.get_by_role("status")).to_be_in_viewport()
        expect(page.tab.locator(".question")).to_be_in_viewport(ratio=1)
        expect(page.reply()).to_be_in_viewport(ratio=1)


def test_what_has_the_focus_is_not_behind_the_form(
    browser_in_any_font: Any, server: Running
) -> None:
    """However high the form is, with its messages and in any font, and when it grows."""
    hidden = """() => {
      const box = document.activeElement.getBoundingClientRect();
      return box.bottom > document.getElementById("ask").getBoundingClientRect().top;
    }"""
    size = {"width": 320, "height": 640}
    with opened(browser_in_any_font, server, viewport=size, complains=True) as page:
        message = page.tab.locator("#error")
        page.ask("Who? " * 5000)
        expect(page.tab.get_by_role("alert")).not_to_be_empty()
        page.tab.get_by_role("button", name="New", exact=True).click()
        message.evaluate("e => (e.textContent = 'no '.repeat(200))")
        page.settle()
        page.tab.locator("#open-settings").focus()
        for _ in range(6):  # the examples
            page.tab.keyboard.press("Tab")
            assert page.tab.evaluate("() => document.activeElement.className") == "example"
            assert not page.tab.evaluate(hidden)

            message.evaluate("e => (e.textContent = '')")
            page.settle()
            page.tab.evaluate("() => document.activeElement.scrollIntoView({block: 'end'})")
            covered = f"e => {{ e.textContent = 'no '.repeat(200); return ({hidden})(); }}"
            assert message.evaluate(covered)
            page.settle()
            assert not page.tab.evaluate(hidden)


def test_who_looks_elsewhere_is_not_called_back(browser: Any, server: Running) -> None:
    """A form that grows scrolls to what it has covered, not to what was out of sight before."""
    with opened(browser, server, viewport={"width": 320, "height": 640}) as page:
        last = page.tab.locator(".example").last
        last.focus()
        page.tab.evaluate("() => scrollTo(0, 0)")
        page.settle()
        page.tab.locator("#error").evaluate("e => (e.textContent = 'no '.repeat(200))")
        page.settle()
        assert page.tab.evaluate("() => scrollY") == 0
