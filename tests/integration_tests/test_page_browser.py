"""The page at `/` as its users have it: in headless Chromium, over a real server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from langchain_pos import ChatParallelReasoning, ReasoningResult, demo_question
from langchain_pos.plain import clean
from langchain_pos.schema import (
    Block,
    BranchResult,
    Plan,
    ReasoningChunk,
    StagePasses,
    StageTimings,
    TokenUsage,
)
from tests.integration_tests.browsing import (
    CHROMIUM,
    Watched,
    needs_chromium,
    opened,
    plan_text,
    playwright,
    streamed,
    wire,
)
from tests.unit_tests.chat_models import scripted_chat
from tests.unit_tests.hostile import HTML, MARKDOWN, WIDE, hostile_result
from tests.unit_tests.models import STUDENTS, Halt, Script
from tests.unit_tests.serving import Running, body, running

pytestmark = needs_chromium
expect = playwright.expect

INJECTION = HTML[0]
FURTHER = {
    "Both?\n\nAnswer:\n": "####Cyd:......\n####Dan:......\n####%%%%",
    "####Cyd:": " a",
    "####Dan:": " b",
    "b\n####%%%%\n": "Now cities.\n####Rome:......\n####Oslo:......\n####%%%%",
    "####Rome:": " warm",
    "####Oslo:": " cold",
    "cold\n####%%%%\n": "So Rome.",
}
RULES = {
    **{cue: text for cue, text in STUDENTS.items() if cue != "####%%%%\n"},
    "2.4\n####%%%%\n": STUDENTS["####%%%%\n"],
    **FURTHER,
    "Hello?\n\nAnswer:\n": "one two three four",
    "Long?\n\nAnswer:\n": "…",
    "Evil?\n\nAnswer:\n": "####Eve:......\n####Mallory:......\n####%%%%",
    "####Eve:": f" {INJECTION}",
    "####Mallory:": " <b>bold</b>",
    "bold</b>\n####%%%%\n": "</div><svg onload=x()>",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium as it is installed; nothing is downloaded."""
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Running, Script]]:
    """A server whose model follows `RULES`."""
    chat, script = scripted_chat(RULES, max_branch_tokens=64)
    with running(chat) as server:
        yield server, script


@pytest.fixture
def server(served: tuple[Running, Script]) -> Iterator[Running]:
    """The server, at rest before and after."""
    server, script = served
    yield server
    script.before = lambda: None
    assert server.at_rest()


@pytest.fixture
def script(served: tuple[Running, Script]) -> Script:
    """What its model follows; passes are counted from here."""
    served[1].passes.clear()
    return served[1]


def result_of(server: Running, question: str) -> ReasoningResult:
    """The result that another client gets."""
    return ReasoningResult.model_validate(server.ask(question).reasoning)


def shown(result: ReasoningResult) -> list[tuple[str, str]]:
    """A result's branches as cards show them."""
    return [(clean(branch.title), clean(branch.text)) for branch in result.branches]


@contextmanager
def halted(script: Script, at: int) -> Iterator[Halt]:
    """The model stops in this pass, and goes on when the block ends, if not before."""
    halt = Halt(script, at)
    try:
        yield halt
    finally:
        halt.go_on.set()


def many(branches: int, text: str = "GPA 3.1, wanted 2 to 3, no") -> ReasoningResult:
    """A result with so many branches."""
    titles = [f"Student {number}" for number in range(branches)]
    written = tuple(
        BranchResult(index=n, title=title, text=text, started=0.2, ended=0.9)
        for n, title in enumerate(titles)
    )
    return ReasoningResult(
        blocks=(Block(plan=Plan.of(titles, "Let us see."), branches=written),),
        conclusion="Nobody.",
        usage=TokenUsage(9, 500),
        timings=StageTimings(plan=0.2, expand=0.7, conclude=0.1),
        forward_passes=StagePasses(plan=10, expand=50, conclude=5),
    )


# -------------------------------------------------------------------------------- an answer


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


# ------------------------------------------------------------------------------ ends and errors


@pytest.mark.parametrize("way", ["button", "escape", "leaving"])
def test_stopping_frees_the_slots(browser: Any, server: Running, script: Script, way: str) -> None:
    """The pass under way is the last, and the next question is answered."""
    with opened(browser, server) as page:
        with halted(script, 40) as halt:
            page.ask("Long?", "sequential")
            expect(page.tab.locator("#conclusion .text")).not_to_be_empty()
            halt.inside.wait()
            assert server.chat.engine.slots_in_use > 0
            if way == "leaving":
                page.tab.goto("about:blank")
            else:
                stop = page.tab.get_by_role("button", name="Stop")
                stop.click() if way == "button" else page.tab.keyboard.press("Escape")
                expect(page.tab.get_by_role("status")).to_have_text("Stopped")
                assert stop.is_disabled()
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
        page.tab.get_by_role("button", name="Stop").click()
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
        expect(page.tab.get_by_role("status")).to_have_text("There is no whole answer")

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


def test_without_a_key_none_is_asked_for(browser: Any, server: Running) -> None:
    """There is no field for what the server does not want."""
    with opened(browser, server) as page:
        assert not page.tab.get_by_label("API key").is_visible()


# ----------------------------------------------------------------------------------- for everyone


def test_by_keyboard_alone(browser: Any, server: Running, script: Script) -> None:
    """Every control can be reached, shows that it has the focus, and works."""
    focused = "() => document.activeElement.id || document.activeElement.tagName"
    outlined = (
        "() => { const s = getComputedStyle(document.activeElement);"
        " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; }"
    )
    with opened(browser, server) as page, halted(script, 40) as halt:
        keys = page.tab.keyboard
        way = []
        for _ in range(4):
            keys.press("Tab")
            way.append(page.tab.evaluate(focused))
            assert page.tab.evaluate(outlined), way
        assert way == ["question", "mode", "submit", "demo"]

        for _ in range(3):
            keys.press("Shift+Tab")
        keys.press("Control+A")
        keys.type("Long?")
        keys.press("Tab")
        keys.press("End")  # the last of the modes
        keys.press("Tab")
        keys.press("Enter")  # on Ask
        expect(page.tab.locator("#conclusion .text")).not_to_be_empty()
        assert page.tab.evaluate(focused) == "stop", "the focus goes where it is of use"
        keys.press("Enter")
        expect(page.tab.get_by_role("status")).to_have_text("Stopped")
        assert page.tab.evaluate(focused) == "submit"
        halt.go_on.set()

        keys.press("Shift+Tab")
        keys.press("Home")
        keys.press("Shift+Tab")
        keys.press("Control+A")
        keys.type("Who?")
        keys.press("Control+Enter")
        page.done()
        assert page.tab.evaluate(focused) == "question", "who writes goes on writing"
        way = []
        for _ in range(6):
            keys.press("Tab")
            way.append(page.tab.evaluate(focused))
            assert page.tab.evaluate(outlined), way
        assert way == ["mode", "submit", "demo", "copy-text", "copy-json", "SUMMARY"]


def test_every_control_has_a_name(browser: Any, server: Running) -> None:
    """In the tree that Chromium gives to screen readers; with roles for what changes."""
    with opened(browser, server) as page:
        page.ask("Who?")
        page.done()
        session = page.tab.context.new_cdp_session(page.tab)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
        controls = {"button", "textbox", "combobox", "DisclosureTriangle", "form", "list"}
        found = [(role, name) for role, name in named if role in controls]
        roles = {role for role, _ in named}
        assert {"main", "form", "status", "timer", "heading", "listitem"} <= roles
        assert len([role for role, _ in found if role == "button"]) == 5
        unnamed = [(role, name) for role, name in found if not name and role != "list"]
        assert unnamed == []
        headings = {name for role, name in named if role == "heading"}
        assert {"langchain-pos", "Answer", "2 branches", "Conclusion"} <= headings


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
    browser: Any, server: Running, branches: int, width: int
) -> None:
    """No horizontal scrolling; on wide screens cards stand beside each other."""
    with opened(browser, server, viewport={"width": width, "height": 800}) as page:
        page.answer_with(streamed(many(branches)))
        page.ask("Who?")
        page.done()
        assert page.fits()
        page.tab.get_by_text("Timeline").click()
        assert page.fits()
        lefts = page.tab.locator(".card").evaluate_all(
            "cards => cards.map(c => c.getBoundingClientRect().left)"
        )
        assert len(lefts) == branches
        columns = len(set(lefts))
        assert columns == 1 if width == 320 else columns >= 2
        if width == 2560:
            assert columns >= min(branches, 5)


def test_on_a_narrow_screen_the_answer_comes_into_sight(browser: Any, server: Running) -> None:
    """It stands below the question, so the page scrolls to it."""
    with opened(browser, server, viewport={"width": 320, "height": 640}) as page:
        page.ask("Who?")
        page.done()
        expect(page.tab.get_by_role("status")).to_be_in_viewport()


# ---------------------------------------------------------------------------- hostile, and much


def test_markup_that_a_model_writes_stays_text(browser: Any, server: Running) -> None:
    """Through the whole server: no element is made, no script runs."""
    with opened(browser, server) as page:
        page.ask("Evil?")
        page.done()
        assert page.cards() == [("Eve", INJECTION), ("Mallory", "<b>bold</b>")]
        assert page.tab.locator("#conclusion .text").text_content() == "</div><svg onload=x()>"
        assert page.tab.title() == "langchain-pos"
        assert page.tab.locator("#answer :is(script, b:not(#stages b), svg, img)").count() == 0


@pytest.mark.parametrize("width", [320, 1280])
def test_hostile_text_in_every_place(browser: Any, server: Running, width: int) -> None:
    """The elements are those of a harmless result; every text is shown; nothing sticks out."""
    hostile = hostile_result()
    count = len((*HTML, *WIDE, *MARKDOWN))
    tags = "() => [...document.querySelectorAll('#answer *')].map(e => e.tagName).join()"
    attributes = (
        "() => [...document.querySelectorAll('#answer *')].flatMap(e => e.getAttributeNames())"
        ".filter(name => name.startsWith('on') || name === 'src' || name === 'href')"
    )
    with opened(browser, server, viewport={"width": width, "height": 800}) as page:
        made = []
        for result in (hostile_result(tuple(f"word{n}" for n in range(count))), hostile):
            page.answer_with(streamed(result, size=500))
            page.ask("Who?")
            page.done()
            page.tab.evaluate("() => (document.getElementById('timeline').open = true)")
            made.append(page.tab.evaluate(tags))
            assert page.fits()
        assert made[0] == made[1]
        assert page.tab.evaluate(attributes) == []
        assert page.tab.title() == "langchain-pos"
        assert page.cards() == shown(hostile)
        for place in ("#conclusion .text", ".block > .text"):
            assert page.tab.locator(place).text_content() == clean(hostile.conclusion)


def test_long_answers_are_drawn_by_the_frame_and_in_bounded_nodes(
    browser: Any, server: Running
) -> None:
    """Far fewer writes than pieces, and no write copies more than a bounded text before it."""
    result = many(16, "word " * 2000)
    events = streamed(result, size=5)
    with opened(browser, server) as page:
        page.answer_with(events)
        page.ask("Who?")
        page.done()
        assert page.cards() == shown(result)
        assert page.seen("appended") < len(events) / 10


# ------------------------------------------------------------------------------ the shipped model


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
