"""What is said to the model, and the paper's form of the text that it writes.

A question is asked once: the prompt of stage 1 stays in the KV cache, and stages 2 and 3 go on in
the same turn. So the plan prompt describes the whole way (Yu, arXiv 2503.20533, section 3.1):

    preamble
    ####title:......        stage 1: the outline; a body is only an ellipsis
    ####title2:......
    ####%%%%
                            stage 2: `####title:` stands open, its text follows
                            stage 3: the conclusion follows `####%%%%`
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langchain_pos.errors import ModelLoadError
from langchain_pos.results.data import BODY_PLACEHOLDER, END_MARK, STEP_MARK, Plan

Messages = list[tuple[str, str]]
"""`(role, text)` of each message; the last one is the user's."""
PROMPTS_FILE = "parallel_reasoning.json"
"""A model folder may carry its own wording under this name."""

FORMAT_INSTRUCTIONS = f"""\
First say in one sentence how the question is split into independent steps. Then list every step \
on a line of its own as `{STEP_MARK}title:{BODY_PLACEHOLDER}`; behind the colon stands only the \
ellipsis. Close the list with `{END_MARK}`. A title says in a few words what tells its step from \
the others, for example the name of the person, the document or the aspect; no two are the same."""

_PLAN_ENGLISH = f"""\
Answer the question at the end in three parts, in this form:
1. Outline. {FORMAT_INSTRUCTIONS} List all steps that are needed, at most {{max_branches}}.
2. Steps. Each step is then worked out on its own, without seeing the others, so none may need \
another's result. Where `{STEP_MARK}title:` stands open, write the short and complete text of \
this one step.
3. Conclusion. After the finished steps and `{END_MARK}`, answer the question from what the steps \
found, in the format that it asks for. Comparing and concluding belongs here and is not a step.
If the question does not fall into independent steps, write just `{END_MARK}` in place of the \
outline. Begin with the outline.

Question:
{{question}}"""

_PLAN_CHINESE = f"""\
请按以下格式分三部分回答最后的问题：
1. 提纲。先用一句话说明如何把问题分成互相独立的步骤。然后逐行列出每个步骤，写作\
“{STEP_MARK}标题:{BODY_PLACEHOLDER}”，英文冒号后面只写省略号。最后用“{END_MARK}”结束提纲。标题用几个字说明\
该步骤与其他步骤的区别，例如人名、文档名或所分析的方面，标题不得重复。列出全部所需步骤，最多{{max_branches}}个。
2. 步骤。随后每个步骤单独展开，看不到其他步骤，因此任何步骤都不能依赖其他步骤的结果。\
在“{STEP_MARK}标题:”之后，只写这一个步骤的内容，简短而完整。
3. 结论。所有步骤和“{END_MARK}”之后，根据各步骤的内容，按照问题要求的格式回答问题。\
比较和总结属于结论，不是步骤。
如果问题不能分成互相独立的步骤，就只写“{END_MARK}”来代替提纲。请从提纲写起。

问题：
{{question}}"""

_RETRY_ENGLISH = """

An earlier outline for this question could not be used: {error}
Write it anew and keep exactly to the form above."""

_RETRY_CHINESE = """

此前为该问题写的提纲无法使用，原因：{error}
请重新写提纲，并严格遵照以上格式。"""


class ReasoningPrompts(BaseModel):
    """The prompts of one language or one model; each becomes a user message.

    `{question}`, `{max_branches}` and, in `retry`, `{error}` are filled in. Any other brace is
    plain text, in a template as well as in the question.

    Attributes:
        plan: asks for the outline, and says how steps and conclusion follow.
        ask: asks for an answer that is a list, in one sentence.
        sequential: asks for the ordinary answer.
        retry: asks for the outline once more, after `{error}`.
        branch_schema: follows the plan prompt where every branch is to be JSON; `{schema}` is
            filled in. Empty: the prompt does not mention it, and the grammar alone enforces it.
        declines: of a model that knows a few kinds of questions, its answer to any other. Empty:
            what it makes no plan for is answered sequentially.
        kinds: for such a model, a regular expression for the whole preamble of its plans. What the
            groups match must be quoted from the question, and so must most titles; a plan that is
            not so is none of its kinds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str = Field(min_length=1)
    ask: str = "{question}"
    sequential: str = Field(min_length=1)
    retry: str = Field(min_length=1)
    branch_schema: str = ""
    declines: str = ""
    kinds: str = ""

    @model_validator(mode="after")
    def _ask_the_question(self) -> Self:
        for name in ("plan", "sequential", "retry"):
            if "{question}" not in getattr(self, name):
                raise ValueError(f"the template {name!r} does not contain {{question}}")
        return self

    def know(self, plan: Plan, question: str) -> bool:
        """Whether a plan is of the model's `kinds`; any plan is where none are named."""
        if not self.kinds:
            return True
        preamble = re.fullmatch(self.kinds, plan.preamble)
        asked = question.casefold()
        if preamble is None or not all(text.casefold() in asked for text in preamble.groups("")):
            return False
        return 2 * sum(title.casefold() in asked for title in plan.titles) > len(plan.titles)

    def for_plan(self, question: str, *, max_branches: int) -> str:
        """The prompt of stage 1."""
        return _fill(self.plan, {"question": question, "max_branches": str(max_branches)})

    def for_branch_schema(self, schema: str) -> str:
        """What follows the plan prompt when every branch is to be JSON that follows a schema."""
        return _fill(self.branch_schema, {"schema": schema})

    def for_list(self, question: str) -> str:
        """The prompt that asks for a list."""
        return _fill(self.ask, {"question": question})

    def for_sequential(self, question: str) -> str:
        """The prompt of a sequential answer."""
        return _fill(self.sequential, {"question": question})

    def for_retry(self, question: str, *, max_branches: int, error: str) -> str:
        """The prompt of stage 1 after an outline that was wrong in the way of `error`."""
        values = {"question": question, "max_branches": str(max_branches), "error": error}
        return _fill(self.retry, values)


_BRANCH_SCHEMA_ENGLISH = """

The text of every step is one JSON object of this schema, and nothing else: {schema}"""

_BRANCH_SCHEMA_CHINESE = """

每个步骤的内容只写一个符合以下模式的JSON对象，不写其他内容：{schema}"""

ENGLISH = ReasoningPrompts(
    plan=_PLAN_ENGLISH,
    ask=(
        "{question}\n\nTake each part in turn, as a numbered list with a bold title for each "
        "entry, then conclude."
    ),
    sequential="{question}",
    retry=_PLAN_ENGLISH + _RETRY_ENGLISH,
    branch_schema=_BRANCH_SCHEMA_ENGLISH,
)
CHINESE = ReasoningPrompts(
    plan=_PLAN_CHINESE,
    ask="{question}\n\n请用编号列表逐项回答，每项以加粗的标题开头，最后给出结论。",
    sequential="{question}",
    retry=_PLAN_CHINESE + _RETRY_CHINESE,
    branch_schema=_BRANCH_SCHEMA_CHINESE,
)

_IDEOGRAPH = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
_WORD = re.compile(r"[^\W\d_]+")
_KANA_OF_JAPANESE = 0.1
"""A Japanese text has far more kana among its characters, a Chinese one quotes a few at most."""


def prompts_for(question: str) -> ReasoningPrompts:
    """The default prompts for a question: Chinese when it is written in Chinese, else English.

    An ideograph counts like a word of another script, so that a Chinese question with English
    terms stays Chinese, and an English one with Chinese names stays English.
    """
    ideographs = len(_IDEOGRAPH.findall(question))
    kana = len(_KANA.findall(question))
    words = len(_WORD.findall(_IDEOGRAPH.sub(" ", question)))
    if kana > _KANA_OF_JAPANESE * (ideographs + kana):
        return ENGLISH
    return CHINESE if ideographs > words else ENGLISH


def load_prompts(folder: Path) -> ReasoningPrompts | None:
    """The prompts that a model folder carries in `parallel_reasoning.json`.

    A model trained for its own wording brings it along: a JSON object with the templates `plan`,
    `sequential` and `retry`; further fields of `ReasoningPrompts` if it likes.

    Returns:
        None when the folder has no such file.

    Raises:
        ModelLoadError: the file cannot be read, is not JSON, or a template is missing or wrong.
    """
    path = Path(folder) / PROMPTS_FILE
    if not path.is_file():
        return None
    remedy = (
        "it must be a JSON object with the strings 'plan', 'sequential' and 'retry', each with "
        "{question} in it; fix the file, or remove it to use the default prompts"
    )
    try:
        return ReasoningPrompts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ")
            for e in error.errors(include_url=False)
        )
        raise ModelLoadError(f"{path}: {wrong}; {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}); {remedy}") from error


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in place of their `{name}`, in one pass: what a value contains stays as it is."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template)
