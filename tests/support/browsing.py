"""The page at `/` in headless Chromium, and streams made by hand for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from langchain_pos.results.data import Block, BranchResult
from langchain_pos.results.result import ReasoningChunk, ReasoningResult
from langchain_pos.server.responses import AnswerWriter
from tests.support.fonts import installed
from tests.support.serving import MODEL, URL, Running

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'langchain-pos[test]'"
)

playwright.expect.set_options(timeout=60_000)  # milliseconds; a busy machine is no failure

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or installed() == [],  # without a font it ends as soon as it draws
    reason="no Chromium or no font is found; apt-get install chromium fonts-dejavu-core",
)
WATCH = """
// What the tests want to know of a page that they do not steer.
window.seen = {statuses: [], together: 0, drawn: 0, violations: []};
document.addEventListener("securitypolicyviolation", (event) =>
  seen.violations.push(event.violatedDirective));
document.addEventListener("DOMContentLoaded", () => {
  const status = document.getElementById("status");
  if (!status) return; // another page
  new MutationObserver(() => seen.statuses.push(status.textContent))
    .observe(status, {childList: true, characterData: true, subtree: true});
  // An observer is called once for all that a frame has written.
  new MutationObserver((records) => {
    const cards = new Set(records.map((record) => record.target)
      .filter((place) => place.matches(".card .text")));
    seen.drawn += cards.size;
    seen.together = Math.max(seen.together, cards.size);
  }).observe(document.getElementById("conversation"), {childList: true, subtree: true});
});
"""
"""Runs before the page's own script, past its policy, as only a driver can."""


class Watched:
    """A page with what it complains of.

    Attributes:
        tab: playwright's page.
        complaints: errors and warnings of its console, and scripts that failed.
    """

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.complaints: list[str] = []
        tab.on("console", self._said)
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.add_init_script(WATCH)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def ask(self, question: str, mode: str | None = None) -> None:
        """Choose the mode if one is given, fill in, and press the button."""
        if mode is not None:
            self.set(mode=mode)
        self.tab.get_by_label("Question").fill(question)
        self.tab.get_by_role("button", name="Ask", exact=True).click()

    def set(self, **settings: str) -> None:
        """Change these settings, by the names that requests have for them, in the drawer."""
        self.tab.get_by_role("button", name="Settings").click()
        for name, value in settings.items():
            field = self.tab.locator(f"#{name}")
            field.select_option(value) if name == "mode" else field.fill(value)
        self.tab.get_by_role("button", name="Done").click()

    def done(self) -> None:
        """Wait for a whole answer."""
        playwright.expect(self.tab.get_by_role("status")).to_contain_text("Done")

    def reply(self) -> Any:
        """The text of the last answer."""
        return self.tab.locator(".reply").last

    def unfold(self) -> None:
        """Open the branches of every answer, and their timelines."""
        for kind in ("work", "timeline"):
            self.tab.locator(f"details.{kind}").evaluate_all(
                "all => all.forEach(details => (details.open = true))"
            )

    def cards(self) -> list[tuple[str, str]]:
        """Title and text of every card of the last answer."""
        found = self.tab.locator(".answer").last.locator(".card")
        texts = found.evaluate_all(
            "cards => cards.map(c => [c.querySelector('bdi').textContent, "
            "c.querySelector('.text').textContent])"
        )
        return [(title, text) for title, text in texts]

    def asked(self) -> list[dict[str, Any]]:
        """The bodies of all requests for an answer from now on; the list grows."""
        bodies: list[dict[str, Any]] = []
        self.tab.on(
            "request",
            lambda request: request.url.endswith(URL) and bodies.append(request.post_data_json),
        )
        return bodies

    def seen(self, name: str) -> Any:
        """What `WATCH` has noted."""
        return self.tab.evaluate(f"() => window.seen.{name}")

    def settle(self) -> None:
        """Wait until the page has answered a change of its layout, which it sees once a frame."""
        frame = "await new Promise(requestAnimationFrame);"
        self.tab.evaluate(f"async () => {{ {frame} {frame} }}")

    def fits(self) -> bool:
        """Whether nothing sticks out at the sides."""
        return bool(
            self.tab.evaluate(
                "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
        )

    def answer_with(self, events: Iterable[dict[str, Any]], *, end: bool = True) -> None:
        """Answer its requests with this stream; without `end`, the stream breaks off."""
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        body += "data: [DONE]\n\n" if end else ""
        self.tab.route(
            f"**{URL}", lambda route: route.fulfill(body=body, content_type="text/event-stream")
        )


@contextmanager
def opened(
    browser: Any, server: Running, *, complains: bool = False, **options: Any
) -> Iterator[Any]:
    """The server's page in a context of its own, which has not complained when the block ends."""
    context = browser.new_context(base_url=server.url, **options)
    try:
        page = Watched(context.new_page())
        page.tab.goto("/")
        yield page
        assert page.seen("violations") == []
        assert complains or not page.complaints, page.complaints
    finally:
        context.close()


# ------------------------------------------------------------------ streams made by hand


def plan_text(text: str) -> ReasoningChunk:
    """A piece of raw skeleton."""
    return ReasoningChunk(stage="plan", delta=text)


def wire(
    pieces: Iterable[ReasoningChunk | str], result: ReasoningResult | None = None
) -> list[Any]:
    """As the server writes pieces of reasoning, pieces of text (`str`), and a result."""
    writer = AnswerWriter(MODEL)
    events: list[Any] = []
    for piece in pieces:
        if isinstance(piece, str):
            said = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            events += writer.write(None, [said])
        else:
            events += writer.write(piece, [])
    if result is not None:
        metadata = {"finish_reason": "stop", "reasoning": result.model_dump(mode="json")}
        last = AIMessageChunk(content="", response_metadata=metadata, chunk_position="last")
        events += [*writer.write(None, [ChatGenerationChunk(message=last)]), *writer.close()]
    return events


def pieces_of(result: ReasoningResult, size: int = 1_000_000) -> Iterator[ReasoningChunk | str]:
    """A result as it is streamed, in pieces of `size` characters, branches side by side."""
    for place, block in enumerate(result.blocks):
        before = tuple(Block(plan=b.plan) for b in result.blocks[:place])
        titles = "".join(f"####{title}:......\n" for title in block.plan.titles)
        yield plan_text(f"{block.plan.preamble}\n{titles}####%%%%")
        yield ReasoningChunk(stage="plan", blocks=(*before, Block(plan=block.plan)))
        longest = max(len(branch.text) for branch in block.branches)
        for at in range(0, longest, size):
            for branch in block.branches:
                if text := branch.text[at : at + size]:
                    told = BranchResult(index=branch.index, title=branch.title, text=text)
                    last = Block.model_construct(plan=block.plan, branches=(told,))
                    yield ReasoningChunk(
                        stage="expand", branch=branch.index, delta=text, blocks=(*before, last)
                    )
        for branch in block.branches:
            last = Block.model_construct(plan=block.plan, branches=(branch,))
            yield ReasoningChunk(stage="expand", branch=branch.index, blocks=(*before, last))
    yield from (result.conclusion[at : at + size] for at in range(0, len(result.conclusion), size))


def streamed(result: ReasoningResult, size: int = 1_000_000) -> list[Any]:
    """The whole stream of a result."""
    return wire(pieces_of(result, size), result)
