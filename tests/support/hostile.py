"""Results whose every text tries to break out of where it is shown."""

from __future__ import annotations

from langchain_pos.results.data import (
    Block,
    BranchResult,
    Plan,
    StagePasses,
    StageTimings,
    TokenUsage,
)
from langchain_pos.results.result import ReasoningResult

HTML = (
    "<script>document.title='ran'</script>",
    "</style></div><script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "\" onmouseover=\"document.title='ran'\" autofocus onfocus=\"document.title='ran'",
    "' style='position:fixed;inset:0;width:5000px'",
    "</details></div></body></html><svg onload=\"document.title='ran'\">",
    "<!-- --><![CDATA[ ]]>&lt;script&gt;&#60;script&#62;",
)
"""Markup and scripts."""

WIDE = (
    "W" * 10_000,
    "\u2060".join("W" * 2_000),
    "a\u00a0" * 2_000,
    "\t" * 500 + "end",
    "א" * 5_000,
    "\u202e" + "right to left override " * 40,
    "\u200b\u200d\ufeff" * 200 + "zero width",
    "Z" + "\u0335\u0489" * 500,
    "﷽" * 300,
)
"""Texts that want more room than there is, or turn what follows them."""

MARKDOWN = (
    "# heading\n\n## another\n---\nsetext\n===",
    "```\nfence\n~~~\n    indented",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "- list\n+ list\n* list\n1. list\n2) list\n> quote",
    "[link](javascript:alert(1)) ![image](http://127.0.0.1/x.png) <http://example.org>",
    "[ref]: http://example.org\n\n[ref]",
    "**bold** __bold__ *it* _it_ ~~gone~~ `code` \\escaped\\",
    "$x$ $$y$$ \\(z\\) \\[w\\] &lt; &amp; &#42;",
    "<b>html</b> <!-- comment --> <details>",
    "http://example.org www.example.org mail@example.org",
    "ends in a backslash \\",
)
"""Markdown, and what Jupyter adds to it."""


def hostile_result(texts: tuple[str, ...] = (*HTML, *WIDE, *MARKDOWN)) -> ReasoningResult:
    """A result with these texts in every place that a model or a user fills."""
    titles = [
        f"{number} {' '.join(text.replace('####', '#').split())}"
        for number, text in enumerate(texts)
    ]
    endings = ("stop", "length", "error", "cancelled")
    branches = tuple(
        BranchResult(
            index=index,
            title=Plan.of([title]).titles[0],
            text=text,
            finish_reason=endings[index % 4],
            started=0.2 + index / 100,
            ended=0.5 + index / 50,
            usage=TokenUsage(9, 20),
            error=text if endings[index % 4] == "error" else None,
        )
        for index, (title, text) in enumerate(zip(titles, texts, strict=True))
    )
    whole = "\n".join(texts)
    return ReasoningResult(
        question=whole,
        blocks=(Block(plan=Plan.of(titles, preamble=whole), branches=branches),),
        conclusion=whole,
        thoughts=whole,
        finish_reason="error",
        error=whole,
        fallback_reason=whole,
        usage=TokenUsage(600, 900),
        timings=StageTimings(plan=0.2, expand=1.0, conclude=0.3),
        forward_passes=StagePasses(plan=10, expand=50, conclude=20),
        model_name=texts[0],
    )
