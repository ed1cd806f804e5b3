"""What a plan is made of besides decoding: steps that are given, skeletons as text, the retries.

Shared by whoever decodes: `planning.py` under a grammar in this process, `remote_planning.py` by
asking a server.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from langchain_pos.errors import InvalidRequestError, PlanFormatError
from langchain_pos.reasoning.plan_parser import PlanParser, declined
from langchain_pos.results.data import END_MARK, STEP_MARK, Plan, Step

RETRY_TEMPERATURE = 0.7
"""Least temperature of a skeleton that is tried a third time, or with the same prompt again."""


def given_plan(steps: Sequence[Step], max_branches: int) -> Plan:
    """The plan of the steps that the caller gives.

    Raises:
        InvalidRequestError: there are too few or too many, or two have the same title.
    """
    if not 1 <= len(steps) <= max_branches:
        raise InvalidRequestError(
            f"{len(steps)} steps are given; allowed are 1 to {max_branches} (max_branches)"
        )
    try:
        return Plan(steps=tuple(steps))
    except ValidationError as error:
        messages = (e["msg"] for e in error.errors(include_url=False))
        wrong = "; ".join(message.removeprefix("Value error, ") for message in messages)
        raise InvalidRequestError(f"these steps cannot be used: {wrong}") from error


def without_repeats(text: str) -> Plan | None:
    """The plan of a closed skeleton in which titles occur twice: each of them once.

    Returns:
        None when the skeleton is not closed, or fewer than two steps are left.
    """
    preamble, *steps = text.split(STEP_MARK)
    if not text.rstrip().endswith(END_MARK):
        return None
    titles: dict[str, str] = {}
    for step in steps[:-1]:
        title = " ".join(step.rpartition(":")[0].split())
        titles.setdefault(title.casefold(), title)
    if len(titles) < 2:
        return None
    return Plan.of(list(titles.values()), preamble.strip())


def read_skeleton(text: str, *, max_branches: int, allow_decline: bool) -> Plan | None:
    """Parse a skeleton that no grammar has held.

    Args:
        text: what the model wrote, its terminator included if it wrote one.
        max_branches: most steps.
        allow_decline: whether a skeleton with fewer than two steps will do.

    Returns:
        None when the question does not fall into parts: the skeleton is closed with one step or
        none.

    Raises:
        PlanFormatError: it cannot be used.
    """
    plan = None
    if not declined(text):
        plan = PlanParser(max_branches=max_branches).parse(text)
    if plan is not None and len(plan.steps) > 1:
        return plan
    if not allow_decline:
        raise PlanFormatError("the outline has fewer than two steps", text=text)
    return None


def before_steps(text: str, plan: Plan) -> str:
    """What of a skeleton stays when its steps are taken off: the text before the first of them."""
    head, mark, _ = text.partition(STEP_MARK)
    if mark and (not head or head.endswith("\n")):
        return head
    return f"{plan.preamble}\n" if plan.preamble else ""
