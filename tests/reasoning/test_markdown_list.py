"""Where lists begin in markdown, and where their entries end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from langchain_pos.engine.tokenization.stopping import StoppedText
from langchain_pos.reasoning.markdown_list import BOLD_NUMBERS, EntryEnd, first_head, may_be_head
from langchain_pos.reasoning.native_form import NATIVE
from langchain_pos.results.data import Step


@pytest.mark.parametrize(
    ("text", "title", "before", "after"),
    [
        ("Sure:\n\n1. **Flexible hours**: yes", "Flexible hours", "1. **", "**:"),
        ("1. **Hours:** yes", "Hours", "1. **", ":**"),
        ("- **A b** - c", "A b", "- **", "** -"),
        ("1. Food: a", "Food", "1. ", ":"),
        ("### One thing\n", "One thing", "### ", "\n"),
        ("### 1. **Plan**\n", "Plan", "### 1. **", "**\n"),
        ("**Food**\n", "Food", "**", "**\n"),
        ("1、**苹果**：好", "苹果", "1、**", "**："),
        ("1) **Цена**: да", "Цена", "1) **", "**:"),
    ],
)
def test_heads_of_first_entries(text: str, title: str, before: str, after: str) -> None:
    """With all that stands around the title, so that the next ones can be written alike."""
    head = first_head(text)
    assert head is not None
    assert (head.title, head.mark.before, head.mark.after) == (title, before, after)
    assert text[head.start : head.end] == f"{before}{title}{after}"


@pytest.mark.parametrize(
    "text",
    [
        "1. Buy a tent\n",
        "2. **Second**: no",
        "```\n1. **x**: y\n```\n",
        "At 1. **x",
        "It is 10:30 now: go",
        "1. This is a whole sentence with many many words in it: yes",
        "# Title\n",
        "01. **Padded**: no",
        "１. **Wide**: no",
        "1.5 km: far",
        "---\n",
        "| a | b |\n",
    ],
)
def test_what_begins_no_list(text: str) -> None:
    """Sentences, later entries, code, titles of documents, tables."""
    assert first_head(text) is None


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("7. **Next**: a", "Next"),
        ("### 7. Next\n", "Next"),
        ("1. **Anew**: a", "Anew"),
        ("- **Bullet**: a", "Bullet"),
        ("6. **Sixth**: a", None),
        ("77. **Next**: a", None),
        ("### 6. Sixth\n", None),
    ],
)
def test_a_list_may_go_on_with_its_next_number(text: str, title: str | None) -> None:
    """After six entries; then its marks count on from there. Another number begins none."""
    head = first_head(text, goes_on=7)
    assert (None if head is None else head.title) == title
    if head is not None and head.mark.first == 7:
        assert head.mark.head(1, "A") == text[: head.end].replace("Next", "A")
        assert head.mark.mark(2) == head.mark.before.replace("7", "8")
    line = text.rstrip()
    assert all(may_be_head(line[:end], goes_on=7) for end in range(1, len(line))) or title is None


@given(text=st.text(alphabet="0123456789１２.)、#*-: aA\n", max_size=30))
def test_no_head_comes_unawaited(text: str) -> None:
    """What begins a list was held back from its first character on, whatever the numbers."""
    for goes_on in (None, 3, 12):
        head = first_head(text, goes_on)
        if head is None:
            continue
        line = text[head.start :].partition("\n")[0]
        ends = range(1, min(len(line), head.end - head.start))
        assert all(may_be_head(line[:end], goes_on) for end in ends)


@pytest.mark.parametrize(
    ("before", "gap"),
    [
        ("", "\n\n"),
        ("\n", "\n\n"),
        ("Some:\n\n", "\n\n"),
        ("Some:\n \n", "\n\n"),
        ("Some:\n", "\n"),
        ("Some: \n", "\n"),
    ],
)
def test_a_list_right_under_a_line_has_no_empty_lines(before: str, gap: str) -> None:
    """Headings always have them."""
    for head in ("1. **One**:", "- One: ", "  2) One: ", "**One**\n", "### One\n"):
        found = first_head(f"{before}{head}", 2)
        assert found is not None
        assert found.start == len(before)
        assert found.mark.gap == ("\n\n" if head.endswith("\n") else gap)


def test_a_number_of_two_digits_may_be_awaited() -> None:
    """From its first digit on; and no other number is held back."""
    assert all(may_be_head("12. **Twelfth**"[:end], goes_on=12) for end in range(1, 15))
    assert not may_be_head("13.", goes_on=12)
    assert not may_be_head("2. **Second**", goes_on=12)
    assert not may_be_head("12", goes_on=None)


@pytest.mark.parametrize(
    "text",
    ["1. **Flexible hours**:", "### One thing\n", "**Food**\n", "- **A b** - c", "1. Food: "],
)
def test_a_head_may_be_one_from_its_first_character_on(text: str) -> None:
    """So no part of it is passed on before it is decided."""
    for end in range(1, len(text.rstrip())):
        assert may_be_head(text[:end])


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (" one line", "\n2. **Next**"),
        (" one\n   - sub\n   - sub", "\n\nOver all"),
        ("\n- sub\n- sub", "\n\n2. **Next**"),
        (" code:\n\n```py\n1. x\n\ny = 2\n```", "\n\nThe end"),
        (" |a|b|\n|-|-|\n|1|2|", "\n\n## More"),
        (" 3 apples\n10 pears", "\n\n**Note**: x"),
        (" in 1. place", ""),
    ],
)
def test_an_entry_ends_where_markdown_ends_it(body: str, rest: str) -> None:
    """Piece by piece: nothing that lies after it is passed on, and nothing of it is lost."""
    for size in (1, 3, 100):
        stream, text = StoppedText(strip=" \t", end=EntryEnd(BOLD_NUMBERS)), body + rest
        for at in range(0, len(text), size):
            stream.push(text[at : at + size])
        stream.flush()
        assert stream.text == body.lstrip(" ")
        assert (stream.stopped is not None) == bool(rest)


WORDS = st.text("abcdef ", min_size=1, max_size=20).map(str.strip).filter(bool)
BODIES = st.lists(WORDS, min_size=1, max_size=3).map(lambda words: "\n   - ".join(words))


@given(
    st.lists(st.tuples(WORDS, BODIES), min_size=2, max_size=6, unique_by=lambda e: e[0]),
    st.sampled_from(["\n\n", "\n"]),
)
def test_a_joined_list_reads_back_to_its_entries(entries: list[tuple[str, str]], gap: str) -> None:
    """By a markdown parser, and by our own rules for heads and ends."""
    titles = [" ".join(title.split()) for title, _ in entries]
    if len(set(titles)) < len(titles):
        return
    plan = NATIVE.given([Step(title=title) for title in titles]).model_copy(update={"gap": gap})
    text = NATIVE.join(plan, [body for _, body in entries])
    tokens = MarkdownIt().parse(text)
    items = [t for t in tokens if t.type == "list_item_open" and t.level == 1]
    assert len(items) == len(entries)
    rest, place = text, 1
    for title, (_, body) in zip(titles, entries, strict=True):
        head = BOLD_NUMBERS.head(place, title)
        assert rest.startswith(head)
        rest = rest.removeprefix(head)
        end = EntryEnd(BOLD_NUMBERS).find(rest)
        assert rest[:end].strip(" ") == body.strip()
        rest, place = rest[end:].lstrip("\n") if end is not None else "", place + 1
    assert rest == ""


@pytest.mark.parametrize("begun", ["\n\n9.", "\n9", "\n\n#"])
def test_half_a_mark_at_the_end_of_a_budget_is_no_text(begun: str) -> None:
    """The entry was over; a text that ends by itself keeps it."""
    for cut in (True, False):
        text = StoppedText(end=EntryEnd(BOLD_NUMBERS), strip=" \t")
        text.push(f" Take breaks.{begun}")
        text.flush(cut=cut)
        assert text.text == "Take breaks." + ("" if cut else begun)
    text = StoppedText(end=EntryEnd(BOLD_NUMBERS), strip=" \t")
    text.push(" Take breaks in the")
    text.flush(cut=True)
    assert text.text == "Take breaks in the"
