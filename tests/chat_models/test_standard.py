"""langchain-tests' own unit suite, with every capability that the chat model claims switched on."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_pos import ChatParallelReasoning


class TestChatModelUnit(ChatModelUnitTests):
    """Tool calling, tool choice and structured output are seen from the methods themselves."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatParallelReasoning

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Without an API's key: a local model has none, and takes no unknown field."""
        params = super().standard_chat_model_params
        return {name: value for name, value in params.items() if name != "api_key"}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


def test_what_is_claimed_is_switched_on() -> None:
    """The suite would pass over a capability that it does not see."""
    suite = TestChatModelUnit()
    assert suite.has_tool_calling
    assert suite.has_tool_choice
    assert suite.has_structured_output
    assert suite.returns_usage_metadata
