"""`langchain-pos chat`: questions that follow one another, answered on the terminal."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_pos.cli.options import (
    BudgetOption,
    ConclusionBudget,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    SeedOption,
    SequentialBudget,
    SequentialOption,
    TemperatureOption,
    exit_codes,
    say,
)
from langchain_pos.cli.running import is_live, load, mode_of, new_console
from langchain_pos.errors import ParallelReasoningError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from langchain_pos.results.data import Mode
    from langchain_pos.results.result import ReasoningResult
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

HELP = "/new forgets the conversation, /exit or Ctrl+D ends it, Ctrl+C stops an answer"
COMMANDS = "/new, /help and /exit"
_COMMAND = re.compile(r"/\w*")


def _is_command(line: str) -> bool:
    """Whether a line is meant as a command: "/tmp is full" and "/etc/hosts …" are questions."""
    word, _, rest = line.partition(" ")
    known = COMMANDS.replace(" and", ",").split(", ")
    is_word = _COMMAND.fullmatch(word) is not None
    return is_word and (not rest.strip() or bool(get_close_matches(word, known)))


def chat(
    model: ModelOption = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions that the model should always follow.")
    ] = None,
    sequential: SequentialOption = False,
    max_branch_tokens: BudgetOption = None,
    max_conclusion_tokens: ConclusionBudget = None,
    max_sequential_tokens: SequentialBudget = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer questions that follow one another.

    Every answer is shown like that of `ask`, and stays part of the conversation. Without a terminal
    each line of stdin is a question.
    """
    with exit_codes(debug):
        llm = load(
            model=model,
            max_branch_tokens=max_branch_tokens,
            max_conclusion_tokens=max_conclusion_tokens,
            max_sequential_tokens=max_sequential_tokens,
            temperature=temperature,
            seed=seed,
            device=device,
            dtype=dtype,
            quantization=quantization,
        )
        console = new_console()
        if sys.stdin.isatty():
            say(HELP)
        talk = Conversation(llm, console, mode_of(sequential), system)
        for line in _lines(console):
            if line == "/exit":
                break
            if line == "/new":
                talk.forget()
            elif line == "/help":
                say(HELP)
            elif _is_command(line):
                say(f"unknown command {line!r}; use {COMMANDS}, on a line of its own")
            elif line:
                talk.ask(line)


@dataclass
class Conversation:
    """What has been asked and answered so far.

    Attributes:
        llm: answers.
        console: where answers are shown.
        mode: how.
        system: precedes every conversation; None for nothing.
        messages: `(role, text)` of each turn.
    """

    llm: ParallelReasoningLLM
    console: Console
    mode: Mode
    system: str | None = None
    messages: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start again."""
        self.messages = [] if self.system is None else [("system", self.system)]

    def ask(self, question: str) -> None:
        """Answer a question; it and its answer become part of the conversation.

        So does an answer that is interrupted, as far as it was written. A question that cannot be
        answered is left out again.
        """
        from langchain_pos.cli.live import Interrupted, closing_line, faults, remarks, show_stream

        asked = [*self.messages, ("user", question)]
        request: dict[str, Any] = {"question": question, "messages": asked}
        live = is_live(self.console)
        answer: ReasoningResult | None = None
        try:
            chunks = self.llm.stream(request, mode=self.mode)
            answer = show_stream(self.console, chunks, live=live)
            typer.echo(closing_line(answer), err=not live)
            for line in (*remarks(answer), *faults(answer)):
                say(line)
        except Interrupted as stopped:
            answer = stopped.result
            say("interrupted; what was written stays in the conversation")
        except ParallelReasoningError as error:
            say(f"{error} (/new forgets the conversation)")
        if answer is not None and answer.text.strip():
            self.messages = [*asked, ("assistant", answer.text)]


def _lines(console: Console) -> Iterator[str]:
    """What the user types, a line each, to the end of the input; Ctrl+C drops a line."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # lets the user edit the line, and brings back earlier ones
    while True:
        try:
            yield console.input("[bold]>[/] ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print()
