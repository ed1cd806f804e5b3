r"""Lists as models write them in markdown: where one begins, and where each of its entries ends.

    Some ways to save water:          the lead-in
                                      ┐
    1. **Shorter showers**: Five …    │ an entry: its head (`1. **Shorter showers**:`) and its body
       - use a timer                  │ what is indented, fenced or a table belongs to the body
                                      ┘
    2. **Full loads**: Run the …      the next entry's mark, at the same depth, ends the one before
                                      ┐
    Every litre counts.               ┘ so does text that is not indented, after an empty line

Text only: what is read here may break off anywhere, for it is looked at while it is being written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["number", "bullet", "heading", "bold"]

LONGEST_TITLE = 80
"""Characters. A longer one is a sentence, and no title."""
LOOSE, TIGHT = "\n\n", "\n"
"""Between two entries of a list: an empty line, or none. A model leaves one out between the entries
where it has left one out before the first: of 88 lists that two models wrote, all 8 that stand
right under the line before are tight, and one of the other 80."""
_MOST_WORDS = 8
"""Words of a title that is not set off in bold or as a heading."""

_HEAD = re.compile(
    r"""
    ^(?P<indent>[ ]{0,3})
    (?:
        (?: (?P<number>[0-9]{1,2})[.)、．](?![0-9])[ \t]* | (?P<bullet>[-*+•])[ \t]+ )
        (?:
            \*\*(?P<bold>[^*\n:：]{1,80}?)
            (?P<bold_close>\*\*[ ]?[:：] | [:：]\*\* | \*\*[ ][-–—](?=[ ]) | \*\*[ ]*\n)
          | (?P<plain>[^*\n:：#|`-][^*\n:：#|`]{0,79}?)
            (?P<plain_close>:(?=[ \t\n]) | ：)
        )
      | \#{2,4}[ \t]+(?P<heading>[^\n#]{1,80}?)(?P<heading_close>[:：]?[ ]*\n)
      | \*\*(?P<line>[^*\n:：]{1,80}?)(?P<line_close>\*\*[:：]?[ ]*\n | [:：]\*\*[ ]*\n)
    )
    """,
    re.MULTILINE | re.VERBOSE,
)
_NUMBERED = re.compile(r"(?P<number>[0-9]{1,2})[.)、．](?![0-9])[ \t]*")
_UNDER_A_LINE = re.compile(r"\S[ \t]*\n\Z")
_FENCE = re.compile(r"[ ]{0,3}(```|~~~)")


@dataclass(frozen=True)
class Mark:
    """What stands around the titles of a list.

    Attributes:
        kind: what its entries begin with.
        before: the text before a title; in a numbered list the first entry's.
        after: the text after it, up to where the body begins.
        numbered: whether the entries are counted.
        first: the first entry's number.
        gap: the text between two entries.
    """

    kind: Kind
    before: str
    after: str
    numbered: bool
    first: int = 1
    gap: str = LOOSE

    def head(self, place: int, title: str) -> str:
        """The head of the entry at `place`, from 1."""
        return f"{self.mark(place)}{title}{self.after}"

    def mark(self, place: int) -> str:
        """The text before the title of the entry at `place`, from 1."""
        if not self.numbered:
            return self.before
        return re.sub(r"\d+", str(self.first + place - 1), self.before, count=1)

    @property
    def indent(self) -> int:
        """Columns before an entry."""
        return len(self.before) - len(self.before.lstrip(" "))

    @property
    def level(self) -> int:
        """How many `#` a heading has; 0 for other marks."""
        return len(self.before) - len(self.before.lstrip("#"))


@dataclass(frozen=True)
class Head:
    """The head of an entry in a text.

    Attributes:
        mark: what stands around its title.
        title: without its marks.
        start: where it begins in the text.
        end: where its body begins.
    """

    mark: Mark
    title: str
    start: int
    end: int


BOLD_NUMBERS = Mark("number", "1. **", "**:", numbered=True)
"""How a list is written whose entries the caller names."""


def first_head(text: str, goes_on: int | None = None) -> Head | None:
    """The first of the `heads` in a text, if it has any."""
    return next(heads(text, goes_on), None)


def heads(text: str, goes_on: int | None = None) -> Iterator[Head]:
    """Heads in a text with which lists begin; the last one's body may not be there yet.

    Entries count whose title is set off from the body: in bold, as a heading, or by a colon after a
    few words. A list that does not begin with 1, and what stands in a code fence, is none. Of a
    list without numbers, every entry is such a head.

    Args:
        text: its body may break off anywhere.
        goes_on: the number with which a list that came before goes on: one may begin so, too.
    """
    numbers = _numbers(goes_on)
    for found in _HEAD.finditer(text):
        if _in_fence(text[: found.start()]):
            continue
        head = _head(found, numbers)
        if head is None:
            continue
        if head.mark.kind in ("number", "bullet") and _UNDER_A_LINE.search(text, 0, head.start):
            head = replace(head, mark=replace(head.mark, gap=TIGHT))
        yield head


def _numbers(goes_on: int | None) -> set[str]:
    """As they are written: with a zero before it, a number is not the one that is meant."""
    return {"1"} if goes_on is None else {"1", str(goes_on)}


def _head(found: re.Match[str], numbers: Collection[str]) -> Head | None:
    parts = found.groupdict()
    name = next(n for n in ("bold", "plain", "heading", "line") if parts[n] is not None)
    title, close = parts[name], parts[f"{name}_close"]
    before = found[0][: found.start(name) - found.start()]
    numbered = parts["number"] is not None
    kind: Kind = "bullet"
    first = "1"
    if numbered:
        kind, first = "number", parts["number"]
    elif name == "heading":
        kind = "heading"
        inner = _NUMBERED.match(title)
        if inner is not None:
            first = inner["number"]
            before, title, numbered = before + inner[0], title[inner.end() :], True
        if title.startswith("**") and title.endswith("**") and len(title) > 4:
            before, title, close = before + "**", title[2:-2], "**" + close
    elif name == "line":
        kind = "bold"
    title = title.strip()
    if first not in numbers:
        return None
    if not any(character.isalnum() for character in title):
        return None
    if name == "plain" and len(title.split()) > _MOST_WORDS:
        return None
    return Head(Mark(kind, before, close, numbered, int(first)), title, found.start(), found.end())


def may_be_head(line: str, goes_on: int | None = None) -> bool:
    """Whether a line that is being written may yet become the head of a first entry.

    Args:
        line: as far as it is there.
        goes_on: as in `first_head`.
    """
    if len(line) > LONGEST_TITLE + 16:
        return False
    line = line.lstrip(" ")
    if not line or line[0] in "#":
        return True
    numbers = _numbers(goes_on)
    begun = re.match(r"([0-9]{1,2})(?:$|[.)、．](?![0-9]))", line)
    if begun is not None:
        partly = not line[begun.end(1) :] and any(n.startswith(line) for n in numbers)
        if begun[1] not in numbers and not partly:
            return False
    elif re.match(r"[-*+•](?:$|[ \t*])|\*\*", line) is None:
        return False
    # The body of an entry that is none, or the rest of a line that is not all bold.
    return re.match(r"(?:[0-9]{1,2}[.)、．]|[-*+•])[ \t]+(?!\*\*)(?:\S+[ \t]+){9}", line) is None


def _in_fence(text: str) -> bool:
    return sum(1 for line in text.split("\n") if _FENCE.match(line)) % 2 == 1


class EntryEnd:
    """Finds where an entry of a list ends, in the text after its head.

    Args:
        mark: of the list.
    """

    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def find(self, text: str) -> int | None:
        """Where the body ends; None where it does not (yet). White space at its end is not it."""
        return self._scan(text)[0]

    def undecided(self, text: str) -> int:
        """How many characters at the end of the text may yet turn out to lie after the body."""
        return self._scan(text)[1]

    def _scan(self, text: str) -> tuple[int | None, int]:
        at, fence, after_blank = 0, "", False
        lines = text.split("\n")
        begins_a_line = self._mark.after.endswith("\n")
        for index, line in enumerate(lines):
            last = index == len(lines) - 1
            begin = at
            at += len(line) + 1
            if fence:
                if line.strip().startswith(fence):
                    fence = ""
                continue
            opened = _FENCE.match(line)
            if opened is not None:
                fence, after_blank = opened[1], False
                continue
            if not line.strip():
                after_blank = after_blank or index > 0 or begins_a_line
                continue
            if index > 0 or begins_a_line:
                ends = self._ends(line, after_blank=after_blank, whole=not last)
                if ends is not False:
                    body = len(text[:begin].rstrip())
                    return (body, 0) if ends else (None, len(text) - body)
            after_blank = False
        return None, len(text) - len(text.rstrip())

    def _ends(self, line: str, *, after_blank: bool, whole: bool) -> bool | None:
        """Whether a line lies after the body; None where more of it must be seen."""
        bare = line.lstrip(" \t")
        if not whole and re.fullmatch(r"`{1,2}|~{1,2}", bare):
            return None
        indent, mark = len(line) - len(bare), self._mark
        if indent <= 3 and bare.startswith("#"):
            level = len(bare) - len(bare.lstrip("#"))
            if level == len(bare) and not whole:
                return None
            return mark.level == 0 or level <= mark.level
        if mark.kind == "heading":
            return False
        if mark.kind == "bold":
            if indent > 0 or not bare.startswith("*"):
                return None if bare == "*" and not whole else False
            if not whole and re.fullmatch(r"\*|\*\*[^*]*(?:\*\*[:：]?[ ]*|\*)?", bare):
                return None
            return re.match(r"\*\*[^*]+(?:\*\*[:：]?|[:：]\*\*)[ ]*$", bare) is not None
        if indent <= mark.indent + 1:
            if mark.kind == "number" and bare[0].isdigit():
                if not whole and re.fullmatch(r"\d{1,3}[.)、．]?", bare):
                    return None
                if re.match(r"\d{1,3}[.)、．](?!\d)", bare):
                    return True
            bullet = mark.before.strip(" \t*")[:1] or "*"
            if mark.kind == "bullet" and bare[0] == bullet:
                if not whole and len(bare) == 1:
                    return None
                if bare[1:2] in (" ", "\t"):
                    return True
        if mark.gap == TIGHT and not after_blank and indent <= mark.indent:
            # No empty line need stand before the line that leads in to the next list, either.
            if len(bare) > LONGEST_TITLE or re.match(r"[-*+•][ \t]", bare):
                return False
            return bare.rstrip(" *").endswith((":", "：")) if whole else None
        if not after_blank or indent > mark.indent:
            return False
        if bare[0] in "|>":
            return False
        if mark.kind == "number" and re.match(r"[-*+•]", bare):
            if not whole and re.fullmatch(r"[-*+•]{1,3}", bare):
                return None
            return re.match(r"[-*+•][ \t]", bare) is None
        return True
