"""Text to `Plan`: the canonical skeleton, and what free-running models write in its place.

Let us check each student.       preamble
####Ann:......                   a step
#### **2. Ben**：…               the same, as models decorate it
####Cem: GPA is 3.1, too low.    the same, its body already filled in
####%%%%                         the terminator; what follows is ignored
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import BaseOutputParser
from pydantic import Field, ValidationError

from langchain_pos.errors import PlanFormatError
from langchain_pos.reasoning.prompts import FORMAT_INSTRUCTIONS
from langchain_pos.results.data import BODY_PLACEHOLDER, STEP_MARK, Plan


class PlanParserError(PlanFormatError, OutputParserException):
    """A text is not a usable skeleton, said in LangChain's way too.

    Both families in one: `except PlanFormatError` catches it as an error of ours, and what
    LangChain builds around output parsers (retry and fixing parsers, agents that handle parsing
    errors) catches it as an `OutputParserException` and finds what it needs to ask the model
    again.

    Attributes:
        text: what the model wrote; `llm_output` is the same.
        observation: what is wrong with it, fit to be read by the model.
    """

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message, text=text)
        self.args = (message,)  # LangChain has appended a web address, which is not for the model
        self.observation = message
        self.llm_output = text
        self.send_to_llm = True


class PlanParser(BaseOutputParser[Plan]):
    """Reads a plan out of what a model wrote.

    Titles keep their own wording; only decoration is taken off: emphasis, brackets around the
    whole, numbers that count the steps. Of several blocks of steps the first is read.

    Attributes:
        min_branches: fewer steps are an error.
        max_branches: more steps are an error; None allows any number.
    """

    min_branches: int = Field(default=1, ge=1)
    max_branches: int | None = Field(default=None, ge=1)

    @property
    def _type(self) -> str:
        return "parallel_reasoning_plan"

    def parse(self, text: str) -> Plan:
        """Read the skeleton in `text`.

        Raises:
            PlanParserError: there is no step, too few or too many, or two have the same title.
        """
        preamble, heads = _split(text)
        titles = _titles(heads)
        if not titles:
            raise PlanParserError(
                "the text has no steps; a step is a line of its own, "
                f"`{STEP_MARK}title:{BODY_PLACEHOLDER}`",
                text=text,
            )
        if "" in titles:
            raise PlanParserError(
                f"step {titles.index('') + 1} has no title; a step is `{STEP_MARK}title:…`",
                text=text,
            )
        if len(titles) < self.min_branches:
            raise PlanParserError(
                f"the outline has {len(titles)} step(s); at least {self.min_branches} are needed",
                text=text,
            )
        if self.max_branches is not None and len(titles) > self.max_branches:
            raise PlanParserError(
                f"the outline has {len(titles)} steps; at most {self.max_branches} are allowed",
                text=text,
            )
        try:
            return Plan.of(titles, preamble)
        except ValidationError as error:
            said = (e["msg"].removeprefix("Value error, ") for e in error.errors())
            raise PlanParserError("; ".join(said), text=text) from error

    def get_format_instructions(self) -> str:
        """Instructions that make a model write what `parse` reads."""
        if self.max_branches is None:
            return FORMAT_INSTRUCTIONS
        return f"{FORMAT_INSTRUCTIONS} List at most {self.max_branches} steps."


def declined(text: str) -> bool:
    """Whether a skeleton is closed before its first step: the question does not fall into parts."""
    lines = _lines(text)
    return not _heads(lines) and any(
        closed and "#" in closed[0] for closed in map(_TERMINATOR.match, lines)
    )


# --- The lines of a text, the heads of steps among them, the titles in the heads ------------------

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_END_OF_TEXT = re.compile(r"<(?:\|\w{1,40}\||/s|eos|end_of_turn)>\Z")
_ESCAPE = re.compile(r"\\(?=[#%])")
_MARK_INSIDE_LINE = re.compile(
    r"(?<=[^\n#])(?=####[ \t]*%%)"  # text####%%%%
    r"|(?<=[.…])(?=####[^#\s])"  # ####a:......####b:......
    r"|(?<=[^\n#>*`\-\s])[ \t]*(?=####[^#:：\n]{1,200}[:：][ \t]*[.…]{2})"  # text: ####a:......
)
_SPLIT_TERMINATOR = re.compile(r"^####\s*\n(?=[ \t]*%%)", re.MULTILINE)

_TERMINATOR = re.compile(r"[ \t>*`]*(?:#{2,}[ \t]*%{2,}|%{4,})")
_MARK = re.compile(r"[ \t>*`\-+•]*(?:\d{1,3}[.、)）][ \t]*)?(#+)(.*)")
_BULLET = re.compile(r"[ \t>]*(?:[\-+•*][ \t]+)?")
_FENCE = re.compile(r"[ \t]*(?:```|~~~)\w*[ \t]*")

_DOTS = ".…⋯。"
_COLON = re.compile(r"(?<!\d)[:：]|[:：](?!\d)")  # not that of 10:30
_LABEL = re.compile(r"[\s*]*(?:title|标题)[ \t]*\d*[ \t]*[:：][ \t]*(?=[^\s.…])", re.IGNORECASE)
_DIGITS = "一二三四五六七八九"
_CHINESE = rf"[{_DIGITS}]?十[{_DIGITS}]?|[{_DIGITS}]"
_NUMBER = re.compile(
    rf"(?:[(（](\d{{1,3}}|{_CHINESE})[)）]"  # (1) （一）
    r"|(\d{1,3})(?:[、)）．]|\.(?!\d))"  # 1. 1) 1、 but not 1.5
    rf"|({_CHINESE})[、.．]"  # 一、
    r"|([①-⑳]))\s*"
)
_BRACKETS = ("【】", "[]", "<>")


@dataclass(frozen=True)
class _Head:
    """A step's first line.

    Attributes:
        line: its number, from 0.
        text: what follows the mark: the title, mostly a colon, perhaps a body.
        bare: the body is nothing but an ellipsis.
        title: the title as it is written, with its decoration.
    """

    line: int
    text: str
    bare: bool
    title: str


def _split(text: str) -> tuple[str, list[_Head]]:
    """Preamble and steps of the first block."""
    lines = _lines(text)
    heads = _heads(lines)
    preamble = lines[: heads[0].line] if heads else lines
    fences = [at for at, line in enumerate(preamble) if _FENCE.fullmatch(line)]
    if len(fences) % 2:  # one opens a fence around the skeleton: the last line, or else the first
        last = not any(line.strip() for line in preamble[fences[-1] + 1 :])
        del preamble[fences[-1] if last else fences[0]]
    return "\n".join(preamble).strip(), heads


def _lines(text: str) -> list[str]:
    """The lines of what a model wrote, every mark at the beginning of one."""
    text = _THINKING.sub("", text.replace("\r\n", "\n")).rstrip()
    while ended := _END_OF_TEXT.search(text):
        text = text[: ended.start()].rstrip()
    if r"\#" in text:
        text = _ESCAPE.sub("", text)
    text = _MARK_INSIDE_LINE.sub("\n", text)
    return _SPLIT_TERMINATOR.sub(STEP_MARK, text).split("\n")


def _heads(lines: list[str]) -> list[_Head]:
    """The first block's steps.

    A step is marked with `####`, or with another number of `#` if its body is nothing but an
    ellipsis (models take the first one for a heading). Where nothing is marked, the skeleton is
    what comes in twos or more: headings of one level in a text that has a terminator, or else a
    list of titles with an ellipsis each.
    """
    marked: list[_Head] = []
    listed: list[_Head] = []
    headings: dict[str, list[_Head]] = {}
    terminated = False
    filled = [at for at, line in enumerate(lines) if line.strip()]
    for at, after in zip_longest(filled, filled[1:]):
        closed = _TERMINATOR.match(lines[at])
        if closed and (marked or "#" in closed[0]):
            terminated = True
            break
        below = "" if after is None else lines[after]
        mark = _MARK.match(lines[at])
        if mark is None:
            head = _head(at, _BULLET.sub("", lines[at], count=1), below)
            if head.bare and _COLON.search(head.text):
                listed.append(head)
        elif mark[2].strip():
            head = _head(at, mark[2], below)
            if head.bare or mark[1] == STEP_MARK:
                marked.append(head)
            headings.setdefault(mark[1], []).append(head)
    if marked:
        return marked
    levels = [heads for heads in headings.values() if len(heads) > 1 and terminated]
    return next(iter(levels), listed if len(listed) > 1 else [])


def _head(line: int, text: str, below: str) -> _Head:
    """Find title and body in a head. `below` is the next line that is not empty."""
    before = _before_ellipsis(text)
    if before is not None:
        title = re.sub(r"(?:[:：]|[ \t][-–—])\Z", "", before)
        if title != before or not _COLON.search(title):
            return _Head(line, text, bare=True, title=title)
    if _before_ellipsis(below) == "":
        return _Head(line, text, bare=True, title=text)
    return _Head(line, text, bare=False, title=_COLON.split(text.lstrip(" \t:："), maxsplit=1)[0])


def _before_ellipsis(text: str) -> str | None:
    """What stands before the ellipsis at the end of `text`; None when there is none."""
    dotted = text.rstrip(" \t*`])）>")
    before = dotted.rstrip(_DOTS)
    dots = dotted[len(before) :]
    if len(dots) < 3 and "…" not in dots:
        return None
    return before.rstrip(" \t*`[(（<")


def _titles(heads: list[_Head]) -> list[str]:
    """The steps' titles without decoration."""
    labelled = [_LABEL.sub("", head.text, count=1) for head in heads]
    if sum(head.text != text for head, text in zip(heads, labelled, strict=True)) > 1:
        heads = [_head(head.line, text, "") for head, text in zip(heads, labelled, strict=True)]
    titles = [_undecorated(head.title) for head in heads]
    numbers = [_NUMBER.match(title) for title in titles]
    counted = [_value(number) for number in numbers if number]
    if counted != list(range(1, len(counted) + 1)) or len(counted) == 1 < len(titles):
        return titles  # the numbers belong to the titles, they do not count the steps
    return [
        (_undecorated(title[number.end() :]) or title) if number else title
        for title, number in zip(titles, numbers, strict=True)
    ]


def _undecorated(title: str) -> str:
    """Take off emphasis and brackets around the whole, and colons at its ends."""
    while True:
        shorter = re.sub(r"\*\*([^*]+)\*\*", r"\1", title.strip()).rstrip(":： \t")
        if shorter[:1] in ("*", "`") and shorter[0] not in shorter.strip(shorter[0]):
            shorter = shorter.strip(shorter[0]).strip()
        elif shorter[:1] + shorter[-1:] in _BRACKETS and shorter[0] not in shorter[1:]:
            shorter = shorter[1:-1].strip()
        if shorter in ("", title):
            return title.strip()
        title = shorter


def _value(number: re.Match[str]) -> int:
    """What a step's number counts: 3 for `3.`, `三、` and `③`."""
    text = next(group for group in number.groups() if group)
    if text.isdecimal():
        return int(text)
    if "①" <= text <= "⑳":
        return ord(text) - ord("①") + 1
    if "十" not in text:
        return _DIGITS.index(text) + 1
    tens, _, ones = text.partition("十")
    return 10 * (_DIGITS.index(tens) + 1 if tens else 1) + (_DIGITS.index(ones) + 1 if ones else 0)
