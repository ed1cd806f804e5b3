"""The page at `/` in headless Chromium: conversations, settings, races, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_pos import ReasoningResult
from tests.support.browsing import needs_chromium, opened, playwright, wire
from tests.support.page_questions import halted
from tests.support.scripted import Script
from tests.support.serving import Running

pytestmark = needs_chromium
expect = playwright.expect


def test_a_follow_up_has_the_conversation_before_it(browser: Any, server: Running) -> None:
    """Question and answer are read back; a new conversation has neither."""
    with opened(browser, server) as page:
        bodies = page.asked()
        page.ask("Who?")
        page.done()
        page.ask("Hello?")
        expect(page.tab.locator(".turn[aria-busy]")).to_have_count(0)
        expect(page.tab.locator(".actions:visible")).to_have_count(2)
        page.tab.get_by_role("button", name="New", exact=True).click()
        expect(page.tab.locator(".turn")).to_have_count(0)
        expect(page.tab.locator(".example").first).to_be_visible()
        page.ask("Who?")
        page.done()
    first, second, third = (body["messages"] for body in bodies)
    assert first == third == [{"role": "user", "content": "Who?"}]
    answered = {"role": "assistant", "content": "name: Ben"}
    assert second == [*first, answered, {"role": "user", "content": "Hello?"}]


def test_what_was_stopped_is_not_read_back_and_can_be_asked_again(
    browser: Any, server: Running, script: Script
) -> None:
    """The question stands in its field again, and the next request has no trace of the first."""
    with opened(browser, server) as page:
        bodies = page.asked()
        with halted(script, 20):
            page.ask("Long?")
            expect(page.tab.locator("[aria-current=step]")).to_have_count(1)
            page.tab.get_by_role("button", name="Stop", exact=True).click()
            expect(page.tab.get_by_label("Question")).to_have_value("Long?")
        page.ask("Who?")
        page.done()
    assert bodies[-1]["messages"] == [{"role": "user", "content": "Who?"}]


def test_settings_are_sent_and_counted(browser: Any, server: Running) -> None:
    """What is set goes with the request; what is empty does not; a wrong number asks nothing."""
    wanted = {"temperature": "0.5", "seed": "7", "max_branches": "3", "max_branch_tokens": "20"}
    with opened(browser, server) as page:
        bodies = page.asked()
        page.ask("Who?")
        page.done()
        page.set(system="Be short.", steps="Ann\n\n Ben ", mode="parallel", **wanted)
        expect(page.tab.get_by_role("button", name="Settings (7)")).to_be_visible()
        page.ask("Who?")
        expect(page.tab.locator(".actions:visible")).to_have_count(2)
        page.tab.get_by_role("button", name="Settings").click()
        page.tab.locator("#max_branches").fill("1")
        page.tab.keyboard.press("Escape")
        page.ask("Who?")
        expect(page.tab.get_by_role("dialog")).to_be_visible()
        page.tab.get_by_role("button", name="Reset").click()
        page.tab.get_by_role("button", name="Done").click()
        expect(page.tab.locator("#open-settings")).to_have_text("Settings")
    bare, full = bodies
    assert set(bare) == {"model", "messages", "reasoning_mode", "stream"}
    assert {name: str(full[name]) for name in wanted} == wanted
    assert full["steps"] == ["Ann", "Ben"]
    assert full["reasoning_mode"] == "parallel"
    assert full["messages"][0] == {"role": "system", "content": "Be short."}


def test_a_race_runs_both(browser: Any, server: Running) -> None:
    """Two further requests, the second sequential and alone; the figures are measured."""
    with opened(browser, server) as page:
        bodies = page.asked()
        page.set(max_branches="3")
        page.ask("Who?")
        page.done()
        page.tab.get_by_role("button", name="Race").click()
        expect(page.tab.get_by_role("status")).to_contain_text("Race done")
        lanes = page.tab.locator(".lane")
        assert lanes.locator("h3 > :first-child").all_inner_texts() == [
            "Side by side",
            "One after another",
        ]
        assert lanes.nth(0).locator(".card").count() == 2
        assert lanes.nth(1).locator(".card").count() == 0
        said = page.tab.locator(".verdict").inner_text()
        assert "Measured: both were run" in said
        assert "× faster" in said
    assert [body["reasoning_mode"] for body in bodies] == ["auto", "auto", "sequential"]
    assert bodies[0] == bodies[1]
    assert "max_branches" not in bodies[2]
    assert bodies[2]["messages"] == bodies[0]["messages"]


def test_a_race_with_an_answer_that_was_cut_is_not_called_won(
    browser: Any, server: Running
) -> None:
    """It says which one was cut off, and names no winner."""
    with opened(browser, server) as page:
        page.set(max_branch_tokens="4")
        page.ask("Who?")
        page.done()
        page.tab.get_by_role("button", name="Race").click()
        expect(page.tab.get_by_role("status")).to_contain_text("Race done: Not a fair race")
        said = page.tab.locator(".verdict").inner_text()
        assert "Cut off at a token budget: side by side; raise it" in said
        assert "faster" not in said


def test_a_model_that_thinks_first_is_said_to_think(browser: Any, server: Running) -> None:
    """Its thoughts are no part of the answer, can be read, and the wait is explained once."""
    thought = {"choices": [{"delta": {"reasoning_content": "Hm."}}]}
    with opened(browser, server) as page:
        page.answer_with([thought, thought, *wire(["Four."], ReasoningResult(mode="sequential"))])
        page.ask("Who?")
        page.done()
        expect(page.reply()).to_have_text("Four.")
        waits = page.seen("statuses")[:3]
        assert waits == ["Asked; waiting for the first token", "Thinking", "Writing the answer"]
        thoughts = page.tab.locator(".thoughts > .text")
        expect(thoughts).to_be_hidden()  # folded away once the answer begins
        page.tab.get_by_text("Thoughts", exact=True).click()
        expect(thoughts).to_have_text("Hm.Hm.")


def test_a_race_can_be_stopped(browser: Any, server: Running, script: Script) -> None:
    """The slots are freed, the answer before it stays, and the next question is answered."""
    with opened(browser, server) as page:
        page.ask("Who?")
        page.done()
        with halted(script, len(script.passes) + 10) as halt:
            page.tab.get_by_role("button", name="Race").click()
            halt.inside.wait()
            page.tab.keyboard.press("Escape")
            expect(page.tab.get_by_role("status")).to_have_text("Race, side by side: Stopped")
        expect(page.reply().first).to_be_attached()
        expect(page.tab.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        page.ask("Who?")
        page.done()


def test_the_conversation_is_saved_as_markdown(
    browser: Any, server: Running, tmp_path: Path
) -> None:
    """Questions as quotes, branches as a list, and the answer."""
    with opened(browser, server) as page:
        page.ask("Who?")
        page.done()
        with page.tab.expect_download() as download:
            page.tab.get_by_role("button", name="Export").click()
        saved = tmp_path / "saved.md"
        download.value.save_as(saved)
        assert download.value.suggested_filename == "conversation.md"
    branches = "- **Ann**: GPA 3.1, outside\n- **Ben**: GPA 2.4"
    assert saved.read_text() == f"> Who?\n\n{branches}\n\nname: Ben\n"
