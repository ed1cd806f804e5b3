"""The same questions answered in both modes: whether quality holds on your own data.

`compare_modes` asks, a `ModeComparison` holds what came of it and shows it as a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_pos.errors import InvalidRequestError
from langchain_pos.results.rendering import escape_markdown
from langchain_pos.runnables.inputs import as_request

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from langchain_pos.results.result import ReasoningResult
    from langchain_pos.runnables.inputs import ReasoningInput
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

_LONGEST = 48
"""Characters of a text in a cell of the table."""
# A letter or digit of a script that sets words apart by spaces: Thai, Lao, Burmese, Khmer, Japanese
# and Chinese do not, and Korean joins particles to its words.
_WORDLY = (
    "[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


def last_line(result: ReasoningResult) -> str:
    """The last line of the conclusion, where an answer in a form of its own stands.

    Without a conclusion, that of the whole text.
    """
    return ((result.conclusion or result.text).strip().splitlines() or [""])[-1].strip()


def same_words(one: str, other: str) -> bool:
    """Whether two texts are equal but for case, white space, and a full stop at the end."""
    return _bare(one) == _bare(other)


def holds(answer: str, expected: str) -> bool:
    """Whether an answer has what is expected as whole words, whatever its case and white space.

    "no" is not in "another", nor 3 in 13 or 3.5.
    """
    wanted = _bare(expected)
    start = rf"(?:(?<!{_WORDLY})|(?!{_WORDLY}))" + (r"(?<!\d[.,])" if wanted[:1].isdigit() else "")
    end = rf"(?:(?!{_WORDLY})|(?<!{_WORDLY}))" + (r"(?![.,]\d)" if wanted[-1:].isdigit() else "")
    return re.search(start + re.escape(wanted) + end, _bare(answer)) is not None


@dataclass(frozen=True)
class ComparedAnswer:
    """One question, answered in both modes.

    Attributes:
        question: as asked.
        parallel: the answer in parallel; its `mode` says whether it was written so.
        sequential: the answer of the same model without branches.
        answers: what was compared of the two, in this order.
        agrees: whether they agree.
        correct: whether each holds what is expected; None where nothing is.
    """

    question: str
    parallel: ReasoningResult
    sequential: ReasoningResult
    answers: tuple[str, str]
    agrees: bool
    correct: tuple[bool, bool] | None = None


@dataclass(frozen=True)
class ModeComparison:
    """All questions in both modes; `str()` is a table, and a notebook shows it as one."""

    rows: tuple[ComparedAnswer, ...]

    @property
    def differences(self) -> tuple[ComparedAnswer, ...]:
        """The questions whose answers do not agree."""
        return tuple(row for row in self.rows if not row.agrees)

    @property
    def agreement(self) -> float:
        """Share of the questions whose answers agree."""
        return sum(row.agrees for row in self.rows) / len(self.rows)

    @property
    def parallel_share(self) -> float:
        """Share of the questions that were in fact answered in parallel."""
        return sum(row.parallel.mode == "parallel" for row in self.rows) / len(self.rows)

    @property
    def correct(self) -> tuple[float, float] | None:
        """Shares of correct answers, in parallel and sequentially; None without expectations."""
        known = [row.correct for row in self.rows if row.correct is not None]
        if not known:
            return None
        return (
            sum(parallel for parallel, _ in known) / len(known),
            sum(sequential for _, sequential in known) / len(known),
        )

    @property
    def passes(self) -> tuple[int, int]:
        """Forward passes of all answers, in parallel and sequentially."""
        return (
            sum(row.parallel.forward_passes.total for row in self.rows),
            sum(row.sequential.forward_passes.total for row in self.rows),
        )

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of all answers, in parallel and sequentially."""
        return (
            sum(row.parallel.timings.total for row in self.rows),
            sum(row.sequential.timings.total for row in self.rows),
        )

    def summary(self) -> str:
        """The shares, passes and seconds as one sentence each."""
        (parallel, sequential), (quick, slow) = self.passes, self.seconds
        lines = [
            f"{self.agreement:.0%} of {len(self.rows)} answers agree, "
            f"{self.parallel_share:.0%} were written in parallel.",
            f"{parallel} forward passes in parallel, {sequential} sequentially; "
            f"{quick:.1f} s and {slow:.1f} s.",
        ]
        if self.correct is not None:
            right, also = self.correct
            lines.insert(1, f"{right:.0%} are correct in parallel, {also:.0%} sequentially.")
        return "\n".join(lines)

    def __str__(self) -> str:
        cells = [_HEAD, *self._cells()]
        widths = [max(len(row[place]) for row in cells) for place in range(len(_HEAD))]
        lines = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join([*lines, "", self.summary()])

    def _repr_markdown_(self) -> str:
        rows = [" | ".join(map(escape_markdown, row)) for row in self._cells()]
        table = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|", *(f"| {r} |" for r in rows)]
        return "\n".join(table) + "\n\n" + escape_markdown(self.summary())

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self.rows:
            passes = row.parallel.forward_passes.total, row.sequential.forward_passes.total
            yield (
                _cut(row.question.splitlines()[-1]),
                *(_cut(answer) for answer in row.answers),
                "agree" if row.agrees else "differ",
                "" if row.correct is None else "/".join("ny"[right] for right in row.correct),
                f"{passes[0]} / {passes[1]}",
            )


_HEAD = ("question", "in parallel", "sequentially", "", "correct", "passes")


def compare_modes(
    llm: ParallelReasoningLLM,
    questions: Sequence[ReasoningInput],
    *,
    expected: Sequence[str] | None = None,
    answer: Callable[[ReasoningResult], str] = last_line,
    agree: Callable[[str, str], bool] = same_words,
    config: RunnableConfig | None = None,
    **settings: Any,
) -> ModeComparison:
    """Answer the same questions in parallel and sequentially, and compare.

    The questions are answered one after the other, so that passes and seconds are those of each.

    Args:
        llm: answers, in both modes with the same settings.
        questions: in any form that `llm` takes.
        expected: what a correct answer to each question contains, as whole words, in the part that
            is compared.
        answer: the part of a result that is compared. By default the last line of its conclusion,
            or of its text where it has none, which suits questions that ask for their answer in a
            form; give `attrgetter("text")` or your own.
        agree: whether two such parts mean the same. By default equal words; for free text give a
            judge of your own, such as a call of another model.
        config: for LangChain's callbacks and tags.
        settings: for both modes, as for `llm.invoke`.

    Raises:
        InvalidRequestError: there is no question, or not one expected answer for each.
    """
    for name, given in (("questions", questions), ("expected", expected)):
        if isinstance(given, str):
            raise InvalidRequestError(f"{name}={given!r} is a text, not a list; write [{given!r}]")
    if not questions:
        raise InvalidRequestError("there are no questions to compare; give at least one")
    for place, words in enumerate(expected or ()):
        if not _bare(words):
            raise InvalidRequestError(
                f"expected[{place}] is {words!r}, which every answer contains; give words that "
                "a correct one contains"
            )
    if expected is not None and len(expected) != len(questions):
        raise InvalidRequestError(
            f"{len(expected)} expected answers are given for {len(questions)} questions; give one "
            "for each"
        )
    rows = []
    for place, question in enumerate(questions):
        results = [
            llm.invoke(question, config, **{**settings, "mode": mode})
            for mode in ("parallel", "sequential")
        ]
        one, other = (answer(result) for result in results)
        correct = None
        if expected is not None:
            correct = holds(one, expected[place]), holds(other, expected[place])
        asked = as_request(question).question
        rows.append(
            ComparedAnswer(asked, results[0], results[1], (one, other), agree(one, other), correct)
        )
    return ModeComparison(tuple(rows))


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
