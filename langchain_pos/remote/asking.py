"""One question's way of asking a server: texts as prompts, budgets, and what each call has cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_pos.engine.completion import TokenUsage
from langchain_pos.engine.tokenization.text import encode_continuation
from langchain_pos.errors import ContextLengthError, InvalidRequestError
from langchain_pos.reasoning.budget import LEAST_ROOM, Budget
from langchain_pos.reasoning.chat_template import encode_prompt, prompt_text, spells_special_token
from langchain_pos.remote.dialects import Call, constrains, fields_of

if TYPE_CHECKING:
    from langchain_pos.reasoning.chat_template import Message
    from langchain_pos.reasoning.progress import Progress
    from langchain_pos.reasoning.settings import ReasoningSettings
    from langchain_pos.remote.engine import Connection, OpenAICompletionsEngine
    from langchain_pos.remote.scheduler import RemoteRequest
    from langchain_pos.remote.sinks import Sink
    from langchain_pos.results.data import Plan
    from langchain_pos.results.result import ReasoningResult


@dataclass
class TextTrunk:
    """The text that all stages stand on; see `trunk.Trunk`, which holds tokens.

    Attributes:
        head: the prompt: text, or token ids where the server would read its text otherwise.
        text: what of the answer is settled.
    """

    head: str | list[int]
    text: str = ""


class Asker:
    """Asks a server on behalf of one question.

    Args:
        engine: the server.
        connection: what is known of it.
        settings: sampling.
        progress: counts the tokens.
        request: counts those that the server had read before.
        seed: the question's.

    Attributes:
        constrained: whether the server holds texts to a grammar.
        budget: what fits; None where the context's length is not known, or tokens cannot be
            counted. Then the settings alone bound, and the server refuses what is too long.
        input_tokens: tokens of all prompts, as the server tells them.
    """

    def __init__(
        self,
        engine: OpenAICompletionsEngine,
        connection: Connection,
        settings: ReasoningSettings,
        progress: Progress,
        request: RemoteRequest[ReasoningResult],
        seed: int,
    ) -> None:
        self.settings = settings
        self.progress = progress
        self.seed = seed
        self.constrained = constrains(connection.dialect)
        self.budget: Budget | None = None
        self.input_tokens = 0
        self._connection = connection
        self._extra_body = engine.extra_body
        self._request = request
        self._tokenizer = engine.tokenizer_or_none

    # -------------------------------------------------------------------- texts

    def trunk(self, messages: Sequence[Message], also: Sequence[str] = ()) -> TextTrunk:
        """A prompt, with nothing of the answer yet.

        Args:
            messages: end with the user's.
            also: further texts of the user that will stand behind it.

        Raises:
            InvalidRequestError: the chat template refuses the messages; or a text spells a special
                token, and the server can only read it as one.
        """
        tokenizer = self._tokenizer
        texts = [*(text for _, text in messages), *also]
        if tokenizer is None or not spells_special_token(tokenizer, texts):
            return TextTrunk(prompt_text(tokenizer, messages))
        if not self.constrained:
            raise InvalidRequestError(
                "the question spells one of the model's special tokens, which a server that takes "
                "prompts as text alone would read as one; take it out of the question. vLLM and "
                "SGLang take token ids (server='vllm', 'sglang')"
            )
        return TextTrunk(encode_prompt(tokenizer, messages))

    def length(self, trunk: TextTrunk, more: str = "") -> int:
        """Tokens of a trunk and what follows it; 0 where they cannot be counted."""
        if self._tokenizer is None:
            return 0
        if isinstance(trunk.head, str):
            return len(self._tokenizer(trunk.head + trunk.text + more)["input_ids"])
        return len(trunk.head) + self.tokens(trunk.text + more)

    def tokens(self, text: str) -> int:
        """Tokens of a text that goes on from other text; 0 where they cannot be counted."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Those tokens; none where there is no tokenizer."""
        return [] if self._tokenizer is None else encode_continuation(self._tokenizer, text)

    def share_out(self, trunks: Sequence[TextTrunk], given: Plan | None) -> None:
        """Set the budget behind the longest of the prompts.

        Raises:
            ContextLengthError: too little is left for an answer.
        """
        limit = self._connection.context_length
        if limit is None or self._tokenizer is None:
            return
        longest = max(map(self.length, trunks))
        if limit - longest < LEAST_ROOM:
            raise ContextLengthError(
                f"the prompt has {longest} tokens, and {LEAST_ROOM} must be left for the answer; "
                f"the server has room for {limit}. Shorten the question, or start the server with "
                "a longer context"
            )
        self.budget = Budget.within(limit, longest, self.settings, given)

    def room(self, trunk: TextTrunk, wanted: int) -> int:
        """How many of the tokens that are wanted have room behind a trunk."""
        if self.budget is None:
            return wanted
        return min(wanted, self.budget.limit - self.length(trunk))

    # -------------------------------------------------------------------- a call

    async def write(self, sink: Sink, trunk: TextTrunk, call: Call, more: str = "") -> None:
        """Ask for one completion behind a trunk and follow it.

        Args:
            sink: takes it. Its `usage` is what the server tells; counted here where the server does
                not tell, or where the sink has broken it off.
            trunk: what it goes on from.
            call: budget, sampling, constraint.
            more: what stands between the trunk and the completion.

        Raises:
            ParallelReasoningError: see `CompletionsClient.write`.
        """
        prompt: str | list[int]
        if isinstance(trunk.head, str):
            prompt = f"{trunk.head}{trunk.text}{more}"
        else:
            prompt = [*trunk.head, *self.encode(f"{trunk.text}{more}")]
        fields = fields_of(call, self.settings, self._connection.dialect)
        fields["extra_body"] |= self._extra_body
        fields |= {"model": self._connection.model, "prompt": prompt}
        try:
            await self._connection.client.write(sink, fields)
        finally:
            self._count(sink, trunk, more)

    def _count(self, sink: Sink, trunk: TextTrunk, more: str) -> None:
        written = sink.written
        usage = written.usage
        if usage is None:
            if not written.chunks:
                return
            # Without a tokenizer: a chunk is a token with most servers.
            output = self.tokens(written.text) or written.chunks
            usage = TokenUsage(self.length(trunk, more), output)
        self.progress.output_tokens += usage.output_tokens
        self.progress.has_read(usage.input_tokens)
        self.input_tokens += usage.input_tokens
        self._request.cached_tokens += written.cached_tokens
        sink.usage = usage
