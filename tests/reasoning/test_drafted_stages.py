"""Drafts in the three stages: the same answer in fewer forward passes."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest

from langchain_pos import ParallelReasoningLLM
from langchain_pos.results.data import STEP_MARK
from tests.support.native_list import ASKED, native_llm
from tests.support.scripted import TOKENIZERS, random_llm, scripted_llm

NAMES = ["Ann Lee", "Ben Ray", "Cleo Fox", "Dora Kim", "Egon Orr", "Fay Dunn"]
QUESTION = "\n".join(f"The student named {name} is {20 + i} old." for i, name in enumerate(NAMES))
RULES = {
    f"{QUESTION}\n\nAnswer:\n": "Let us see.\n"
    + "".join(f"{STEP_MARK}{name}:......\n" for name in NAMES)
    + f"{STEP_MARK}%%%%",
    **{
        f"{STEP_MARK}{name}:": f" The student named {name} is {20 + i} old, wanted 22"
        for i, name in enumerate(NAMES)
    },
    f"{STEP_MARK}%%%%\n": "name: Cleo Fox, for the student named Cleo Fox is 22 old.",
}


def test_drafts_save_passes_in_every_stage_and_change_nothing() -> None:
    """Titles, bodies and conclusion quote the question: each stage takes fewer passes."""
    plain = scripted_llm(RULES)[0].invoke(QUESTION)
    quick = scripted_llm(RULES, drafts=True)[0].invoke(QUESTION)
    assert plain.mode == "parallel"
    assert plain.plan is not None
    assert list(plain.plan.titles) == NAMES
    assert quick.text == plain.text
    assert quick.blocks[0].plan == plain.blocks[0].plan
    assert plain.drafts.drafted == 0
    assert 0 < quick.drafts.accepted <= quick.drafts.drafted
    for stage in ("plan", "expand", "conclude"):
        assert getattr(quick.forward_passes, stage) < getattr(plain.forward_passes, stage), stage


def test_the_record_pattern_drafts_whole_titles() -> None:
    """Behind the second title the others are guessed, several in one pass."""
    llm, script = scripted_llm(RULES, drafts=True)
    llm.engine.scheduler.budget.draft_rows = 64
    llm.invoke(QUESTION)
    rows = [feed.text for feeds in script.passes for feed in feeds]
    assert any("Cleo Fox:......\n####Dora Kim:......\n####" in row for row in rows)


def hesitate(llm: ParallelReasoningLLM) -> None:
    """Let the model be in two minds about letters; one is for what no title may have in it."""
    tokenizer, run = llm.engine.tokenizer, llm.engine.forward.run
    barred = tokenizer.convert_tokens_to_ids("|")

    def hesitating(*args: Any) -> Any:
        logits = run(*args)
        for row in logits:
            if str(tokenizer.decode([int(row.argmax())])).strip().isalpha():
                row[barred] = float(row.max()) - 0.5
        return logits

    llm.engine.forward.run = hesitating  # type: ignore[method-assign]


@pytest.mark.parametrize(("before", "after"), [("1. **", "**:"), ("- ", ":"), ("### ", "\n")])
def test_a_list_is_guessed_to_have_another_entry(before: str, after: str) -> None:
    """Its mark is fed along with the end of the entry before it: a pass less for each entry."""
    marks = [before.replace("1", str(place)) for place in range(1, len(NAMES) + 1)]
    heads = [f"{mark}{name}{after}" for mark, name in zip(marks, NAMES, strict=True)]
    elided = [f"{head}{'' if after == chr(10) else ' '}...\n\n" for head in heads]
    rules = {
        ASKED: f"Some:\n\n{heads[0]}",
        elided[0]: f"{''.join(elided[1:])}T",
        **dict.fromkeys(heads, "Yes." if after == "\n" else " Yes."),
    }
    room = {"visibility": "isolated", "max_plan_tokens": 512, "max_title_tokens": 64}
    room["max_pressure"] = 1.0
    llm, script = native_llm(rules, drafts=True, **room)
    hesitate(llm)
    llm.engine.scheduler.budget.draft_rows = 64
    quick = llm.invoke("Who?")
    fed = [feed.text for feeds in script.passes for feed in feeds]
    other, _ = native_llm(rules, **room)
    hesitate(other)
    plain = other.invoke("Who?")
    assert quick.plan is not None
    assert list(quick.plan.titles) == NAMES
    assert (quick.text, quick.plan) == (plain.text, plain.plan)
    assert quick.plan.pressure is not None
    assert quick.plan.pressure > 0.1
    for mark in marks[2:]:
        assert any(f"...\n\n{mark.strip()}" in text for text in fed), mark
    assert quick.forward_passes.plan <= plain.forward_passes.plan - (len(NAMES) - 2)


def test_a_stream_with_drafts_adds_up() -> None:
    """Several tokens at once make one chunk or more; together they are the result."""
    llm, _ = scripted_llm(RULES, drafts=True)
    chunks = list(llm.stream(QUESTION))
    assert reduce(add, chunks).text == llm.invoke(QUESTION).text


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_bounds_close_at_the_same_token_with_drafts(tokenizer: str, temperature: float) -> None:
    """Random weights, greedy and sampled: every budget ends what it ends without drafts."""
    llm = random_llm(TOKENIZERS[tokenizer](), allow_decline=False, seed=3, temperature=temperature)
    for question in (QUESTION, "What is what is what is what is it?"):
        plain = llm.invoke(question, drafts=False)
        quick = llm.invoke(question)
        assert quick.text == plain.text
        assert quick.usage == plain.usage
        assert [block.plan for block in quick.blocks] == [block.plan for block in plain.blocks]
        assert quick.forward_passes.total <= plain.forward_passes.total
    assert llm.engine.slots_in_use == 0
