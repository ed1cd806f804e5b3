"""langchain-tests' own integration suite: on the model that ships, and on one with a script.

The model that ships has five million parameters and knows four kinds of reasoning tasks. What it
is asked here it has never seen, so it chooses badly: it copies no argument and closes no string.
Where a test asks for such a choice it is expected to fail, for that reason alone; the second suite
runs the same tests with a model that chooses well, so that our code is held to them.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_pos import ChatParallelReasoning, demo_question, embedded_model_path
from langchain_pos.engine.engine import Engine
from langchain_pos.model_source import EngineCache
from tests.support.chat_templates import QWEN, tokenizer_with
from tests.support.scripted import BARE, SMALL, Script, tiny_model

BUDGETS = {"max_tokens": 200, "max_branches": 8, "max_branch_tokens": 64, "max_blocks": 1}
SCHEMAS = ["pydantic", "typeddict", "json_schema"]
TWO_FORMS = pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
CHOOSES = pytest.mark.xfail(
    strict=True, reason="the shipped model is too small to choose well what to write"
)


class Suite(ChatModelIntegrationTests):
    """What the chat model claims."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatParallelReasoning

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["reasoning_output"], "stream": ["reasoning_output"]}

    @property
    def reasoning_question(self) -> str:
        """A question that is answered in branches."""
        return demo_question()

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        chat = ChatParallelReasoning(**self.chat_model_params)
        if not stream:
            message = chat.invoke(self.reasoning_question)
        else:
            chunks = list(chat.stream(self.reasoning_question))
            message = sum(chunks[1:], start=chunks[0])
        assert message.usage_metadata is not None
        assert message.usage_metadata["output_token_details"]["reasoning"] > 0
        return message


@pytest.fixture(scope="module")
def shipped() -> EngineCache:
    """The shipped model, loaded once for all tests of the suite."""
    return EngineCache()


class TestShippedModel(Suite):
    @pytest.fixture(autouse=True)
    def _share(self, shipped: EngineCache) -> None:
        self.engines = shipped

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engines": self.engines, **BUDGETS}

    @property
    def model_override_value(self) -> str:
        return str(embedded_model_path())

    @CHOOSES
    @TWO_FORMS
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @CHOOSES
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @CHOOSES
    def test_bind_runnables_as_tools(self, model: BaseChatModel) -> None:
        super().test_bind_runnables_as_tools(model)

    @CHOOSES
    def test_tool_calling_with_no_arguments(self, model: BaseChatModel) -> None:
        super().test_tool_calling_with_no_arguments(model)

    @CHOOSES
    @pytest.mark.parametrize("schema_type", SCHEMAS)
    def test_structured_output(self, model: BaseChatModel, schema_type: Any) -> None:
        super().test_structured_output(model, schema_type)

    @CHOOSES
    @pytest.mark.parametrize("schema_type", SCHEMAS)
    async def test_structured_output_async(self, model: BaseChatModel, schema_type: Any) -> None:
        await super().test_structured_output_async(model, schema_type)

    @CHOOSES
    def test_structured_output_pydantic_2_v1(self, model: BaseChatModel) -> None:
        super().test_structured_output_pydantic_2_v1(model)

    @CHOOSES
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)

    @CHOOSES
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @CHOOSES
    @TWO_FORMS
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @CHOOSES
    def test_unicode_tool_call_integration(  # type: ignore[override]
        self, model: BaseChatModel
    ) -> None:
        super().test_unicode_tool_call_integration(model)


def call(name: str, args: str) -> str:
    """A call as the script writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {args}}}\n</tool_call>'


def asked(question: str) -> str:
    """The end of a prompt in Qwen's template."""
    return f"{question}<|im_end|>\n<|im_start|>assistant\n"


JOKE = '{"setup": "Why?", "punchline": "Meow."}'
GREETINGS = [
    *("Hello", "Hey", "hi", "hello", "how are you", "Well, thanks."),
    "Write me 2 haikus. Only include the haikus.",
]
RULES: dict[str, str | list[str]] = {
    **dict.fromkeys(map(asked, GREETINGS), "Hello, how are you?"),
    asked("</tool_response>"): "It is done.",
    asked("Split."): "Let us see.\n####Ann:......\n####Ben:......\n####%%%%",
    "####Ann:": " one",
    "####Ben:": " two",
    "####%%%%\n": "Ann.",
    asked("What is the value of magic_function(3)? Use the tool."): call(
        "magic_function", '{"input": 3}'
    ),
    asked("What is the value of magic_function_no_args()? Use the tool."): call(
        "magic_function_no_args", "{}"
    ),
    asked("Using the tool, generate a Pirate greeting."): call(
        "greeting_generator", '{"answer_style": "Pirate"}'
    ),
    asked("What is the weather in San Francisco, CA?"): call(
        "get_weather", '{"location": "San Francisco, CA"}'
    ),
    asked("What is 3 + 4"): call("my_adder_tool", '{"a": 3, "b": 4}'),
    asked("Hello!"): call("magic_function", '{"input": 1}'),
    asked("}"): JOKE,  # behind the schema that the model is told
    asked("Return nothing other than JSON."): JOKE,
    asked("a Chinese technology company"): call(
        "unicode_customer", '{"customer_name": "好", "description": "x"}'
    ),
    asked("a Japanese company"): call(
        "unicode_customer", '{"customer_name": "こ", "description": "x"}'
    ),
}


@pytest.fixture(scope="module")
def scripted() -> EngineCache:
    """A model that follows `RULES`, in Qwen's template."""
    tokenizer = tokenizer_with(QWEN)
    tokenizer.add_tokens(["好", "こ"])  # a script writes whole tokens
    engine = Engine(tiny_model(8192), tokenizer, max_slots=16384, prefix_cache_tokens=0)
    Script(engine, RULES)
    chat = ChatParallelReasoning.from_engine(engine, model="scripted")
    return chat.engines


class TestScriptedModel(Suite):
    """The same suite, with a model that chooses well."""

    @pytest.fixture(autouse=True)
    def _share(self, scripted: EngineCache) -> None:
        self.engines = scripted

    @property
    def chat_model_params(self) -> dict[str, Any]:
        budgets = {**SMALL, "max_tokens": 256}
        return {"model": "scripted", "engines": self.engines, "prompts": BARE, **budgets}

    @property
    def model_override_value(self) -> str:
        return "scripted"

    @property
    def reasoning_question(self) -> str:
        return "Split."
