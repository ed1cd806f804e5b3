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


# 3. Structured output, held to its schema by a grammar. This model has never seen JSON: it reads a
#    value of the question, and not always the right one.
class Grade(BaseModel):
    """A value to read in the resumes."""

    read: str = Field(pattern=r"^GPA [0-5]\.[0-9][0-9]$")


print(repr(chat.with_structured_output(Grade).invoke(demo_question())))

# 4. Several inputs in the same forward passes.
ranges = [("1.00", "1.50"), ("4.00", "4.20")]
questions = [demo_question().replace("2.45", low).replace("2.95", high) for low, high in ranges]
for answer in chat.batch(questions):
    print(answer.text)
