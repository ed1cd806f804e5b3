"""The page at `/` in headless Chromium, over a real server: what it shows of answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from langchain_pos import ChatParallelReasoning, ReasoningResult, demo_question
from langchain_pos.results.data import Block
from langchain_pos.results.result import ReasoningChunk
from tests.support.browsing import (
    Watched,
    needs_chromium,
    opened,
    plan_text,
    playwright,
    streamed,
    wire,
)
from tests.support.page_questions import halted, many, result_of, shown
from tests.support.scripted import Script
from tests.support.serving import Running, body, running

pytestmark = needs_chromium
expect = playwright.expect


def test_every_step_has_a_card_and_the_estimate_stands_beside_it(
    browser: Any, server: Running
) -> None:
    """Cards, conclusion, passes and estimate are those of the result."""
    result = result_of(server, "Who?")
    estimate = result.sequential_estimate()
    assert estimate is not None
    with opened(browser, server) as page:
        page.ask("Who?")
        page.done()
        assert page.cards() == shown(result)
        assert page.tab.locator("#conclusion .text").inner_text() == result.conclusion
        assert page.tab.locator("#blocks .block > .text").inner_text() == result.preamble
        passes = f"{result.forward_passes.total} passes"
        about = f"sequentially about {estimate.tokens}"
        assert page.tab.get_by_role("status").inner_text() == f"Done: {passes}, {about}"
        assert page.tab.locator("#own").inner_text().startswith(passes)
        assert page.tab.locator("#alone").inner_text().startswith(f"about {estimate.tokens} passes")
        stages = page.tab.get_by_role("list", name="Stages").inner_text()
        assert f"{result.forward_passes.expand} passes" in stages
        own, alone = (
            page.tab.locator(f"#{name}-bar").evaluate("bar => bar.offsetWidth")
            for name in ("own", "alone")
        )
        assert own / alone == pytest.approx(result.forward_passes.total / estimate.tokens, abs=0.02)


def test_the_estimate_is_computed_as_in_python(browser: Any, server: Running) -> None:
    """The same tokens, milliseconds of a pass and seconds as `sequential_estimate`."""
    result = many(3)
    estimate = result.sequential_estimate()
    assert estimate is not None
    with opened(browser, server) as page:
        page.answer_with(streamed(result))
        page.ask("Who?")
        page.done()
        told = page.tab.locator("#estimate").inner_text()
        assert f"{estimate.tokens} tokens × {estimate.seconds_per_pass * 1000:.1f} ms" in told
        assert f"about {estimate.seconds:.2f} s" in told


def test_the_plan_appears_title_by_title(browser: Any, server: Running, script: Script) -> None:
    """The first step has its card while the skeleton is written."""
    server.ask()
    total = len(script.passes)
    written = [fed[0].seen + fed[0].text for fed in script.passes]
    second = next(n for n, text in enumerate(written) if "......\n####B" in text)
    with opened(browser, server) as page, halted(script, total + second) as halt:
        page.ask("Who?")
        halt.inside.wait()
        expect(page.tab.locator(".card.planned bdi").first).to_have_text("Ann")
        expect(page.tab.locator(".card")).to_have_count(2)
        assert "Ben".startswith(page.cards()[1][0])
        expect(page.tab.get_by_role("status")).to_have_text("Planning")
        assert page.tab.locator("[aria-current=step]").inner_text() == "Plan"
        halt.go_on.set()
        page.done()


def test_branches_write_side_by_side(browser: Any, server: Running, script: Script) -> None:
    """Halted in stage 2, both cards have begun and none is done; frames write both at once."""
    server.ask()
    total = len(script.passes)
    branching = [n for n, fed in enumerate(script.passes) if len(fed) == 2]
    middle = total + branching[len(branching) // 2]
    with opened(browser, server) as page, halted(script, middle) as halt:
        page.ask("Who?")
        halt.inside.wait()
        writing = page.tab.locator(".card.writing .text")
        expect(writing).to_have_count(2)
        expect(page.tab.get_by_role("status")).to_have_text("Writing 2 branches side by side")
        expect(page.tab.locator("#alone")).to_have_text(re.compile("at least \\d+ passes so far"))
        assert all(0 < len(text) < 16 for _, text in page.cards())
        halt.go_on.set()
        page.done()
        assert page.seen("together") == 2


def test_a_conclusion_may_open_another_block(browser: Any, server: Running) -> None:
    """Its branches stand below, and what was conclusion before them is their preamble."""
    result = result_of(server, "Both?")
    assert len(result.blocks) == 2
    with opened(browser, server) as page:
        page.ask("Both?")
        page.done()
        assert page.cards() == shown(result)
        blocks = page.tab.locator(".block").all()
        assert [block.locator(".card").count() for block in blocks] == [2, 2]
        assert [b.locator("> .text").text_content() for b in blocks] == ["", "Now cities."]
        assert page.tab.locator("#conclusion .text").text_content() == "So Rome."
        page.tab.get_by_text("Timeline").click()
        labels = page.tab.locator("#timeline .label").all_inner_texts()
        stages = ["plan", "expand", "conclude, plan", "conclude"]
        assert labels == [*stages, "Cyd", "Dan", "Rome", "Oslo"]


def test_a_stream_alone_shows_what_the_result_says(browser: Any, server: Running) -> None:
    """Without the last chunk the cards and both blocks' texts are there already."""
    result = result_of(server, "Both?")
    with opened(browser, server) as page:
        with (
            server.http() as http,
            http.stream("POST", "/v1/chat/completions", json=body("Both?", stream=True)) as answer,
        ):
            lines = [line.removeprefix("data: ") for line in answer.iter_lines()]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        page.answer_with([event for event in events if "reasoning" not in event], end=False)
        page.ask("Both?")
        expect(page.tab.get_by_role("alert")).to_contain_text("ended before the answer did")
        assert page.cards() == shown(result)
        preambles = page.tab.locator(".block > .text").all_text_contents()
        assert [text.strip() for text in preambles] == ["", "Now cities."]
        assert page.tab.locator("#conclusion .text").text_content() == "So Rome."


def test_a_further_skeleton_replaces_one_that_was_not_good_enough(
    browser: Any, server: Running
) -> None:
    """A retry begins anew; what it has not named is gone."""
    pieces: list[ReasoningChunk | str] = [
        plan_text("See.\n####Ann:......\n####Ann:......\n####Ben:......\n####%%%%"),
        plan_text("Again.\n####Cy"),
        plan_text("d:....."),
    ]
    with opened(browser, server) as page:
        page.answer_with(wire(pieces), end=False)
        page.ask("Who?")
        expect(page.tab.get_by_role("alert")).to_contain_text("ended before the answer did")
        assert page.cards() == [("Cyd", "")]
        assert page.tab.locator(".block > .text").inner_text() == "Again."


def test_an_answer_without_branches_says_why(browser: Any, server: Running) -> None:
    """No card is left of the skeleton, the answer stands alone with the reason."""
    reason = "declined: the question does not fall into independent parts"
    result = ReasoningResult(mode="sequential", conclusion="Four.", fallback_reason=reason)
    with opened(browser, server) as page:
        page.answer_with(wire([plan_text("Hm.\n####Ann:......"), "Fo", "ur."], result))
        page.ask("Who?")
        page.done()
        assert page.cards() == []
        assert page.tab.locator("#blocks").inner_text() == ""
        expect(page.tab.get_by_role("heading", name="Answer", level=3)).to_be_visible()
        assert page.tab.locator("#conclusion .text").inner_text() == "Four."
        assert reason in page.tab.locator("#remarks").inner_text()
        assert not page.tab.locator("#cost").is_visible()


def test_the_mode_is_asked_for(browser: Any, server: Running) -> None:
    """Sequentially there are no branches, and no estimate of what was measured."""
    with opened(browser, server) as page:
        page.ask("Hello?", "sequential")
        page.done()
        assert page.tab.locator("#conclusion .text").inner_text() == "one two three four"
        assert not page.tab.locator("#cost").is_visible()
        page.ask("Who?", "parallel")
        expect(page.tab.locator(".card.stop")).to_have_count(2)


def test_branches_that_did_not_end_by_themselves_say_so(browser: Any, server: Running) -> None:
    """In words, not in colour alone."""
    endings = {"length": "cut off at its token budget", "error": "failed: no number"}
    with opened(browser, server) as page:
        result = many(2)
        branches = tuple(
            branch.model_copy(
                update={"finish_reason": kind, "error": "no number" if kind == "error" else None}
            )
            for branch, kind in zip(result.branches, endings, strict=True)
        )
        blocks = (Block(plan=result.blocks[0].plan, branches=branches),)
        page.answer_with(streamed(result.model_copy(update={"blocks": blocks})))
        page.ask("Who?")
        page.done()
        assert page.tab.locator(".card .note").all_inner_texts() == list(endings.values())


def test_the_result_can_be_copied(browser: Any, server: Running) -> None:
    """As JSON it reads back as a `ReasoningResult`, as text it has every branch."""
    allowed = {"permissions": ["clipboard-read", "clipboard-write"]}
    with opened(browser, server, **allowed) as page:
        page.ask("Who?")
        page.done()
        read = "() => navigator.clipboard.readText()"
        page.tab.get_by_role("button", name="Copy JSON").click()
        expect(page.tab.get_by_role("status")).to_have_text("Copied")
        copied = ReasoningResult.model_validate_json(page.tab.evaluate(read))
        assert shown(copied) == page.cards()
        page.tab.get_by_role("button", name="Copy text").click()
        expected = "Let us see.\n\nAnn: GPA 3.1, outside\nBen: GPA 2.4\n\nname: Ben"
        for _ in range(100):
            if page.tab.evaluate(read) == expected:
                break
        assert page.tab.evaluate(read) == expected


def test_the_shipped_model_answers_the_demo_question(browser: Any) -> None:
    """Opened, Ctrl+Enter: ten students, side by side, as another client gets them."""
    chat = ChatParallelReasoning()
    with running(chat) as server:
        result = result_of(server, demo_question())
        with opened(browser, server) as page:
            question: Any = page.tab.get_by_label("Question")
            assert question.input_value() == demo_question()
            question.fill("")
            page.tab.get_by_role("button", name="Demo question").click()
            assert question.input_value() == demo_question()
            expect(question).to_be_focused()
            page.tab.keyboard.press("Control+Enter")
            page.done()
            assert page.cards() == shown(result)
            assert len(page.cards()) == 10
            assert "Pascal Vireaux" in page.tab.locator("#conclusion .text").inner_text()
            assert page.seen("together") >= 2


def test_what_watches_the_page_would_notice() -> None:
    """The helper's promise: a page's complaints are kept."""
    said = type("Tab", (), {"on": lambda *_: None, "add_init_script": lambda *_: None})
    page = Watched(said())
    page._said(type("Message", (), {"type": "error", "text": "refused"}))
    page._said(type("Message", (), {"type": "log", "text": "hello"}))
    assert page.complaints == ["refused"]
