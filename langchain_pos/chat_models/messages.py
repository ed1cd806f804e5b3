"""LangChain messages to a prompt in the model's own chat template, also in a strict one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_pos.chat_models.tool_calling import Tool, ToolForm, form_of, instruction
from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.chat_template import Turn, encode_turns, is_rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = {
    "human": "user",
    "user": "user",
    "system": "system",
    "developer": "system",
    "ai": "assistant",
    "assistant": "assistant",
}
_NOT_TEXT = {"reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call"}
"""Blocks that say nothing to the model: thoughts of earlier turns; calls are in `tool_calls`."""


def as_turns(messages: Sequence[BaseMessage]) -> list[Turn]:
    """Messages as chat templates take them; neighbours of one role are merged.

    Raises:
        InvalidRequestError: a message holds something besides text, or is of a kind that no
            model reads.
    """
    ids: dict[str, str] = {}

    def short(call_id: str | None) -> str:
        """Nine digits: what the strictest templates (Mistral's) take for an id."""
        return ids.setdefault(call_id or "", f"{len(ids):09d}")

    turns: list[Turn] = []
    names: dict[str, str] = {}
    for message in messages:
        turn: Turn = {"role": _role(message), "content": _text(message)}
        if isinstance(message, AIMessage):
            for call in message.invalid_tool_calls:
                turn["content"] = _join(turn["content"], call["args"] or "")
            if message.tool_calls:
                turn["tool_calls"] = [
                    {
                        "type": "function",
                        "id": short(call["id"]),
                        "function": {"name": call["name"], "arguments": call["args"]},
                    }
                    for call in message.tool_calls
                ]
                names |= {call["id"] or "": call["name"] for call in message.tool_calls}
        if isinstance(message, ToolMessage):
            turn["tool_call_id"] = short(message.tool_call_id)
            turn["name"] = message.name or names.get(message.tool_call_id, "tool")
        if isinstance(message, FunctionMessage):
            turn["name"] = message.name
        turns.append(turn)
    return _merged(turns)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    tools: Sequence[Tool] = (),
    *,
    thinking: bool | None = None,
) -> list[int]:
    """Token ids of a chat, ready for the model's answer.

    The template is given the turns and tools as they are. Where it refuses them, or leaves some
    of them out, system messages are put into the user's next message, and tools and tool messages
    are written as text.

    Raises:
        InvalidRequestError: the template takes them in none of these forms.
    """
    form, knows_tools = form_of(template_of(tokenizer, tools))
    uses_tools = bool(tools) or any("tool_calls" in t or t["role"] == "tool" for t in turns)
    ways: list[tuple[Sequence[Turn], Sequence[Tool]]] = []
    if knows_tools or not uses_tools:
        ways += [(turns, tools), (_without_system(turns), tools)]
    if uses_tools:
        text = _as_text(turns, tools, form)
        ways += [(text, ()), (_without_system(text), ())]
    if not getattr(tokenizer, "chat_template", None):
        return encode_turns(tokenizer, ways[-2][0])
    for candidate, with_tools in ways:
        if is_rendered(tokenizer, candidate, with_tools):
            return encode_turns(tokenizer, candidate, with_tools, thinking=thinking)
    encode_turns(tokenizer, *ways[0])  # raises with the template's own words, if it has any
    roles = ", ".join(turn["role"] for turn in turns)
    raise InvalidRequestError(
        f"the model's chat template leaves some of these messages out ({roles}); give a history in "
        "which user and assistant alternate, or fix the template"
    )


def template_of(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool] = ()) -> str | None:
    """The chat template that is used with these tools; None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return str(tokenizer.get_chat_template(tools=list(tools) or None))
    return template


def take_prefill(turns: list[Turn]) -> str:
    """The beginning of the answer, which stands last; taken out of the turns.

    Raises:
        InvalidRequestError: the last message is not a text of the model's.
    """
    last = turns[-1] if turns else {"role": "nothing"}
    if last["role"] != "assistant" or "tool_calls" in last or not last["content"]:
        raise InvalidRequestError(
            f"continue_final_message continues an AI message with text; the last one is of "
            f"{last['role']}. Put the beginning of the answer last, as an AI message"
        )
    return str(turns.pop()["content"])


def with_instruction(turns: list[Turn], users: list[int], instruction: str) -> list[Turn]:
    """An instruction after what the user said last, or as a turn of its own."""
    if not users:
        return [*turns, {"role": "user", "content": instruction}]
    last = turns[users[-1]]
    turns[users[-1]] = {**last, "content": f"{last['content']}\n\n{instruction}"}
    return turns


def _role(message: BaseMessage) -> str:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ToolMessage | FunctionMessage):
        return "tool"
    if isinstance(message, ChatMessage) and message.role in _ROLES:
        return _ROLES[message.role]
    role = getattr(message, "role", message.type)
    raise InvalidRequestError(
        f"a message of the kind {role!r} cannot be read; allowed are human, AI, system and tool "
        "messages"
    )


def _text(message: BaseMessage) -> str:
    """The text of a message; what is not text is refused, except thoughts and tool calls."""
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif isinstance(block.get("text"), str) and block.get("type", "text") == "text":
            parts.append(block["text"])
        elif block.get("type") not in _NOT_TEXT:
            raise InvalidRequestError(
                f"a {message.type} message holds a block of the type {block.get('type')!r}; only "
                "text can be read. Leave it out, or describe it in words"
            )
    return "".join(parts)


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Neighbours of one role as one turn; tool messages stay apart."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last is None or last["role"] != turn["role"] or turn["role"] == "tool":
            merged.append(dict(turn))
            continue
        last["content"] = _join(last["content"], turn["content"])
        if "tool_calls" in turn:
            last["tool_calls"] = [*last.get("tool_calls", ()), *turn["tool_calls"]]
    return merged


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    """System messages become the beginning of what the user says next."""
    folded: list[Turn] = []
    held = ""
    for turn in turns:
        if turn["role"] == "system":
            held = _join(held, turn["content"], "\n\n")
            continue
        if turn["role"] == "user":
            turn = {**turn, "content": _join(held, turn["content"], "\n\n")}
            held = ""
        folded.append(turn)
    if held:
        folded.append({"role": "user", "content": held})
    return _merged(folded)


def _as_text(turns: Sequence[Turn], tools: Sequence[Tool], form: ToolForm) -> list[Turn]:
    """Tools, calls and their results as text."""
    written: list[Turn] = []
    if tools:
        written.append({"role": "system", "content": instruction(tools, form)})
    for turn in turns:
        content, role = turn["content"], turn["role"]
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            content = _join(content, form.write(function["name"], function["arguments"]))
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if role == "system" and written and written[0]["role"] == "system":
            # The user's words come first, as templates do it.
            written[0]["content"] = _join(content, written[0]["content"], "\n\n")
            continue
        written.append({"role": role, "content": content})
    return _merged(written)


def _join(left: str, right: str, gap: str = "\n") -> str:
    return gap.join(part for part in (left, right) if part)
