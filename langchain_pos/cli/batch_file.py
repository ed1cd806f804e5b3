"""The files of `langchain-pos batch`: the rows to answer, and where the answers go.

A row of the input has `question` or `prompt`, and optionally `id` (otherwise its line number) and
`steps`. A row of the output has

    id       the input row's
    text     the whole answer; null if there is none
    error    what went wrong; null if nothing did
    result   the `ReasoningResult`; null if there is none

Rows are appended as they finish, so their order differs from the input's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from langchain_pos.cli.running import read_text
from langchain_pos.errors import InvalidRequestError, ParallelReasoningError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from langchain_pos.results.data import Mode
    from langchain_pos.results.result import ReasoningResult
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

RowId = str | int

ROW_START = b'{"id": '
"""The beginning of every row of the output, complete or cut short."""


@dataclass
class Row:
    """One row of the input.

    Attributes:
        id: the row's own, or its line number.
        request: the runnable's input; None if the row is unusable.
        error: why the row is unusable.
    """

    id: RowId
    request: str | dict[str, Any] | None = None
    error: str | None = None


@dataclass
class BatchFile:
    """The rows to answer, and the file that collects the answers.

    Attributes:
        target: the output file.
        todo: rows that the output lacks.
        errors: by id, the error of every input row that has an output row; None if it was
            answered.
    """

    target: Path
    todo: list[Row] = field(default_factory=list)
    errors: dict[RowId, str | None] = field(default_factory=dict)
    skipped: int = 0

    @classmethod
    def open(cls, source: Path, target: Path, *, retry_failed: bool = False) -> BatchFile:
        """Read both files and determine what is left to do.

        Args:
            source: the questions.
            target: the answers so far; need not exist.
            retry_failed: remove rows with an error from the output and ask again.

        Raises:
            InvalidRequestError: a file cannot be used, or two rows have the same id.
        """
        if source.resolve() == target.resolve():
            raise InvalidRequestError(f"input and output are the same file, {source}; choose two")
        rows = _read_rows(source)
        done = _read_answers(target)
        if retry_failed:
            kept = [answer for answer in done if answer["error"] is None]
            if len(kept) < len(done):
                _rewrite(target, kept)
                done = kept
        errors = {answer["id"]: answer["error"] for answer in done}
        todo = [row for row in rows if row.id not in errors]
        known = {row.id: errors[row.id] for row in rows if row.id in errors}
        return cls(target=target, todo=todo, errors=known, skipped=len(known))

    @property
    def failed(self) -> int:
        """Number of input rows with an error, including earlier runs."""
        return sum(error is not None for error in self.errors.values())

    def summary(self) -> str:
        """One line: counts of answers and failures, and the file."""
        answered = len(self.errors) - self.failed
        parts = [f"{answered} answered", f"{self.failed} failed"]
        if self.skipped:
            parts.append(f"{self.skipped} of them before")
        if self.failed:
            parts.append("--retry-failed asks them again")
        return f"{', '.join(parts)}: {self.target}"

    def answer(
        self, llm: ParallelReasoningLLM, console: Console, mode: Mode, max_concurrency: int
    ) -> None:
        """Answer all rows of `todo` together and append each as it finishes."""
        asked = [(row, row.request) for row in self.todo if row.request is not None]
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.file.isatty(),
        )
        with self.target.open("a", encoding="utf-8") as out, progress:
            task = progress.add_task("Answering", total=len(self.todo))

            def keep(row: Row, outcome: ReasoningResult | Exception | str) -> None:
                answer = _answer(row.id, outcome)
                out.write(json.dumps(answer, ensure_ascii=False) + "\n")
                out.flush()
                self.errors[row.id] = answer["error"]
                progress.advance(task)

            for row in self.todo:
                if row.error is not None:
                    keep(row, row.error)
            if not asked:
                return
            config: RunnableConfig = {"max_concurrency": max_concurrency}
            for index, outcome in llm.batch_as_completed(
                [request for _, request in asked], config, return_exceptions=True, mode=mode
            ):
                keep(asked[index][0], outcome)


def _answer(row_id: RowId, outcome: ReasoningResult | Exception | str) -> dict[str, Any]:
    """A row of the output."""
    from langchain_pos.cli.live import faults

    answer: dict[str, Any] = {"id": row_id, "text": None, "error": None, "result": None}
    if isinstance(outcome, str):
        answer["error"] = outcome
    elif isinstance(outcome, ParallelReasoningError):
        answer["error"] = str(outcome)
    elif isinstance(outcome, Exception):
        answer["error"] = f"{type(outcome).__name__}: {outcome}"
    else:
        answer["text"] = outcome.text
        answer["error"] = "; ".join(faults(outcome)) or None
        answer["result"] = outcome.model_dump(mode="json")
    return answer


def _read_rows(source: Path) -> list[Row]:
    """The input's rows; blank lines are skipped, unusable ones carry the reason."""
    rows: dict[RowId, Row] = {}
    for number, line in enumerate(read_text(source).split("\n"), start=1):
        if not line.strip():
            continue
        row = _read_row(number, line)
        if row.id in rows:
            raise InvalidRequestError(
                f"{source} line {number}: the id {row.id!r} was used before; "
                "give every row its own, or omit all ids to use line numbers"
            )
        rows[row.id] = row
    if not rows:
        raise InvalidRequestError(f"{source} has no rows; write one JSON object per line")
    return list(rows.values())


def _read_row(number: int, line: str) -> Row:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        return Row(id=number, error=f"line {number} is not JSON: {error}")
    if not isinstance(raw, dict):
        return Row(id=number, error=f"line {number} is a {type(raw).__name__}, not an object")
    row_id = raw.get("id", number)
    if not isinstance(row_id, (str, int)):
        return Row(id=number, error=f"line {number}: id is {row_id!r}; use a string or a number")
    question = raw.get("question", raw.get("prompt"))
    if not isinstance(question, str) or not question.strip():
        return Row(id=row_id, error=f"line {number} has no text in 'question' or 'prompt'")
    steps = raw.get("steps")
    if steps is None:
        return Row(id=row_id, request=question)
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        return Row(id=row_id, error=f"line {number}: steps is {steps!r}; use a list of titles")
    return Row(id=row_id, request={"question": question, "steps": steps})


def _read_answers(target: Path) -> list[dict[str, Any]]:
    """The output's rows so far, without a last line cut short by an interruption."""
    try:
        with target.open("ab+") as out:
            out.seek(0)
            content = out.read()
            whole, _, rest = content.rpartition(b"\n")
            answers = [
                _read_answer(target, number, line)
                for number, line in enumerate(whole.split(b"\n") if whole else (), start=1)
            ]
            if rest[: len(ROW_START)] != ROW_START[: len(rest)]:
                raise _not_ours(target, len(answers) + 1)
            out.truncate(len(content) - len(rest))
    except OSError as error:
        raise InvalidRequestError(f"cannot write {target}: {error.strerror}") from error
    return answers


def _read_answer(target: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
        return {**answer, "id": answer["id"], "error": answer["error"]}
    except (ValueError, KeyError, TypeError) as error:
        raise _not_ours(target, number) from error


def _not_ours(target: Path, number: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{target} line {number} is not an answer from an earlier run; choose another file"
    )


def _rewrite(target: Path, answers: list[dict[str, Any]]) -> None:
    """Rewrite the whole output atomically."""
    fresh = target.with_name(target.name + ".new")
    text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(target)
