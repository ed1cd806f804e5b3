"""The model's own form: an ordinary markdown list whose bodies are left out, and written together.

    question                          the prompt, and nothing else
    Some ways to save water:          what the model answers: the lead-in
    1. **Shorter showers**: ...       … and its own first head; its body is elided
    2. **Full loads**: ...            stage 1: it continues with the heads, under a grammar
                                      stage 2: every head is a branch, forked where the list began
                                      stage 3: the list, written out; the model continues after it

Nothing is asked of the model that it would not have done. Where no list begins, the answer is the
sequential one, token for token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from langchain_pos.errors import PlanFormatError
from langchain_pos.reasoning.form import Form, OpenedStep, Skeleton
from langchain_pos.reasoning.markdown_list import (
    BOLD_NUMBERS,
    LOOSE,
    TIGHT,
    EntryEnd,
    Head,
    Mark,
    first_head,
    heads,
    may_be_head,
)
from langchain_pos.reasoning.titles import fault_of, leads_in_to_steps, same
from langchain_pos.results.data import Plan, Step

if TYPE_CHECKING:
    from langchain_pos.reasoning.settings import ReasoningSettings

ELLIPSIS = "..."
"""Stands for a body in the skeleton. Measured on what a 0.5B model wrote: with it the heads that
follow are nearly as likely as they are after the bodies (-0.57 nats a token against -0.44)."""
MAY_END = 0.15
"""A list ends where the model would end it with this probability, bodies left out."""
WOULD_END = 0.5
"""The same of a list that went on after such an end: there it ends where the model rather would."""
NEW_LINE = "\n"


class NativeSkeleton(Skeleton):
    """The heads of a list whose first one the model has written; see `Skeleton`.

    Args:
        settings: the bounds.
        head: the first entry's head.
        known: titles of the list that goes on here.
    """

    end = ""

    def __init__(self, settings: ReasoningSettings, head: Head, known: Sequence[str] = ()) -> None:
        self._settings = settings
        self._mark = head.mark
        self.known = tuple(known)
        self.begin = f"{head.mark.head(1, head.title)}{self._elided}"
        places = enumerate(self.known, 1 - len(self.known))
        self.so_far = "".join(f"{head.mark.head(at, t)}{self._elided}" for at, t in places)
        self.most = settings.max_branches - len(self.known)
        self.grammar = self._grammar(self.most)

    @property
    def _elided(self) -> str:
        """What follows a head in place of its body; the gap to the next entry included.

        That is an empty line, even in a list without any: after single line ends, models keep
        listing (a next entry has a probability of 0.9 or more up to the 20th).
        """
        return f"{'' if self._mark.after.endswith(NEW_LINE) else ' '}{ELLIPSIS}{LOOSE}"

    def _grammar(self, most: int) -> str:
        """The further entries, one after the other, each with its own mark; then the end.

        A second entry there must be, so that the model cannot end where only the ellipsis puts it
        off; but one entry may be all that is left of a list that goes on. Then the model says that
        the list is over, by EOS or by a line that is not an entry.
        """
        mark = self._mark
        closed = _literal(mark.after + self._elided)
        first = _first(mark)
        # A space before the title is the title's: as a rule the two are one token, and after a
        # space that stands alone the model goes on with what can follow one, such as a digit.
        space = " space" if mark.before.endswith(" ") else ""

        def entry(place: int) -> str:
            literal = _literal(mark.mark(place).removesuffix(" "))
            return f"{literal}{space} title {closed} rest{place + 1}"

        second = f"end | {entry(2)}" if self.known else entry(2)
        rules = [f"root ::= {second}", "space ::= [ \\t]"]
        rules += [f"rest{place} ::= end | {entry(place)}" for place in range(3, most + 1)]
        rules.append(f"rest{most + 1} ::= end")
        rules.append(f'end ::= "" | [^{first} \\t\\n] [^\\n]*')
        rules.append("title ::= [^ \\t\\n*#:：|`] [^\\n*:：|`]*")
        return "\n".join(rules) + "\n"

    def bounds(self, max_tokens: int) -> NativeBounds:
        """See `Skeleton`."""
        return NativeBounds(self, self._mark, self._settings)

    def close(self, text: str) -> str:
        """See `Skeleton`: an unfinished title is not a step."""
        return ""

    def is_plan(self, text: str) -> bool:
        """See `Skeleton`."""
        return len(self.titles(text)) > 1

    def has_steps(self, text: str) -> bool:
        """See `Skeleton`."""
        return len(self.titles(text)) > 1

    def guess(self, text: str, most: int) -> list[tuple[str, str]]:
        """See `Skeleton`: another entry, where one may begin. Its title quotes nothing."""
        titles, end = self.entries(text)
        between = text.endswith(LOOSE) and not text[end:].strip()
        if not between or not 0 < len(titles) < self.most:
            return []
        return [("", self._mark.mark(len(titles) + 1).removesuffix(" "))]

    def titles(self, text: str) -> list[str]:
        """The titles of the entries whose bodies are elided, in order."""
        return self.entries(text)[0]

    def entries(self, text: str) -> tuple[list[str], int]:
        """The titles of the entries whose bodies are elided, and where the last of these ends."""
        found: list[str] = []
        at = 0
        after = re.escape(self._mark.after)
        for place in range(1, self.most + 1):
            entry = re.compile(
                rf"\s*{re.escape(self._mark.mark(place).strip())}\s*(?P<title>[^\n]+?){after}\s*"
                r"(?:\.{3}|…)"
            ).match(text, at)
            if entry is None:
                break
            found.append(entry["title"].strip())
            at = entry.end()
        return found, at

    def read(self, text: str) -> Plan | None:
        """See `Skeleton`. The list ends where a title repeats."""
        titles: list[str] = []
        for title in self.titles(text):
            if same(title, [*self.known, *titles]):
                break
            titles.append(title)
        if len(titles) < 2:
            return None
        if fault := fault_of(titles, len(self.known)):
            raise PlanFormatError(fault, text=text)
        return _plan(Plan.of(titles), self._mark)

    def mend(self, text: str) -> None:
        """See `Skeleton`: `read` leaves nothing to mend."""

    def before_steps(self, text: str) -> int | None:
        """See `Skeleton`: the trunk ends before the list in any case."""
        return 0


def _literal(text: str) -> str:
    """A text as the grammar writes it."""
    return json.dumps(text, ensure_ascii=False)


class NativeBounds:
    """Closes a title that is too long; ends a list that repeats itself or is of no use.

    A list ends, too, before the first entry after its second where the model might as well have
    ended: with the bodies left out, it goes on listing for longer.

    Args:
        skeleton: what is written.
        mark: of the list.
        settings: the bounds.
    """

    def __init__(self, skeleton: NativeSkeleton, mark: Mark, settings: ReasoningSettings) -> None:
        self._skeleton, self._mark = skeleton, mark
        self._most = settings.max_title_tokens
        self._may_end = WOULD_END if skeleton.known else MAY_END
        if settings.max_pressure is None:
            self._may_end = 1.0
        self._entries = 1  # the one that it begins with
        self._tokens_at_entry = 0
        self._judged = 0  # of the chosen tokens, those of the entries so far
        self._whole = skeleton.begin  # the text of the entries so far
        self._kept: tuple[str, int] | None = None
        self.over = False

    def note(self, text: str, tokens: int, likely: Callable[[], Sequence[float]] = tuple) -> None:
        """Take note of where the last entry began, and whether it is to be kept.

        The list is over where a line begins that is no entry. Without a grammar it may begin like
        one, and have no ellipsis where it ends.
        """
        titles, end = self._skeleton.entries(text)
        if len(titles) > self._entries:
            self._entries, self._tokens_at_entry = len(titles), tokens
            self._judge(titles, likely())
            self._whole = text[:end] + LOOSE
        rest, mark = text[end:].lstrip(), self._mark.mark(len(titles) + 1).strip()
        begins = mark.startswith(rest) or rest.startswith(mark)
        if not begins or rest.count(NEW_LINE) > self._mark.after.count(NEW_LINE):
            self.over = True

    def _judge(self, titles: Sequence[str], chosen: Sequence[float]) -> None:
        """End the list with its last entry, or before it, if that is called for.

        Args:
            titles: of the entries so far.
            chosen: log-probabilities of the chosen tokens so far.
        """
        *before, last = titles
        fault = fault_of(titles, len(self._skeleton.known))
        full = len(titles) == self._skeleton.most
        if full or fault is not None or same(last, [*self._skeleton.known, *before]):
            self.over = True
        own = chosen[self._judged :]
        certain = 1 if self._skeleton.known else 2
        ends = bool(own) and -math.expm1(own[0]) > self._may_end
        if len(titles) > certain and self._kept is None and ends:
            self.over, self._kept = True, (self._whole, self._judged)
        self._judged = len(chosen)

    def kept(self, text: str) -> tuple[str, slice]:
        """See `Bounds`.

        The second number of a list without empty lines says nothing: in a skeleton an empty line
        comes before it, as if the list were over.
        """
        begin = int(self._mark.numbered and self._mark.gap == TIGHT and not self._skeleton.known)
        text, end = (text, None) if self._kept is None else self._kept
        return text, slice(begin, end)

    def text_to_force(self, text: str, tokens: int) -> str | None:
        """What closes a title that is too long."""
        return self._mark.after if tokens - self._tokens_at_entry > self._most else None


class NativeForm(Form):
    """A markdown list with the marks that the model itself begins with."""

    name = "native"
    stop = ()
    own_prompt = False
    needs_conclusion = False

    def skeleton(
        self, settings: ReasoningSettings, question: str, opened: OpenedStep | None
    ) -> NativeSkeleton:
        """See `Form`. A skeleton always goes on from a head.

        All parts of a list together have no more entries than one that is whole.
        """
        if opened is None:
            raise ValueError("a list begins with a head that the model has written")
        head, known = opened.marks
        if len(known) + 2 > (most := settings.max_branches):
            raise PlanFormatError(
                f"the list has {len(known)} entries already, and no room for two more; at most "
                f"{most} are allowed (max_branches)"
            )
        return NativeSkeleton(settings, head, known)

    def given(self, steps: Sequence[Step]) -> Plan:
        """See `Form`: a numbered list with titles in bold."""
        return _plan(Plan(steps=tuple(steps)), BOLD_NUMBERS)

    def opening(self, plan: Plan, index: int) -> str:
        """See `Form`."""
        prompt = plan.steps[index].prompt
        lead = "" if prompt is None else f"{prompt.strip()}\n\n"
        return f"{lead}{plan.heads[index]}"

    def outline(self, plan: Plan) -> str:
        """See `Form`."""
        entries = (plan.entry(index, ELLIPSIS) for index in range(len(plan.steps)))
        return "".join(f"{entry}\n" for entry in entries) + "\n"

    def strip(self, plan: Plan, index: int) -> str:
        """See `Form`: where a line begins, spaces are a list's depth."""
        return "" if plan.heads[index].endswith(NEW_LINE) else " \t"

    def entry_end(self, plan: Plan) -> EntryEnd:
        """See `Form`."""
        return EntryEnd(replace(_mark_of(plan), gap=plan.gap))

    def join(self, plan: Plan, bodies: Sequence[str]) -> str:
        """See `Form`."""
        return plan.written(bodies)

    def tail(self, plan: Plan) -> str:
        """See `Form`: the model says what follows the last entry."""
        return ""

    def opened(self, text: str, after: Sequence[Plan] = (), before: str = "") -> OpenedStep | None:
        """See `Form`. A head that no entry of a plan may have opens nothing, nor does a procedure.

        The list before may go on: where it might have ended with its bodies left out, it need not
        end after them. It does with its next number, or, without numbers, at once.
        """
        number = _next_number(after)
        text, begin = before + text, len(before)
        for head in heads(text, number):
            if head.start < begin:
                continue
            at_once, alike = not text[: head.start].strip(), bool(after) and _alike(head, after[-1])
            if number is not None and head.mark.first == number:
                if not alike:
                    continue
            elif head.mark.numbered or not (alike and at_once):
                lead = text[: head.start].rstrip().rpartition(NEW_LINE)[2]
                fits = fault_of([head.title]) is None
                fits = fits and not any(map(leads_in_to_steps, (lead, head.title)))
                return OpenedStep(head.title, head.start - begin, (head, ())) if fits else None
            known = _titles_so_far(after)
            repeats = same(head.title, known)
            if not repeats or at_once:
                if at_once:  # with as many empty lines as are in that list
                    head = replace(head, mark=replace(head.mark, gap=after[-1].gap))
                return OpenedStep(head.title, head.start - begin, (head, known), True, repeats)
        return None

    def alone(self, opened: OpenedStep) -> Plan | None:
        """See `Form`."""
        head, known = opened.marks
        return None if known else _plan(Plan.of([head.title]), head.mark)

    def entry_begins(self, plan: Plan) -> str:
        """See `Form`."""
        return _first(_mark_of(plan))

    def may_open(self, line: str, after: Sequence[Plan] = ()) -> bool:
        """See `Form`."""
        return may_be_head(line, _next_number(after))


def _plan(steps: Plan, mark: Mark) -> Plan:
    """Steps as entries of a list with these marks."""
    heads = tuple(mark.head(place, title) for place, title in enumerate(steps.titles, 1))
    return steps.model_copy(update={"heads": heads, "gap": mark.gap, "form": "native"})


def _first(mark: Mark) -> str:
    """The characters with which an entry begins, as a grammar writes them between brackets."""
    if mark.numbered and mark.kind != "heading":
        return "0-9"
    return re.sub(r"([\\\]^-])", r"\\\1", mark.before.strip()[:1])


def _mark_of(plan: Plan) -> Mark:
    head = plan.heads[0] + " "
    number = re.search(r"[0-9]+", head)
    found = first_head(head, None if number is None else int(number[0]))
    return BOLD_NUMBERS if found is None else found.mark  # a title with the marks of a list in it


def _next_number(after: Sequence[Plan]) -> int | None:
    """The number with which the last plan's list goes on; None if it has none."""
    mark = _mark_of(after[-1]) if after else None
    return mark.first + len(after[-1].steps) if mark is not None and mark.numbered else None


def _alike(head: Head, last: Plan) -> bool:
    """Whether a head has the marks of a list, and may be an entry's."""
    return _style(head.mark) == _style(_mark_of(last)) and fault_of([head.title]) is None


def _style(mark: Mark) -> tuple[object, ...]:
    """What the marks of one list have in common."""
    bullet = mark.before.strip()[0] if mark.kind == "bullet" else ""
    return mark.kind, mark.numbered, mark.indent, mark.level, bullet


def _titles_so_far(after: Sequence[Plan]) -> tuple[str, ...]:
    """The titles of a list that several plans are parts of, each but the first going on."""
    titles: tuple[str, ...] = ()
    for place in reversed(range(len(after))):
        plan, mark = after[place], _mark_of(after[place])
        titles = plan.titles + titles
        begins = mark.first == 1
        if not mark.numbered and place and not plan.preamble:
            begins = _style(mark) != _style(_mark_of(after[place - 1]))
        if begins:
            break
    return titles


NATIVE = NativeForm()
