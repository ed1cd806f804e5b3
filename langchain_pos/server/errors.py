"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
from typing import Any

from langchain_pos.errors import (
    AnswerTimeoutError,
    ContextLengthError,
    InvalidRequestError,
    OutOfSlotsError,
    ParallelReasoningError,
)

logger = logging.getLogger(__name__)
ERROR_EVENT = b'data: {"error"'
"""How an error in a stream begins, and nothing else does."""
REPLICA_LOST = "replica_lost"
"""The code of an answer that a replica took with it."""


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Args:
        status: of HTTP.
        message: what was given, what is allowed, what to do.
        code: for programs.
        param: the field of the body that is wrong.
        retry_after: seconds after which the same request may succeed; None where it never will.
        reasoning: the result as far as it came.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        reasoning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.reasoning = reasoning

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error} | ({"reasoning": self.reasoning} if self.reasoning else {})

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After`, or word to OpenAI's clients that another try is in vain."""
        if self.retry_after is not None:
            return {"Retry-After": str(self.retry_after)}
        headers = {"x-should-retry": "false"}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def broken(self) -> str:
        """The reason under which a stream that it ends is counted."""
        return self.code if self.code == REPLICA_LOST else "error"

    @property
    def event(self) -> bytes:
        """As an event of a stream that has begun."""
        return b"data: " + json.dumps(self.body).encode() + b"\n\n"


def api_error(error: BaseException, *, queued: bool = False, retry_after: int = 1) -> ApiError:
    """Any error as a client sees it; what is none of ours is logged and sent without details.

    Args:
        error: what was raised.
        queued: whether the engine had taken the request, so that it fits when others hold less.
        retry_after: seconds until there may be more memory.
    """
    message = str(error)
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return ApiError(400, message, "context_length_exceeded", param="messages")
        case OutOfSlotsError() if queued:
            return ApiError(503, message, "out_of_memory", retry_after=retry_after)
        case OutOfSlotsError():
            return ApiError(400, message, "out_of_slots")
        case InvalidRequestError():
            return ApiError(400, message, "invalid_request")
        case AnswerTimeoutError():
            return ApiError(504, message, "timeout")
        case ParallelReasoningError():
            return ApiError(500, message, "no_answer")
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says how", "internal_error")
