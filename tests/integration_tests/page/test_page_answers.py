"""The page at `/` in headless Chromium, over a real server: what it shows of answers."""

from __future__ import annotations

import json
import re
from typing import Any

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
from tests.support.native_list import LIST, NATIVE
from tests.support.page_questions import halted, many, result_of, shown
from tests.support.scripted import Script
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import Running, body, running

pytestmark = needs_chromium
expect = playwright.expect


def test_the_answer_stands_first_and_its_branches_fold_away(browser: Any, server: Running) -> None:
    """Cards, answer and passes are those of the result; the cards are shown on request."""
    result = result_of(server, "Who?")
    estimate = result.sequential_estimate()
    assert estimate is not None
    with opened(browser, server) as page:
        page.ask("Who?")
        page.done()
        assert page.cards() == shown(result)
        expect(page.reply()).to_have_text(result.conclusion)
        expect(page.tab.locator(".thoughts")).to_be_hidden()  # the model had none
        expect(page.tab.locator(".card").first).to_be_hidden()
        page.tab.get_by_text("The plan and its 2 branches").click()
        expect(page.tab.locator(".card").first).to_be_visible()
        assert page.tab.locator(".block > .text").inner_text() == result.preamble
        passes = f"{result.forward_passes.total} passes"
        about = f"sequentially about {estimate.tokens}"
        assert page.tab.get_by_role("status").inner_text() == f"Done: {passes}, {about}"
        assert passes in page.tab.locator(".figure").inner_text()
        stages = page.tab.get_by_role("list", name="Stages").inner_text()
        assert f"{result.forward_passes.expand} passes" in stages


def test_the_figures_are_computed_as_in_python(browser: Any, server: Running) -> None:
    """The same tokens, milliseconds of a pass, seconds and ratio as `sequential_estimate`."""
    result = many(3)
    estimate = result.sequential_estimate()
    assert estimate is not None
    took = result.timings.total
    with opened(browser, server) as page:
        page.answer_with(streamed(result))
        page.ask("Who?")
        page.done()
        large, beside, how = page.tab.locator(".figure > *").all_inner_texts()
        assert large == f"Up to {estimate.seconds / took:.1f}× faster"
        assert beside.startswith(f"{estimate.tokens / took:.0f} tokens/s · 65 passes")
        assert f"{estimate.tokens} tokens × {estimate.seconds_per_pass * 1000:.1f} ms" in how
        assert f"about {estimate.seconds:.2f} s" in how
        assert "not run" in how


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
        expect(page.tab.locator(".figure")).to_have_text(re.compile("× so far.*tokens/s at least"))
        assert all(0 < len(text) < 16 for _, text in page.cards())
        halt.go_on.set()
        page.done()
        assert page.seen("together") == 2


def test_a_conclusion_may_open_another_block(browser: Any, server: Running) -> None:
    """Its branches stand below the first ones; the answer is what stands before and after them."""
    result = result_of(server, "Both?")
    assert len(result.blocks) == 2
    with opened(browser, server) as page:
        page.ask("Both?")
        page.done()
        assert page.cards() == shown(result)
        page.unfold()
        blocks = page.tab.locator(".block").all()
        assert [block.locator(".card").count() for block in blocks] == [2, 2]
        assert [b.locator("> .text").text_content() for b in blocks] == ["", "Now cities."]
        assert page.tab.locator(".reply p").all_inner_texts() == ["Now cities.", "So Rome."]
        labels = page.tab.locator(".timeline .label").all_inner_texts()
        stages = ["plan", "expand", "conclude, plan", "conclude"]
        assert labels == [*stages, "Cyd", "Dan", "Rome", "Oslo"]


def test_a_stream_alone_shows_what_the_result_says(browser: Any, server: Running) -> None:
    """Without the last chunk the cards and the answer's text are there already."""
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
        assert page.tab.locator(".reply p").all_inner_texts() == ["Now cities.", "So Rome."]


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
        expect(page.tab.locator(".work")).to_be_hidden()
        expect(page.reply()).to_have_text("Four.")
        assert reason in page.tab.locator(".remarks").inner_text()
        expect(page.tab.locator(".figure")).to_be_hidden()
        expect(page.tab.get_by_role("button", name="Race")).to_be_hidden()


def test_the_mode_is_asked_for(browser: Any, server: Running) -> None:
    """Sequentially there are no branches, and no estimate of what was measured."""
    with opened(browser, server) as page:
        page.ask("Hello?", "sequential")
        page.done()
        expect(page.reply()).to_have_text("one two three four")
        assert "×" not in page.tab.locator(".figure").inner_text()
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
        assert page.tab.locator(".card .note").all_text_contents() == list(endings.values())


def test_the_answer_can_be_copied(browser: Any, server: Running) -> None:
    """As JSON it reads back as a `ReasoningResult`; as text it is what stands there."""
    allowed = {"permissions": ["clipboard-read", "clipboard-write"]}
    with opened(browser, server, **allowed) as page:
        page.ask("Who?")
        page.done()
        status = page.tab.get_by_role("status")
        read = "() => navigator.clipboard.readText()"
        page.tab.get_by_role("button", name="Copy JSON").click()
        expect(status).to_have_text("Copied")
        copied = ReasoningResult.model_validate_json(page.tab.evaluate(read))
        assert shown(copied) == page.cards()
        page.tab.evaluate("() => (document.getElementById('status').textContent = '')")
        page.tab.get_by_role("button", name="Copy", exact=True).click()
        expect(status).to_have_text("Copied")
        assert page.tab.evaluate(read) == "name: Ben"


def test_a_list_of_the_models_own_is_shown_as_a_list(browser: Any) -> None:
    """A native answer: titles on cards while they are planned, then one markdown list, in order."""
    chat, script = scripted_chat(LIST, **NATIVE)
    with running(chat) as server:
        server.ask()
        total = len(script.passes)
        with opened(browser, server) as page:
            planned = [n for n, fed in enumerate(script.passes) if "...\n\n2. **B" in fed[0].seen]
            with halted(script, total + planned[0]) as halt:
                page.ask("Who?")
                halt.inside.wait()
                expect(page.tab.locator(".card.planned bdi").first).to_have_text("Ann")
            page.done()
            assert [title for title, _ in page.cards()] == ["Ann", "Ben"]
            assert page.tab.locator(".reply > ol > li strong").all_inner_texts() == ["Ann", "Ben"]
            assert page.tab.locator(".reply li li").all_inner_texts() == ["and old."]
            assert page.tab.locator(".reply > p").all_inner_texts() == [
                "Some of them:",
                "That is all.",
            ]


def test_a_branch_stands_at_the_edge_of_its_card(browser: Any, server: Running) -> None:
    """At the depth at which a sub-list stands in the answer, it would be code there."""
    with opened(browser, server) as page:
        page.answer_with(streamed(many(2, "    - tall\n      - very\n    - old"), size=3))
        page.ask("Who?")
        page.done()
        page.unfold()
        cards = page.tab.locator(".card .text")
        assert cards.locator("> ul > li").count() == 4
        assert cards.locator("li li").all_inner_texts() == ["very"] * 2


def test_the_shipped_model_answers_an_example(browser: Any) -> None:
    """It says what it is; one press asks about ten students, as another client would."""
    chat = ChatParallelReasoning()
    with running(chat) as server:
        result = result_of(server, demo_question())
        with opened(browser, server) as page:
            expect(page.tab.get_by_text("four kinds of questions")).to_be_visible()
            expect(page.tab.locator(".example")).to_have_count(4)
            page.tab.get_by_role("button", name="Who has this GPA?").click()
            page.done()
            assert page.cards() == shown(result)
            assert len(page.cards()) == 10
            expect(page.reply()).to_contain_text("Pascal Vireaux")
            assert page.seen("together") >= 2


def test_another_model_is_not_called_a_demonstration(browser: Any, server: Running) -> None:
    """There are examples for any model, and no banner."""
    with opened(browser, server) as page:
        expect(page.tab.locator("#model")).to_have_text("scripted")
        expect(page.tab.locator(".example")).to_have_count(6)
        expect(page.tab.locator("#banner")).to_be_hidden()


def test_what_watches_the_page_would_notice() -> None:
    """The helper's promise: a page's complaints are kept."""
    said = type("Tab", (), {"on": lambda *_: None, "add_init_script": lambda *_: None})
    page = Watched(said())
    page._said(type("Message", (), {"type": "error", "text": "refused"}))
    page._said(type("Message", (), {"type": "log", "text": "hello"}))
    assert page.complaints == ["refused"]
