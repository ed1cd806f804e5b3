"""`OpenAICompletionsEngine`: a server that answers in place of a local model.

vLLM and SGLang keep the prefixes of what they have read and decode many requests together. So a
branch can be a request of its own there: it begins with the same text as its siblings, which is
read once, and is decoded beside them. What the mask does in one process, they do with a cache.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from langchain_pos.errors import InvalidRequestError, ModelLoadError
from langchain_pos.reasoning.prompts import ReasoningPrompts, load_prompts
from langchain_pos.remote.dialects import Dialect, dialect_of
from langchain_pos.remote.scheduler import RemoteScheduler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.remote.client import CompletionsClient


class OpenAICompletionsEngine(BaseModel):
    """An OpenAI-compatible server with `/v1/completions`: vLLM, SGLang, `transformers serve`.

    Given to `ParallelReasoningLLM` or `ChatParallelReasoning` as `engine`. Needs the extra
    `langchain-pos[openai]`. Nothing is asked before the first question. One engine serves many
    threads and tasks, and several runnables.

    Examples:
        >>> engine = OpenAICompletionsEngine(
        ...     base_url="http://localhost:8000/v1",
        ...     model="Qwen/Qwen2.5-7B-Instruct",
        ...     tokenizer="Qwen/Qwen2.5-7B-Instruct",
        ... )
        >>> ParallelReasoningLLM(engine=engine).invoke("Compare …")  # doctest: +SKIP
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    base_url: str
    """Of the server, with `/v1`."""
    model: str | None = None
    """What the server calls the model; None takes the only one that it lists."""
    tokenizer: str | None = None
    """Folder or hub name of the model's tokenizer: for its chat template, and to count tokens.
    None: questions are put as plain text, which instruction-tuned models answer less well."""
    api_key: SecretStr | None = Field(default=None)
    """Sent as bearer token; None sends none that means anything. The environment is not looked at:
    another server's key is nobody else's business."""
    server: Literal["auto", "vllm", "vllm-guided", "sglang", "plain"] = "auto"
    """What the server understands beyond OpenAI's parameters; "auto" looks at what it lists.
    "vllm-guided" is vLLM up to 0.11, "plain" any other one."""
    context_length: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer together; None takes what the server tells, or else what the
    tokenizer does. Where nobody knows, it is the server that refuses what is too long."""
    max_concurrency: int = Field(default=32, ge=1)
    """Requests to the server under way at once, over all questions; further ones wait."""
    max_retries: int = Field(default=4, ge=0)
    """How often a request is tried again that could not be made, or was answered with 408, 429,
    502, 503 or 504. `Retry-After` is honoured up to a minute."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds without any news from the server, after which a request has failed."""
    default_headers: dict[str, str] = Field(default_factory=dict)
    """Sent with every request."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every completion request, in the server's own words."""

    _shared: _Shared = PrivateAttr(default_factory=lambda: _Shared())

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, base_url: str) -> str:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url={base_url!r} is no address; it looks like http://localhost:8000/v1"
            )
        return base_url.rstrip("/")

    @property
    def scheduler(self) -> RemoteScheduler:
        """Runs the questions."""
        return self._shared.scheduler

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on, for cache keys."""
        return self.model_dump(
            include={"base_url", "model", "tokenizer", "server", "context_length", "extra_body"}
        )

    def close(self) -> None:
        """Close all connections and end the thread; questions under way are cancelled."""
        self._shared.scheduler.close()

    # --------------------------------------------------------------------- tokens

    @property
    def tokenizer_or_none(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, loaded when it is first needed; None where none is named.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        return self._shared.tokenizer_of(self.tokenizer)

    @property
    def tokenizer_or_error(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            ModelLoadError: it cannot be loaded.
            InvalidRequestError: none is named.
        """
        tokenizer = self.tokenizer_or_none
        if tokenizer is None:
            raise InvalidRequestError(
                "the engine has no tokenizer, so tokens cannot be counted here; give it "
                "tokenizer=… (folder or hub name of the model that the server runs)"
            )
        return tokenizer

    @property
    def prompts(self) -> ReasoningPrompts | None:
        """The wording that the tokenizer's folder brings along, if it is one and does."""
        folder = Path(self.tokenizer).expanduser() if self.tokenizer else None
        return load_prompts(folder) if folder is not None and folder.is_dir() else None

    # ----------------------------------------------------------------- the server

    async def connect(self, model: str | None = None) -> Connection:
        """What is known of the server; it is asked once. For the scheduler's loop.

        Raises:
            ServerError: it cannot be reached.
            ModelLoadError: it has no such model.
        """
        client = self._shared.client_of(self)
        listed = await client.models()
        wanted = model or self.model
        if wanted is None:
            if len(listed) != 1:
                names = ", ".join(repr(card.id) for card in listed) or "none"
                raise ModelLoadError(
                    f"the server at {self.base_url} lists {names}; name the model (model=…)"
                )
            wanted = str(listed[0].id)
        # A server may serve what it does not list (`transformers serve`); it refuses the rest.
        card = next((card for card in listed if card.id == wanted), None)
        told = (getattr(card, "model_extra", None) or {}).get("max_model_len")
        owner = str(getattr(card or next(iter(listed), None), "owned_by", ""))
        dialect = dialect_of(owner) if self.server == "auto" else self.server
        length = self.context_length or (int(told) if told else self._told_by_tokenizer())
        return Connection(client, wanted, dialect, length)

    def _told_by_tokenizer(self) -> int | None:
        tokenizer = self.tokenizer_or_none
        if tokenizer is None:
            return None
        from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

        length = int(tokenizer.model_max_length)
        return length if length < VERY_LARGE_INTEGER else None


class Connection:
    """A server that has been asked what it is.

    Attributes:
        client: asks it.
        model: its name there.
        dialect: what it understands.
        context_length: tokens of prompt and answer; None where nobody knows.
    """

    def __init__(
        self,
        client: CompletionsClient,
        model: str,
        dialect: Dialect,
        context_length: int | None,
    ) -> None:
        self.client = client
        self.model = model
        self.dialect = dialect
        self.context_length = context_length


class _Shared:
    """What the copies of an engine share, and no other process does."""

    def __init__(self) -> None:
        self._http = _Http()
        self.scheduler = RemoteScheduler(self._http.close)
        self._lock = threading.Lock()
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def client_of(self, engine: OpenAICompletionsEngine) -> CompletionsClient:
        return self._http.client_of(engine)

    def tokenizer_of(self, name: str | None) -> PreTrainedTokenizerBase | None:
        if name is None:
            return None
        with self._lock:
            if name not in self._tokenizers:
                from transformers import AutoTokenizer

                try:
                    self._tokenizers[name] = cast(
                        "PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(name)
                    )
                except (OSError, ValueError) as error:
                    raise ModelLoadError(
                        f"the tokenizer {name!r} cannot be loaded "
                        f"({str(error).splitlines()[0]}); name the folder or hub name of the model "
                        "that the server runs, or leave tokenizer out"
                    ) from error
            return self._tokenizers[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __reduce__(self) -> tuple[type[_Shared], tuple[()]]:
        return _Shared, ()


class _Http:
    """The client, made on the loop that uses it. Holds no scheduler, so that one can be freed."""

    def __init__(self) -> None:
        self._client: CompletionsClient | None = None

    def client_of(self, engine: OpenAICompletionsEngine) -> CompletionsClient:
        if self._client is None:
            from langchain_pos.remote.client import CompletionsClient

            key = engine.api_key
            self._client = CompletionsClient(
                base_url=engine.base_url,
                api_key="none" if key is None else key.get_secret_value(),
                headers=engine.default_headers,
                timeout=engine.timeout,
                max_retries=engine.max_retries,
                max_concurrency=engine.max_concurrency,
            )
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
