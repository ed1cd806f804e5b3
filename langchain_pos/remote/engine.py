"""`OpenAICompletionsEngine`: a server that answers instead of a local model.

vLLM and SGLang cache the prefixes that they have read and decode many requests together. There, a
branch can be its own request: it begins with the same text as its siblings, which is read once,
and is decoded alongside them. Their cache replaces our mask.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)

from langchain_pos.errors import InvalidRequestError, ModelLoadError
from langchain_pos.field_names import known_names
from langchain_pos.reasoning.prompts import ReasoningPrompts, load_prompts
from langchain_pos.remote.dialects import Dialect, dialect_of
from langchain_pos.remote.scheduler import RemoteScheduler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.remote.client import CompletionsClient


class OpenAICompletionsEngine(BaseModel):
    """An OpenAI-compatible server with `/v1/completions`: vLLM, SGLang, `transformers serve`.

    Pass it to `ParallelReasoningLLM` or `ChatParallelReasoning` as `engine`. Needs the extra
    `langchain-pos[openai]`. Nothing is sent before the first question. One engine serves many
    threads and tasks, and several runnables.

    Examples:
        >>> engine = OpenAICompletionsEngine(
        ...     base_url="http://localhost:8000/v1",
        ...     model="Qwen/Qwen2.5-7B-Instruct",
        ...     tokenizer="Qwen/Qwen2.5-7B-Instruct",
        ... )
        >>> ParallelReasoningLLM(engine=engine).invoke("Compare …")  # doctest: +SKIP
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    base_url: str
    """The server's address, with `/v1`."""
    model: str | None = None
    """The model's name on the server; None takes the only one listed."""
    tokenizer: str | None = None
    """Folder or hub name of the model's tokenizer: for its chat template, and to count tokens.
    None: questions are sent as plain text, which instruction-tuned models answer less well."""
    api_key: SecretStr | None = Field(default=None)
    """Sent as bearer token; None sends a placeholder. Environment variables are not read, so that
    another server's key is never sent."""
    server: Literal["auto", "vllm", "vllm-guided", "sglang", "llamacpp", "plain"] = "auto"
    """What the server understands beyond OpenAI's parameters; "auto" infers it from the list of
    models. "vllm-guided" is vLLM up to 0.11, "plain" any other server."""
    context_length: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer together; None takes the server's figure, or else the
    tokenizer's. If neither is known, the server refuses prompts that are too long."""
    max_concurrency: int = Field(default=32, ge=1)
    """Requests to the server in progress at once, over all questions; others wait."""
    max_retries: int = Field(default=4, ge=0)
    """How often a request is retried that could not be sent, or was answered with 408, 429, 502,
    503 or 504. `Retry-After` is honoured up to a minute."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds without any data from the server after which a request has failed."""
    default_headers: dict[str, str] = Field(default_factory=dict)
    """Sent with every request."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every completion request, under the server's own names."""

    _shared: _Shared = PrivateAttr(default_factory=lambda: _Shared())

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, fields: Any) -> Any:
        return known_names(fields, cls.model_fields) if isinstance(fields, dict) else fields

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, base_url: str) -> str:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url={base_url!r} is not an address; give one like http://localhost:8000/v1"
            )
        return base_url.rstrip("/")

    @property
    def scheduler(self) -> RemoteScheduler:
        """Runs the questions."""
        return self._shared.scheduler

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that an answer depends on, for cache keys."""
        return self.model_dump(
            include={"base_url", "model", "tokenizer", "server", "context_length", "extra_body"}
        )

    def close(self) -> None:
        """Close all connections and end the thread; questions in progress are cancelled."""
        self._shared.scheduler.close()

    # --------------------------------------------------------------------- tokens

    @property
    def tokenizer_or_none(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, loaded when first needed; None if none is named.

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
                "tokenizer=… (folder or hub name of the server's model)"
            )
        return tokenizer

    @property
    def prompts(self) -> ReasoningPrompts | None:
        """The prompts in the tokenizer's folder, if it is a folder and has any."""
        folder = Path(self.tokenizer).expanduser() if self.tokenizer else None
        return load_prompts(folder) if folder is not None and folder.is_dir() else None

    # ----------------------------------------------------------------- the server

    async def connect(self, model: str | None = None) -> Connection:
        """The server's properties; it is asked once. For use on the scheduler's loop.

        Raises:
            ServerError: it cannot be reached.
            ModelLoadError: it has no such model.
        """
        client = self._shared.client_of(self)
        listed = await client.models()
        name = model or self.model
        if name is None:
            if len(listed) != 1:
                names = ", ".join(repr(card.id) for card in listed) or "none"
                raise ModelLoadError(
                    f"the server at {self.base_url} lists {names}; name the model (model=…)"
                )
            name = str(listed[0].id)
        # A server may serve models that it does not list (`transformers serve`).
        card = next((card for card in listed if card.id == name), None)
        extra = getattr(card, "model_extra", None) or {}
        reported = extra.get("max_model_len") or (extra.get("meta") or {}).get("n_ctx")
        owner = str(getattr(card or next(iter(listed), None), "owned_by", ""))
        dialect = dialect_of(owner) if self.server == "auto" else self.server
        length = self.context_length or (int(reported) if reported else self._tokenizer_length())
        return Connection(client, name, dialect, length)

    def _tokenizer_length(self) -> int | None:
        tokenizer = self.tokenizer_or_none
        if tokenizer is None:
            return None
        from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

        length = int(tokenizer.model_max_length)
        return length if length < VERY_LARGE_INTEGER else None


class Connection:
    """A server with its known properties.

    Attributes:
        client: sends the requests.
        model: the model's name on the server.
        dialect: the fields that it understands.
        context_length: tokens of prompt and answer; None if unknown.
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
    """State shared by the copies of an engine within one process."""

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
                        f"({str(error).splitlines()[0]}); give the folder or hub name of the "
                        "server's model, or omit tokenizer"
                    ) from error
            return self._tokenizers[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __reduce__(self) -> tuple[type[_Shared], tuple[()]]:
        return _Shared, ()


class _Http:
    """The client, created on the loop that uses it. Does not keep the scheduler alive."""

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
