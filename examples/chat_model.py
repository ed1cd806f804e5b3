"""The chat model: parallel reasoning as reasoning content, a tool call, structured output."""

from typing import Annotated

from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_pos import ChatParallelReasoning, demo_question

chat = ChatParallelReasoning()  # the shipped model, on the CPU, no download

# 1. A question with parts: the branches are reasoning, the conclusion is the text.
message = chat.invoke(demo_question())
print(message.content_blocks[0]["reasoning"])
print(message.text)
print(message.usage_metadata)


# 2. A tool call, valid whatever the model would write. This model knows no arithmetic; a larger
#    one would also choose well.
Digit = Annotated[int, Field(ge=0, le=9)]


@tool
def add(a: Digit, b: Digit) -> int:
    """Add two numbers."""
    return a + b


bound = chat.bind_tools([add], tool_choice="any", parallel_tool_calls=False)
print(bound.invoke("What is 3 + 4?", max_tokens=100).tool_calls)


# 3. Structured output, held to its schema by a grammar.
class Score(BaseModel):
    """How well it fits."""

    fits: bool
    points: int = Field(ge=0, le=10)


print(repr(chat.with_structured_output(Score).invoke("Does Ann fit?")))

# 4. Several inputs in the same forward passes.
for answer in chat.batch(["Hello", "Who?"], mode="sequential", max_tokens=20):
    print(repr(answer.text))
