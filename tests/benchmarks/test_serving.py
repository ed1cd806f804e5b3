"""The server's benchmarks: questions, figures, and what the soak takes for a failure."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak
from benchmarks.serve import memory
from benchmarks.serving import MIX, Questions, Reply, _read_event, percentile, slope
from langchain_pos.server.requests import ChatRequest
from tests.support import recorded_data as data


def test_every_twenty_hold_the_same_kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In another order, as streams and not; without the paper's data they are generated."""
    monkeypatch.setenv("LANGCHAIN_POS_DATA", str(tmp_path / "nowhere"))
    questions = Questions()
    asked = questions.mixed(40)
    assert questions.source == {"10": "training.students", "30": "training.students"}
    assert Counter(each.kind for each in asked[:20]) == Counter(MIX)
    assert Counter(each.kind for each in asked[20:]) == Counter(MIX)
    assert [each.kind for each in asked[:20]] != [each.kind for each in asked[20:]]
    assert {bool(each.body.get("stream")) for each in asked} == {True, False}
    assert asked == Questions().mixed(40), "the same seed, the same questions"
    for each in asked:
        read = ChatRequest.model_validate(each.body)
        assert (read.steps is not None) == (each.kind == "own steps")
        count = {"own steps": len(read.steps or ()), "thirty": 30, "ten": 10}.get(each.kind)
        assert count is None or str(read.messages[0].content).count("student named") == count


def test_the_papers_questions_come_one_after_another(tmp_path: Path) -> None:
    """Where they are at hand; the others are generated. A folder that is given must exist."""
    questions = Questions(data.write(tmp_path))
    assert questions.source == {"10": "retrieval_10.jsonl", "30": "training.students"}
    assert questions.one("ten").body["messages"][0]["content"] == data.QUESTION
    assert questions.one("own steps").body["steps"] == list(data.STUDENTS)
    with pytest.raises(SystemExit, match="does not exist"):
        Questions(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [([3, 1, 2], 0.5, 2), ([3, 1, 2], 0.99, 3), (range(1, 201), 0.99, 198), ([7], 0.0, 7)],
)
def test_percentile(values: Any, share: float, found: float) -> None:
    """The smallest value that so many do not exceed."""
    assert percentile(values, share) == found


def test_figures_of_nothing() -> None:
    """No values, no percentile; one point, no slope; no samples, no growth."""
    assert math.isnan(percentile([], 0.5))
    assert slope([(1, 2)]) == slope([]) == 0
    assert soak.grown([(0, 1)]) == 0
    assert memory([]) == {}


def test_slope_and_growth() -> None:
    """Of a line, its own; growth looks at the second and the last quarter alone."""
    assert slope([(x, 3.0 + 2 * x) for x in range(5)]) == pytest.approx(2)
    levels = [900.0] * 5 + [100.0] * 5 + [500.0] * 5 + [110.0] * 5
    assert soak.grown(list(enumerate(levels))) == pytest.approx(0.1)
    rising = memory([float(place) for place in range(200)])
    assert (rising["at_settled"], rising["at_last"]) == (49, 197)
    assert rising["mib_per_100_requests"] == pytest.approx(100)


def test_what_is_compared_is_what_was_said() -> None:
    """A branch's text, how it ended and the answer's; not how many passes it took."""

    def reply(text: str, passes: int, reason: str = "stop") -> Reply:
        branch = {"title": "Ann", "text": text, "finish_reason": reason}
        blocks = [{"plan": {"preamble": ""}, "branches": [branch]}]
        told = {"mode": "parallel", "blocks": blocks, "forward_passes": {"plan": passes}}
        return Reply(200, content="Ann", finish_reason="stop", reasoning=told)

    assert reply("GPA 3", 1).said() == reply("GPA 3", 2).said()
    assert reply("GPA 3", 1).said() != reply("GPA 4", 1).said()
    assert reply("GPA 3", 1).said() != reply("GPA 3", 1, "length").said()


def test_outcomes() -> None:
    """A stream that ends in silence is no answer; an error in one counts as before it."""
    cut = Reply(200, content="An", whole=False)
    late = Reply(200, whole=False)
    _read_event(late, '{"error": {"code": "timeout"}}', 0.0)
    failed = Reply(200, whole=False)
    _read_event(failed, '{"error": {"code": "internal_error"}}', 0.0)
    assert not any(each.answered for each in (cut, late, failed))
    expected = soak.EXPECTED["deadline"]
    assert soak._outcome(late) == "504 timeout"
    assert {soak._outcome(each) for each in (cut, failed)}.isdisjoint(expected)
    assert soak._outcome(Reply(200, finish_reason="stop")) == "200"
    assert soak._outcome(Reply(200, finish_reason="error")) == "error"
    assert soak._outcome(Reply(503, code="queue_full")) == soak.FULL


@pytest.mark.parametrize(("body", "refused"), soak.INVALID)
def test_the_soaks_invalid_bodies_are_refused_as_it_says(
    body: dict[str, Any], refused: str
) -> None:
    """By a server, so that an hour of load does not end with a wrong expectation."""
    from tests.support.scripted_chat import scripted_chat
    from tests.support.serving import running

    chat, _ = scripted_chat({})
    known = {**body, "model": "scripted"} if body.get("model") == soak.MODEL else body
    with running(chat) as server:
        answer = server.post(known)
    assert f"{answer.status_code} {answer.json()['error']['code']}" == refused
