"""What goes wrong between us and a server: each with what the caller sees."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import reduce
from operator import add

import pytest

from langchain_pos import ChatParallelReasoning, OpenAICompletionsEngine, ParallelReasoningLLM
from langchain_pos.errors import (
    AnswerTimeoutError,
    ContextLengthError,
    InvalidRequestError,
    ModelLoadError,
    ServerError,
)
from langchain_pos.remote.client import retry_after
from tests.support.completions_server import Reply, Server, serving
from tests.support.scripted import BARE, SMALL, STUDENTS

ASKED = "Question: Who?\n\nAnswer:\n"
TOO_LONG = "This model's maximum context length is 64 tokens, you asked for 99."


@pytest.fixture
def server() -> Iterator[Server]:
    """The question "Who?" answered in two branches."""
    with serving(dict(STUDENTS)) as running:
        yield running


def refused(status: int, said: str = "no", **headers: str) -> Reply:
    """An error in OpenAI's form."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body={"error": {"message": said}}, headers=named)


class TestUnreachable:
    def test_nobody_listens(self) -> None:
        """The address is in the message, and what to look at."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        engine = OpenAICompletionsEngine(base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
        with pytest.raises(
            ServerError, match=rf"{port}/v1 cannot be reached .* base_url"
        ) as caught:
            ParallelReasoningLLM(engine=engine).invoke("Who?")
        assert isinstance(caught.value, ConnectionError)

    def test_a_server_that_says_nothing(self, server: Server) -> None:
        """The engine's timeout ends it."""
        server.rules[ASKED] = Reply("x", hold=True)
        with pytest.raises(ServerError, match="silent for too long"):
            server.llm({"timeout": 0.2}).invoke("Who?")

    def test_the_timeout_of_a_chat_answer(self, server: Server) -> None:
        """Holds for the whole answer; its connections are closed."""
        server.rules["####Ben:"] = Reply(" GPA 2.4", hold=True)
        chat = ChatParallelReasoning(engine=server.engine(), prompts=BARE, timeout=0.3, **SMALL)
        with pytest.raises(AnswerTimeoutError):
            chat.invoke("Who?")
        assert server.at_rest()
        assert server.left == 1


class TestRefused:
    @pytest.mark.parametrize("status", [401, 403])
    def test_unauthorised(self, server: Server, status: int) -> None:
        """The key is named as what to give."""
        server.rules[ASKED] = refused(status, "bad key")
        with pytest.raises(ServerError, match=r"bad key; .* api_key") as caught:
            server.llm().invoke("Who?")
        assert caught.value.status == status

    def test_unauthorised_already_for_the_list(self, server: Server) -> None:
        """No completion is asked for."""
        server.models_status = 401
        with pytest.raises(ServerError, match=r"no list; .*api_key"):
            server.llm().invoke("Who?")
        assert not server.asked

    def test_unknown_model(self, server: Server) -> None:
        """With what the server said."""
        server.rules[ASKED] = refused(404, "The model `x` does not exist.")
        with pytest.raises(ModelLoadError, match=r"`x` does not exist; .*/v1/models"):
            server.llm({"model": "x"}).invoke("Who?")

    def test_context_too_long(self, server: Server) -> None:
        """Told by the server, where it was not known before."""
        server.rules = {"Answer:\n": refused(400, TOO_LONG)}
        with pytest.raises(ContextLengthError, match=r"64 tokens.* shorten the question"):
            server.llm().invoke("Who?")

    def test_unknown_parameter(self, server: Server) -> None:
        """With what the server said."""
        server.rules[ASKED] = refused(422, "Unexpected fields in the request: {'mirostat'}")
        with pytest.raises(InvalidRequestError, match=r"mirostat.*extra_body"):
            server.llm({"extra_body": {"mirostat": 2}}).invoke("Who?")

    def test_nothing_of_it_is_tried_again(self, server: Server) -> None:
        """It would be refused again."""
        server.rules[ASKED] = refused(401)
        with pytest.raises(ServerError):
            server.llm({"max_retries": 3}).invoke("Who?")
        assert len(server.asked) == 1


class TestTriedAgain:
    @pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
    def test_what_may_pass(self, server: Server, status: int) -> None:
        """In whatever stage; `Retry-After` says when."""
        again = refused(status, retry_after="0")
        for cue, text in STUDENTS.items():
            server.rules[cue] = [again, Reply(str(text))]
        result = server.llm({"max_retries": 1}).invoke("Who?")
        assert result.conclusion == "name: Ben"
        assert all(branch.error is None for branch in result.branches)
        assert len(server.asked) == 8

    def test_retry_after_is_waited_for(self, server: Server) -> None:
        """Not less than the server asked for, though backing off would be quicker."""
        server.rules[ASKED] = [refused(429, retry_after="1.2"), Reply(str(STUDENTS[ASKED[10:]]))]
        assert server.llm({"max_retries": 1}).invoke("Who?").conclusion == "name: Ben"
        assert server.times[1] - server.times[0] >= 1.2

    def test_in_the_end_it_is_an_error(self, server: Server) -> None:
        """With what to change."""
        server.rules[ASKED] = refused(503, "full", retry_after="0")
        with pytest.raises(ServerError, match=r"full; .*max_concurrency") as caught:
            server.llm({"max_retries": 2}).invoke("Who?")
        assert caught.value.status == 503
        assert len(server.asked) == 3

    def test_a_cut_stream_begins_anew_where_nobody_was_told(self, server: Server) -> None:
        """`invoke` tells nothing before the end, and a skeleton's raw text is no promise."""
        for cue, text in STUDENTS.items():
            server.rules[cue] = [Reply(str(text), cut_after=1), Reply(str(text))]
        result = server.llm({"max_retries": 1}).invoke("Who?")
        assert result.conclusion == "name: Ben"
        assert [branch.text for branch in result.branches] == ["GPA 3.1, outside", "GPA 2.4"]
        assert len(server.asked) == 8

    def test_retry_after_in_both_forms(self) -> None:
        """Seconds, or a date; anything else says nothing."""
        assert retry_after("2") == 2
        assert retry_after("0.5") == 0.5
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
        assert 25 < (retry_after(date) or 0) <= 30
        assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
        assert retry_after("soon") is retry_after("-1") is retry_after("nan") is None


class TestOneBranch:
    @pytest.mark.parametrize(
        ("reply", "said"),
        [
            (refused(500, "boom"), "answers 500: boom"),
            (refused(400, TOO_LONG), "maximum context length"),
            (Reply(" GPA 2.4 or so", cut_after=2), "broke off|cannot be reached"),
            (Reply(" GPA 2.4 or so", end_after=2), "ended before the completion was finished"),
            (Reply(" GPA", event='{"error": {"message": "CUDA error"}}'), "CUDA error"),
            (Reply(" GPA", event="{no JSON"), "broke off"),
        ],
    )
    def test_its_failure_stays_in_it(self, server: Server, reply: Reply, said: str) -> None:
        """The others are whole, and the conclusion is written behind them."""
        server.rules["####Ben:"] = reply
        server.rules["####%%%%\n"] = "name: Ann"
        result = reduce(add, list(server.llm().stream("Who?"))).result()
        ann, ben = result.branches
        assert (ann.text, ann.error) == ("GPA 3.1, outside", None)
        assert ben.finish_reason == "error"
        assert ben.error is not None
        assert re.search(said, ben.error)
        assert result.conclusion == "name: Ann"

    def test_what_came_before_the_break_is_kept(self, server: Server) -> None:
        """While streaming it has been told, so it cannot be taken back."""
        server.rules["####Ben:"] = Reply(" GPA 2.4", cut_after=1)
        llm = server.llm({"max_retries": 1})
        chunks = list(llm.stream("Who?"))
        ben = reduce(add, chunks).result().branches[1]
        assert (ben.text, ben.finish_reason) == ("GPA", "error")
        assert "".join(chunk.delta for chunk in chunks if chunk.branch == 1) == "GPA"

    def test_an_empty_branch_is_an_error(self, server: Server) -> None:
        """Never an empty answer as if it were one."""
        server.rules["####Ben:"] = ""
        ben = server.llm().invoke("Who?").branches[1]
        assert ben.finish_reason == "error"
        assert "without writing any text" in str(ben.error)

    def test_where_all_fail_the_question_does(self, server: Server) -> None:
        """There is nothing to conclude from."""
        server.rules["####Ann:"] = server.rules["####Ben:"] = refused(500, "boom")
        with pytest.raises(ServerError, match="boom"):
            server.llm().invoke("Who?")


class TestElsewhere:
    def test_a_conclusion_that_fails_leaves_the_branches(self, server: Server) -> None:
        """The result says what went wrong."""
        server.rules["####%%%%\n"] = refused(500, "boom")
        result = server.llm().invoke("Who?")
        assert (result.finish_reason, result.conclusion) == ("error", "")
        assert "boom" in str(result.error)
        assert [branch.error for branch in result.branches] == [None, None]

    def test_an_ordinary_answer_that_fails_raises(self, server: Server) -> None:
        """Nothing else is there."""
        server.rules[ASKED] = Reply("Ben, I", end_after=1)
        with pytest.raises(ServerError, match="ended before"):
            list(server.llm(mode="sequential").stream("Who?"))

    def test_an_empty_answer_is_an_error(self, server: Server) -> None:
        """Told in the result."""
        server.rules[ASKED] = ""
        result = server.llm(mode="sequential").invoke("Who?")
        assert result.finish_reason == "error"
        assert "without any text" in str(result.error)

    def test_a_failure_costs_no_other_question(self, server: Server) -> None:
        """In one batch."""
        server.rules["Question: Why?\n\nAnswer:\n"] = refused(500, "boom")
        bad, good = server.llm().batch(["Why?", "Who?"], return_exceptions=True)
        assert isinstance(bad, ServerError)
        assert good.conclusion == "name: Ben"


def test_error_bodies_need_no_form(server: Server) -> None:
    """FastAPI's `detail`, a bare text, nothing at all."""
    for body, said in [({"detail": "why not"}, "why not"), ("text", "text"), (None, "500")]:
        server.rules[ASKED] = Reply(status=500, body=body)
        with pytest.raises(ServerError, match=said):
            server.llm().invoke("Who?")
