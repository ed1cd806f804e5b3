"""What is said to the model, and the paper's form of the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from langchain_pos import embedded_model_path
from langchain_pos.errors import ModelLoadError
from langchain_pos.reasoning.prompts import (
    CHINESE,
    ENGLISH,
    PROMPTS_FILE,
    ReasoningPrompts,
    load_prompts,
    prompts_for,
)

BOTH = pytest.mark.parametrize("prompts", [ENGLISH, CHINESE], ids=["english", "chinese"])
PLAIN = {"plan": "P {question}", "sequential": "{question}", "retry": "{question} {error}"}


@BOTH
def test_plan_prompt_explains_the_paper_s_form(prompts: ReasoningPrompts) -> None:
    """The plan prompt holds the question, the bound, the form of a step and the terminator."""
    text = prompts.for_plan("Who of them is tall?", max_branches=17)
    assert text.endswith("\nWho of them is tall?")
    for part in ("17", ":......", "####%%%%"):
        assert part in text
    assert "{" not in text


@BOTH
def test_the_plan_prompt_holds_no_example_that_could_be_answered(prompts: ReasoningPrompts) -> None:
    """Small models answer the last question that they read: it is the user's, and the only one."""
    text = prompts.for_plan("Who of them is tall?", max_branches=9)
    assert text.count("?") + text.count("？") == 1
    assert not any(name in text for name in ("Ann", "Cleo", "甲"))


@BOTH
def test_retry_prompt_adds_what_was_wrong(prompts: ReasoningPrompts) -> None:
    """The retry prompt is the plan prompt and the error behind it."""
    plan = prompts.for_plan("Q", max_branches=4)
    retry = prompts.for_retry("Q", max_branches=4, error="two steps have the same title: 'Ann'")
    assert retry.startswith(plan)
    assert "two steps have the same title: 'Ann'" in retry.removeprefix(plan)


@BOTH
@given(question=st.text())
def test_any_question_stays_as_it_is(prompts: ReasoningPrompts, question: str) -> None:
    """Whatever a question contains, it stands in the prompts character for character."""
    assert prompts.for_sequential(question) == question
    assert prompts.for_plan(question, max_branches=2).endswith(f"\n{question}")


@pytest.mark.parametrize(
    "question",
    ['Answer as "name: {answer}"', "{question} {max_branches} {error}", "{0} {} {{x}} %s \\1"],
)
def test_braces_are_plain_text(question: str) -> None:
    """Braces in a question or an error are neither filled in nor an error."""
    prompts = ReasoningPrompts(plan="{question}|{other}|{max_branches}", **_but("plan"))
    assert prompts.for_plan(question, max_branches=3) == f"{question}|{{other}}|3"
    prompts = ReasoningPrompts(retry="{error}|{question}", **_but("retry"))
    assert prompts.for_retry("Q", max_branches=3, error=question) == f"{question}|Q"


def test_prompts_are_frozen_and_need_the_question() -> None:
    """A template without `{question}` is refused, by its name; prompts do not change."""
    with pytest.raises(ValidationError, match="'retry' does not contain"):
        ReasoningPrompts(retry="Again!", **_but("retry"))
    with pytest.raises(ValidationError, match="frozen"):
        ENGLISH.plan = "{question}"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("question", "prompts"),
    [
        ("Which student has a GPA between 2.36 and 2.75?", ENGLISH),
        ("", ENGLISH),
        ("12 + 30 = ?", ENGLISH),
        ("请从经济、政治、文化三个方面分析中国的发展现状。", CHINESE),
        ("分析Qwen2.5和GPT-4的优劣", CHINESE),
        ("請比較這三種方案的優缺點", CHINESE),
        ("The students 王伟 and 李娜 have GPAs of 3.1 and 3.4. Who is better?", ENGLISH),
        ("東京と大阪と京都の人口を比較してください。", ENGLISH),
        (
            "日本語の「の」字如何使用？请分别从语法、语义、语用三个方面详细说明它的各种用法和常见错误",
            CHINESE,
        ),
        ("서울과 부산의 인구를 비교해 주세요.", ENGLISH),
    ],
)
def test_language_follows_the_question(question: str, prompts: ReasoningPrompts) -> None:
    """A question in Chinese is asked in Chinese, every other one in English."""
    assert prompts_for(question) is prompts


def test_paper_s_questions_get_their_language(paper_data: Path) -> None:
    """Every planning task of the paper counts as Chinese, every retrieval question as English."""
    for line in (paper_data / "paper_transcripts.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        expected = CHINESE if "industry_tasks" in row["id"] else ENGLISH
        assert prompts_for(row["prompt"]) is expected, row["id"]


def test_folder_without_prompts_has_none(tmp_path: Path) -> None:
    """A model folder need not carry prompts."""
    assert load_prompts(tmp_path) is None


def test_folder_s_prompts_are_read(tmp_path: Path) -> None:
    """A model folder's own wording is used as it stands there."""
    (tmp_path / PROMPTS_FILE).write_text(json.dumps(PLAIN | {"plan": "计划 {question}"}), "utf-8")
    prompts = load_prompts(tmp_path)
    assert prompts is not None
    assert prompts.for_plan("Q", max_branches=2) == "计划 Q"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "dictionary"),
        (json.dumps({"plan": "{question}"}).encode(), "sequential: Field required"),
        (json.dumps(PLAIN | {"plan": 3}).encode(), "plan: Input should be a valid string"),
        (json.dumps(PLAIN | {"plan": "no"}).encode(), "'plan' does not contain"),
        (json.dumps(PLAIN | {"tone": "warm"}).encode(), "tone: Extra inputs"),
    ],
)
def test_bad_prompts_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """A prompts file that cannot be used is refused with its path, the reason and the remedy."""
    (tmp_path / PROMPTS_FILE).write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        load_prompts(tmp_path)
    assert str(tmp_path / PROMPTS_FILE) in str(caught.value)
    assert said in str(caught.value)
    assert "remove it to use the default prompts" in str(caught.value)


def test_shipped_model_is_asked_the_bare_question() -> None:
    """The shipped model was trained on questions alone, so its prompts add nothing."""
    prompts = load_prompts(embedded_model_path())
    assert prompts is not None
    assert prompts.for_plan("Q", max_branches=9) == "Q"
    assert prompts.for_sequential("Q") == "Q"
    assert prompts.for_retry("Q", max_branches=9, error="bad") == "Q"


def _but(name: str) -> dict[str, str]:
    return {key: value for key, value in PLAIN.items() if key != name}
