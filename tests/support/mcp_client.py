"""What a client of the MCP server sees and does."""

from __future__ import annotations

from mcp import ClientSession
from mcp.types import (
    CallToolResult,
    CancelledNotification,
    CancelledNotificationParams,
    ClientNotification,
    TextContent,
)

NAME = "run_parallel_subtasks"


def text_of(result: CallToolResult) -> str:
    """The one text of a result."""
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def cancel_last(client: ClientSession) -> None:
    """Give up the last request, as a client does."""
    params = CancelledNotificationParams(requestId=client._request_id - 1)
    await client.send_notification(ClientNotification(CancelledNotification(params=params)))
