"""Ten calls on one model folder: what `ChatParallelReasoning` and `ChatHuggingFace` do.

Each call has one observed outcome in a few words. Ours are held to what they must be; those of
`ChatHuggingFace` are recorded. Both columns of the table in `docs/chat_model.md` are compared with
what is observed here, so the table cannot go stale. Where langchain-huggingface is not installed,
its column alone is not looked at.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_pos import ChatParallelReasoning, embedded_model_path
from langchain_pos.model_source import EngineCache

PAGE = Path(__file__).parents[2] / "docs" / "chat_model.md"
TOKENS = 64
QUESTION = "Hello"


class Point(BaseModel):
    """A point."""

    x: int = Field(ge=0, le=99)
    y: int = Field(ge=0, le=99)


@tool
def add(a: Annotated[int, Field(ge=0, le=99)], b: Annotated[int, Field(ge=0, le=99)]) -> int:
    """Add two numbers."""
    return a + b


class Passes:
    """The forward passes of a transformers model, and what the first of them read."""

    def __init__(self) -> None:
        self.count = 0
        self.read: list[int] = []

    def hook(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self.count == 0 and ids is not None:
            self.read = ids[0].tolist()
        self.count += 1


class Side:
    """One of the two: its chat model, and the transformers model behind it."""

    def __init__(self, make: Callable[..., Any], model: Any, tokenizer: Any) -> None:
        self.make = make
        self.model = model
        self.tokenizer = tokenizer

    @contextmanager
    def watched(self) -> Iterator[Passes]:
        """Counts forward passes inside."""
        passes = Passes()
        handle = self.model.register_forward_hook(passes.hook, with_kwargs=True)
        try:
            yield passes
        finally:
            handle.remove()


# ----------------------------------------------------------------------- the calls


def invoke(side: Side) -> str:
    """Is it the answer alone?"""
    text = side.make().invoke(QUESTION).text
    return "the prompt's tokens, then the answer" if "<|user|>" in text else "the answer"


def stream(side: Side) -> str:
    """Do the pieces add up to what `invoke` returns?"""
    whole = side.make().invoke(QUESTION).text
    pieces = [chunk.text for chunk in side.make().stream(QUESTION)]
    return _pieces(whole, pieces)


def astream(side: Side) -> str:
    """The same beside an event loop."""

    async def collect() -> list[str]:
        return [chunk.text async for chunk in side.make().astream(QUESTION)]

    return _pieces(side.make().invoke(QUESTION).text, asyncio.run(collect()))


def _pieces(whole: str, pieces: list[str]) -> str:
    told = "in pieces" if sum(map(bool, pieces)) > 1 else "in one piece"
    return told if "".join(pieces) == whole else f"{told}, and not what `invoke` returns"


def batch(side: Side) -> str:
    """Do four inputs take fewer forward passes together than one after the other?"""
    inputs = ["Hello", "Good morning", "How are you?", "Who?"]
    chat = side.make()
    with side.watched() as alone:
        for each in inputs:
            chat.invoke(each)
    with side.watched() as together:
        chat.batch(inputs)
    shared = together.count <= alone.count / 2
    return "shared forward passes" if shared else "as many forward passes as one after the other"


def stop(side: Side) -> str:
    """Does the answer end before the text?"""
    whole = side.make().invoke(QUESTION).text
    word = whole.split()[-3]
    cut = side.make().invoke(QUESTION, stop=[word]).text
    return "ends before the text" if word not in cut and whole.startswith(cut) else "ignored"


def tools(side: Side) -> str:
    """With `tool_choice="any"`: is there a call, and is it valid?"""
    bound = side.make().bind_tools([add], tool_choice="any")
    with side.watched() as passes:
        message = bound.invoke("What is 3 + 4?")
    told = "add" in side.tokenizer.decode(passes.read)
    for call in message.tool_calls:
        add.get_input_schema().model_validate(call["args"])
    outcome = "a valid call" if message.tool_calls else "no call"
    return outcome if told else f"{outcome}; the tools do not reach the model"


def tool_history(side: Side) -> str:
    """Does the model read the call and its result?"""
    call = {"name": "add", "args": {"a": 31, "b": 46}, "id": "1", "type": "tool_call"}
    messages = [
        HumanMessage("What is it?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("It is 77.", tool_call_id="1"),
    ]
    with side.watched() as passes:
        side.make().invoke(messages)
    text = side.tokenizer.decode(passes.read)
    seen = {"the call": "31" in text and "46" in text, "its result": "77" in text}
    missing = [name for name, is_seen in seen.items() if not is_seen]
    return "read" if not missing else f"the model does not see {' and '.join(missing)}"


def structured_output(side: Side) -> str:
    """Is it an object of the schema?"""
    found = side.make().with_structured_output(Point).invoke("Which point?")
    return "a validated object" if isinstance(found, Point) else f"`{found}`"


def usage(side: Side) -> str:
    """Are the tokens counted?"""
    with side.watched() as passes:
        message = side.make().invoke(QUESTION)
    counted = message.usage_metadata
    if counted is None:
        return "none"
    right = counted["input_tokens"] == len(passes.read) and counted["output_tokens"] <= TOKENS
    return "counted" if right else "wrong"


def cache(side: Side) -> str:
    """Is an answer kept, and is one with another budget told apart from it?"""
    kept = InMemoryCache()
    first = side.make(cache=kept).invoke(QUESTION)
    with side.watched() as again:
        side.make(cache=kept).invoke(QUESTION)
    if again.count:
        return "not kept"
    other = side.make(cache=kept, tokens=4).invoke(QUESTION)
    apart = other.text != first.text
    return "kept; other settings, another entry" if apart else "kept; other settings get it too"


CALLS: dict[str, tuple[Callable[[Side], str], str]] = {
    "`invoke`": (invoke, "the answer"),
    "`stream`": (stream, "in pieces"),
    "`astream`": (astream, "in pieces"),
    "`batch`": (batch, "shared forward passes"),
    "`stop`": (stop, "ends before the text"),
    '`bind_tools`, `tool_choice="any"`': (tools, "a valid call"),
    "tool call and result in the history": (tool_history, "read"),
    "`with_structured_output`": (structured_output, "a validated object"),
    "`usage_metadata`": (usage, "counted"),
    "cache": (cache, "kept; other settings, another entry"),
}


def observed(side: Side, call: str) -> str:
    """The outcome in a few words; an error by its class."""
    try:
        return CALLS[call][0](side)
    except Exception as error:  # noqa: BLE001 - recorded as what one gets
        return f"`{type(error).__name__}`"


def table() -> dict[str, tuple[str, str]]:
    """Both columns of the table in the docs, by call."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {call: (ours, theirs) for call, ours, theirs in rows if call in CALLS}


# ------------------------------------------------------------------------ the sides


@pytest.fixture(scope="module")
def ours() -> Side:
    """`ChatParallelReasoning` on the shipped folder."""
    engines = EngineCache()

    def make(*, tokens: int = TOKENS, **fields: Any) -> ChatParallelReasoning:
        return ChatParallelReasoning(
            model=str(embedded_model_path()),
            engines=engines,
            max_tokens=tokens,
            mode="sequential",
            prefix_cache_tokens=0,  # so that the first pass reads the whole prompt
            **fields,
        )

    engine = make().engine
    return Side(make, engine.model, engine.tokenizer)


@pytest.fixture(scope="module")
def theirs() -> Side:
    """`ChatHuggingFace` on the same folder, as its documentation makes it."""
    huggingface = pytest.importorskip("langchain_huggingface")
    loaded: dict[int, Any] = {}

    def make(*, tokens: int = TOKENS, **fields: Any) -> Any:
        if tokens not in loaded:
            loaded[tokens] = huggingface.HuggingFacePipeline.from_model_id(
                str(embedded_model_path()),
                task="text-generation",
                pipeline_kwargs={"max_new_tokens": tokens, "do_sample": False},
            )
        return huggingface.ChatHuggingFace(llm=loaded[tokens], **fields)

    make()
    pipeline = loaded[TOKENS].pipeline
    return Side(make, pipeline.model, pipeline.tokenizer)


@pytest.mark.parametrize("call", CALLS)
def test_ours(ours: Side, call: str) -> None:
    """Each of the ten calls does what it must, and the docs say so."""
    outcome = CALLS[call][0](ours)
    assert outcome == CALLS[call][1]
    assert table()[call][0] == outcome


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_theirs(theirs: Side, call: str) -> None:
    """The docs say what `ChatHuggingFace` was seen to do."""
    assert table()[call][1] == observed(theirs, call)


def test_the_table_has_all_calls() -> None:
    """Ten rows, none twice."""
    assert list(table()) == list(CALLS)
    assert len(CALLS) == 10
