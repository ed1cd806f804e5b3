"""`join="reuse"`: the conclusion sees the branches where they lie."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
import torch

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.engine.forest.segments import Ledger
from tests.support.scripted import (
    FURTHER,
    STUDENTS,
    TOKENIZERS,
    random_llm,
    scripted_llm,
    without_clocks,
)


def both(llm: ParallelReasoningLLM, question: Any, **kwargs: Any) -> list[ReasoningResult]:
    """The same question with either join."""
    return [llm.invoke(question, join=join, **kwargs) for join in ("reprefill", "reuse")]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("visibility", ["isolated", "titles"])
def test_the_branches_are_the_same_with_either_join(
    tokenizer: str, drafts: bool, visibility: str
) -> None:
    """Stage 2 does not know how it will be joined; all slots are free afterwards."""
    llm = random_llm(TOKENIZERS[tokenizer](), drafts=drafts, visibility=visibility)
    for seed in range(4):
        ask = {"question": f"Who is number {seed}?", "steps": ["Ann"]}
        fed, reused = both(llm, ask, temperature=0.7, seed=seed)
        # A random conclusion may open a further block, and the two joins read differently.
        assert without_clocks(fed)["blocks"][0] == without_clocks(reused)["blocks"][0]
        assert fed.branches[0].text
    ask = {"question": "Who?", "steps": ["Ann", "Ben", "Cleo"]}
    fed, reused = both(llm, ask)
    assert [b.text for b in fed.branches] == [b.text for b in reused.branches]
    assert llm.engine.slots_in_use == 0


def test_what_is_fed_for_a_join() -> None:
    """The marks behind the branches, and what a branch had written and not read: no more."""
    llm, script = scripted_llm(STUDENTS)
    fed, reused = both(llm, "Who?")
    assert without_clocks(fed)["conclusion"] == without_clocks(reused)["conclusion"] == "name: Ben"
    joins = [feeds for feeds in script.passes if any("%%%%\n" in feed.text for feed in feeds)]
    assert [feed.text for feed in joins[0]] == [
        "####Ann: GPA 3.1, outside\n####Ben: GPA 2.4\n####%%%%\n"
    ]
    assert joins[1][-1].text == "\n####%%%%\n"
    assert all(len(feed.text) <= 1 for feed in joins[1][:-1])
    assert joins[1][-1].seen.endswith("####Ann: GPA 3.1, outside####Ben: GPA 2.4")
    assert fed.forward_passes == reused.forward_passes
    assert llm.engine.slots_in_use == 0


@pytest.mark.parametrize(
    ("body", "settings"),
    [
        (" Ann is\n\n", {}),
        (" Ann END of it", {"stop": ("END",)}),
        (" Ann is someone who goes on …", {"max_branch_tokens": 7}),
        (" Ann ####Ben: …", {}),
        ("   ", {}),
        (" Ann \0", {}),
        ("\0", {}),
    ],
)
def test_the_conclusion_sees_what_the_result_says(body: str, settings: dict[str, Any]) -> None:
    """Blanks, stop sequences, cut branches and failed ones: exactly the text of the branches."""
    llm, script = scripted_llm({**STUDENTS, "####Ann:": body}, **settings)
    result = llm.invoke("Who?", join="reuse")
    first = result.branches[0]
    (seen,) = (
        feed.seen for feeds in script.passes for feed in feeds if feed.text == "\n####%%%%\n"
    )
    _, _, joined = seen.partition("####Ann:")
    assert joined.replace(" ", "") == f"{first.text}####Ben:GPA2.4".replace(" ", "")
    assert result.conclusion == "name: Ben"
    assert llm.engine.slots_in_use == 0


def test_further_blocks_grow_behind_reused_branches() -> None:
    """The second block's branches see the first block's, and the result is the same."""
    llm, script = scripted_llm(FURTHER)
    fed, reused = both(llm, "Who?")
    assert fed.text == reused.text
    last = script.passes[-1][0]
    assert last.seen + last.text == (
        "Question: Who?\n\nAnswer:\n####Ann: a####Ben: b\n####%%%%\n"
        "Now cities.\n####Rome: warm####Oslo: cold\n####%%%%\nSo Rome."
    )


@pytest.mark.parametrize("rules", [STUDENTS, FURTHER])
def test_a_stream_adds_up(rules: dict[str, str | list[str]]) -> None:
    """As with the other join."""
    llm, _ = scripted_llm(rules, join="reuse")
    total = reduce(add, list(llm.stream("Who?")))
    assert without_clocks(total.result()) == without_clocks(llm.invoke("Who?"))


def test_the_logits_behind_a_join_are_those_of_the_mask_written_out() -> None:
    """Our slots and reach against the model's own forward with explicit positions and mask."""
    llm = random_llm(join="reuse")
    engine = llm.engine
    model, forest = engine.model, engine.forward.forest
    trunk_ids, branch_ids, tail = list(range(20, 40)), [[50, 51, 52], [60], [70, 71]], [80, 81]
    root = forest.root(ledger := Ledger())
    branches = [forest.fork(root, at=len(trunk_ids)) for _ in branch_ids]
    engine.forward.run([(root, trunk_ids), *zip(branches, branch_ids, strict=True)], [])
    joined = forest.join(branches, at=len(trunk_ids) + 3)
    ours = engine.forward.run([(joined, tail)], [0])
    ids = [*trunk_ids, *(i for body in branch_ids for i in body), *tail]
    owner = [0] * 20 + [1] * 3 + [2] + [3] * 2 + [4] * 2
    place = [*range(20), 20, 21, 22, 20, 20, 21, 23, 24]
    mask = torch.full((1, 1, len(ids), len(ids)), float("-inf"))
    for q in range(len(ids)):
        for k in range(q + 1):
            if owner[k] in (0, owner[q]) or owner[q] == 4:
                mask[0, 0, q, k] = 0
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        theirs = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([place]),
            attention_mask=mask,
            use_cache=False,
        ).logits[0, -1]
    torch.testing.assert_close(ours[0], theirs, atol=1e-4, rtol=1e-4)
    for segment in list(ledger.segments):
        forest.release(segment)


def test_reuse_holds_the_branches_slots_until_the_end() -> None:
    """The price: peak slots are those of all branches, as they are of the joined text."""
    llm, _ = scripted_llm(STUDENTS)
    fed, reused = both(llm, "Who?")
    assert reused.peak_slots <= fed.peak_slots + len(fed.branches)
