"""Completions over HTTP, through the `openai` client: streamed, bounded, retried."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from langchain_pos.engine.completion import TokenUsage
from langchain_pos.errors import (
    ContextLengthError,
    InvalidRequestError,
    MissingExtraError,
    ModelLoadError,
    ParallelReasoningError,
    ServerError,
)

try:
    import httpx
    import openai
except ImportError as error:  # pragma: no cover - a test removes it
    raise MissingExtraError(
        "a server as an engine needs the openai client: `pip install openai httpx`, which the "
        "extra `langchain-pos[openai]` holds"
    ) from error

if TYPE_CHECKING:
    from openai.types import Completion

    from langchain_pos.remote.sinks import Sink

_AGAIN = {408, 429, 502, 503, 504}
_LONGEST_WAIT = 60.0
_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|maximum.{0,20}(length|tokens|context)|max_model_len"
    r"|longer than the model|too (many tokens|long)",
    re.IGNORECASE,
)


class _BrokenStreamError(Exception):
    """The stream ended or became invalid before the completion was finished."""


_TRANSPORT = (openai.APIConnectionError, httpx.HTTPError, _BrokenStreamError)


class CompletionsClient:
    """One server. Used on one event loop.

    Args:
        base_url: up to `/v1`.
        api_key: sent as bearer token.
        headers: sent with every request.
        timeout: seconds without any data from the server.
        max_retries: how often a request is retried.
        max_concurrency: requests in progress at once.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        headers: dict[str, str],
        timeout: float,
        max_retries: int,
        max_concurrency: int,
    ) -> None:
        self.base_url = base_url
        self._max_retries = max_retries
        self._slots = asyncio.Semaphore(max_concurrency)
        self._asking = asyncio.Lock()
        self._models: list[Any] | None = None
        # The pool must not be the limit: a request that waits in it would time out.
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            default_headers=headers,
            timeout=timeout,
            max_retries=0,  # retried here, in one place for all kinds of failure
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def models(self) -> list[Any]:
        """The models listed at `/v1/models`; asked once. Empty if the server has no such list.

        Raises:
            ServerError: it cannot be reached or refuses.
        """

        async def ask() -> list[Any]:
            try:
                return list((await self._client.models.list()).data)
            except openai.APIStatusError as error:
                # The list helps but is not required: `transformers serve` fails with 500 if there
                # is not a hub cache, and gateways may lack it.
                if error.status_code in _AGAIN or error.status_code in (401, 403):
                    raise
                return []

        async with self._asking:
            if self._models is None:
                async with self._slots:
                    self._models = cast("list[Any]", await self._retried(ask, lambda: True))
            return self._models

    async def write(self, sink: Sink, fields: dict[str, Any]) -> None:
        """Request one completion and follow it to its end.

        Args:
            sink: receives it; keeps what was written when an error is raised.
            fields: of the request; `dialects.fields_of`, with model and prompt.

        Raises:
            ServerError: the server failed, and retrying did not help.
            ContextLengthError, InvalidRequestError, ModelLoadError: it refuses the request.
        """

        async def once() -> None:
            sink.begin()
            stream = await self._client.completions.create(**fields)
            async with stream:  # closing it, e.g. by cancellation, closes the connection
                async for chunk in stream:
                    if not _take(sink, chunk):
                        return
            if sink.written.finish_reason is None:
                raise _BrokenStreamError("the stream ended before the completion was finished")

        async with self._slots:
            await self._retried(once, lambda: sink.may_restart)

    async def _retried(self, once: Callable[[], Any], may_restart: Callable[[], bool]) -> Any:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(1 + self._max_retries),
            wait=_wait,
            retry=retry_if_exception(lambda error: _worth_it(error) and may_restart()),
            reraise=True,
        )
        try:
            return await retrying(once)
        except (*_TRANSPORT, openai.APIError, json.JSONDecodeError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> ParallelReasoningError:
        """An error of the client as one of ours, with a remedy."""
        at = f"the server at {self.base_url}"
        said = _said(error)
        if isinstance(error, openai.APITimeoutError | httpx.TimeoutException):
            return ServerError(
                f"{at} was silent for too long ({said}); check whether it is busy or hangs, or "
                "give the engine a longer timeout"
            )
        if isinstance(error, openai.APIStatusError):
            return _refused(at, error.status_code, said)
        if isinstance(error, openai.APIConnectionError | httpx.ConnectError):
            return ServerError(
                f"{at} cannot be reached ({said}); check that it is running, and that base_url is "
                "its address with /v1"
            )
        if _TOO_LONG.search(said):
            return _refused(at, 400, said)
        return ServerError(f"{at} broke off ({said}); see its log for the reason")


def _take(sink: Sink, chunk: Completion) -> bool:
    """Pass a chunk on to the sink; returns whether to continue."""
    written = sink.written
    if chunk.usage is not None:
        usage = chunk.usage
        written.usage = TokenUsage(usage.prompt_tokens or 0, usage.completion_tokens or 0)
        details = usage.prompt_tokens_details
        written.cached_tokens = (details.cached_tokens or 0) if details is not None else 0
    for choice in chunk.choices or ():
        reason = cast("str | None", choice.finish_reason)
        if reason == "abort":  # SGLang's
            raise _BrokenStreamError("the server aborted the completion")
        if reason is not None:
            written.finish_reason = "length" if reason == "length" else "stop"
            extra = choice.model_extra or {}
            stop = extra.get("stop_reason", extra.get("matched_stop"))  # vLLM's, SGLang's
            written.stop = stop if isinstance(stop, str) else None
        if choice.text:
            written.chunks += 1
            written.text += choice.text
            if not sink.take(choice.text):
                return False
    return True


def _refused(at: str, status: int, said: str) -> ParallelReasoningError:
    answered = f"{at} answers {status}: {said}"
    if status in (401, 403):
        return ServerError(f"{answered}; give the engine a valid api_key", status=status)
    if status == 429 or status >= 500:
        return ServerError(
            f"{answered}; it is overloaded or has failed. Send fewer requests at once "
            "(max_concurrency), retry more often (max_retries), or see its log",
            status=status,
        )
    if _TOO_LONG.search(said):
        return ContextLengthError(
            f"{answered}; shorten the question, use smaller budgets, or start the server with a "
            "longer context"
        )
    if status == 404 or (status == 400 and re.search(r"model|pinned to", said)):
        return ModelLoadError(
            f"{answered}; model must be a name listed at GET /v1/models, and the server must offer "
            "/v1/completions"
        )
    return InvalidRequestError(
        f"{answered}; it may not know a parameter: check the engine's server=… and extra_body"
    )


def _said(error: Exception) -> str:
    """The server's message, on one line."""
    body = getattr(error, "body", None)
    said = body if isinstance(body, str) else ""
    if isinstance(body, dict):
        said = str(body.get("message") or body.get("detail") or body.get("error") or "")
    cause = error.__cause__
    said = said or str(error) or type(error).__name__
    if cause is not None and str(cause) and isinstance(error, openai.APIConnectionError):
        said = f"{said} {cause}"
    return " ".join(said.split()).rstrip(".")[:400]


def _worth_it(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _AGAIN
    return isinstance(error, (*_TRANSPORT, json.JSONDecodeError))


_backoff = wait_exponential(multiplier=0.5, max=8) + wait_random(0, 0.5)


def _wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: from `Retry-After` if given, else growing."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, openai.APIStatusError):
        asked = retry_after(error.response.headers.get("retry-after"))
        if asked is not None:
            return min(asked, _LONGEST_WAIT)
    return _backoff(state)


def retry_after(header: str | None) -> float | None:
    """Seconds until a `Retry-After` header, which gives a number or a date (RFC 9110)."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
