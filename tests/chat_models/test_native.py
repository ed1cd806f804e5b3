"""Answers in native form as messages: the whole answer is the text, in reading order."""

from __future__ import annotations

import pytest

from langchain_pos import ChatParallelReasoning
from langchain_pos.chat_models.reading_order import ReadingOrder
from langchain_pos.results.data import BranchResult, Plan
from tests.support.native_list import GOES_ON, LIST, NATIVE, TIGHT, WRITTEN
from tests.support.scripted import scripted_llm


def native_chat(
    rules: dict[str, str | list[str]] = LIST, **fields: object
) -> ChatParallelReasoning:
    """A chat model over the scripted model that writes a list."""
    llm, _ = scripted_llm(rules, **NATIVE)
    settings = {name: getattr(llm, name) for name in ("prompts", *NATIVE)}
    return ChatParallelReasoning.from_engine(llm.engine, **{**settings, **fields})


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_the_text_is_the_whole_answer(version: str) -> None:
    """Lead-in, list and conclusion; the outline is reasoning."""
    chat = native_chat(output_version=version)
    message = chat.invoke("Who?")
    assert message.text == WRITTEN
    (thought,) = [b["reasoning"] for b in message.content_blocks if b["type"] == "reasoning"]
    assert thought.startswith("1. **Ann**: ...\n\n2. **Ben**: ...")
    assert message.response_metadata["mode"] == "parallel"


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("rules", [LIST, GOES_ON, TIGHT])
def test_a_stream_adds_up_to_the_same_text(version: str, rules: dict[str, str | list[str]]) -> None:
    """The first branch live, the others as they end, nothing out of order."""
    chat = native_chat(rules, output_version=version)
    pieces = [chunk.text for chunk in chat.stream("Who?")]
    assert chat.invoke("Who?").response_metadata["mode"] == "parallel"
    assert "".join(pieces) == chat.invoke("Who?", mode="sequential").text
    assert sum(bool(piece) for piece in pieces) > 5


def test_an_answer_without_a_list_is_plain_text() -> None:
    """Nothing of it counts as reasoning."""
    message = native_chat({"Who?\n\nAnswer:\n": "Ben, I think."}).invoke("Who?")
    assert message.text == "Ben, I think."
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_token_details"]["reasoning"] == 0


def test_a_text_with_a_gap_was_cut() -> None:
    """Wherever it ends: a branch that its budget cut shows in `finish_reason`."""
    assert native_chat().invoke("Who?").response_metadata["finish_reason"] == "stop"
    metadata = native_chat(max_branch_tokens=4).invoke("Who?").response_metadata
    assert metadata["reasoning"]["finish_reason"] == "stop"
    assert metadata["finish_reason"] == "length"


def test_branches_wait_for_those_before_them() -> None:
    """Pieces come in any order and are read in the plan's."""
    plan = Plan.of(["A", "B", "C"])
    heads = ("- A:", "- B:", "- C:")
    plan = plan.model_copy(update={"form": "native", "heads": heads, "gap": "\n"})
    order = ReadingOrder(plan)
    text = order.begin()
    for index, piece, ended in [
        (2, "cc", True), (0, "a", False), (1, "\n  b", False), (0, "a", False),
        (0, "", True), (1, "b", False), (1, "", True),
    ]:  # fmt: skip
        branch = BranchResult(index=index, title=plan.titles[index], text=piece)
        text += order.take(branch, ended=ended)
    assert text == plan.written(["aa", "\n  bb", "cc"]) == "- A: aa\n- B:\n  bb\n- C: cc"
