"""The fields that determine which model answers, and how it is loaded, for all runnables."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from langchain_pos.embedded import SHIPPED_MODEL_NOTE, embedded_model_path
from langchain_pos.errors import ModelLoadError
from langchain_pos.field_names import known_names
from langchain_pos.loading_bar import loading_bar
from langchain_pos.reasoning.prompts import ReasoningPrompts, load_prompts
from langchain_pos.remote.engine import OpenAICompletionsEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_pos.engine.engine import Engine
    from langchain_pos.reasoning.reasoner import Reasoner

logger = logging.getLogger("langchain_pos")

_loading = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[str, str], Engine] = weakref.WeakValueDictionary()
"""All engines of this process that were loaded by name, by model and options, while anybody holds
them: two runnables of one model share its weights."""


class EngineCache:
    """Engines by their source; each is loaded once, when first needed.

    If a field is configurable, LangChain creates a new runnable from a runnable's fields for every
    call. All of them hold this one object, so they share the engine, and keep a model loaded by
    the caller. A copy for another process starts empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: list[tuple[str | None, dict[str, Any], Engine]] = []
        self._given: tuple[str | None, Engine] | None = None
        self._idle: threading.Timer | None = None
        self.identity: str | None = None
        """Tells given engines apart in cache keys: two models of one name may differ in weights."""

    def give(self, name: str | None, options: dict[str, Any], engine: Engine) -> None:
        """Keep an existing engine."""
        self._given = name, engine
        self.identity = uuid4().hex
        self._engines.append((name, options, engine))

    def get(
        self, name: str | None, options: dict[str, Any], *, keep_alive: float | None = None
    ) -> Engine:
        """The engine of a model.

        Args:
            name: folder, GGUF file or hub name; None for the shipped model, or for a given one.
            options: for `Engine.load`.
            keep_alive: seconds without a further call after which it is let go.

        Raises:
            ModelLoadError, UnsupportedModelError: it cannot be loaded, or cannot serve.
        """
        with self._lock:
            if keep_alive is not None:
                self._let_go_in(keep_alive)
            for known, with_options, engine in self._engines:
                if (known, with_options) == (name, options):
                    return engine
            if self._given is not None and self._given[0] == name:
                raise ModelLoadError(
                    "this runnable was made from a model that was loaded already, so its device, "
                    "dtype, slots and the like cannot be changed; make another runnable with "
                    "from_model, or give the model's folder or hub name"
                )
            engine = _load(name or shipped_model(), options)
            if name is None:
                logger.info("%s; model=… names your own", SHIPPED_MODEL_NOTE)
            self._engines.append((name, options, engine))
            return engine

    def close(self) -> None:
        """Let go of all that was loaded; what others hold, and what is running, stays.

        The next call loads again. A model that was given loaded is the caller's, and stays.
        """
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            given = None if self._given is None else self._given[1]
            self._engines = [entry for entry in self._engines if entry[2] is given]
        gc.collect()  # a model and its hooks hold each other

    def _let_go_in(self, seconds: float) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = threading.Timer(seconds, self.close)
        self._idle.daemon = True
        self._idle.start()

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineCache:
        return self

    def __reduce__(self) -> tuple[type[EngineCache], tuple[()]]:
        if self._given is not None:
            raise TypeError(
                "a runnable made from a model that was loaded already cannot be pickled; make it "
                "with model=… (a folder or hub name), and each process loads its own"
            )
        return EngineCache, ()


def _load(name: str, options: dict[str, Any]) -> Engine:
    """The engine of a model with these options, which this process may have already."""
    key = name, repr(sorted(options.items()))
    with _loading:
        engine = _loaded.get(key)
        if engine is None:
            began = time.monotonic()
            with loading_bar():
                from langchain_pos.engine.engine import Engine

                engine = Engine.load(name, **options)
            _loaded[key] = engine
            logger.info(
                "loaded %s on %s as %s in %.1f s",
                name,
                engine.model.device,
                engine.model.dtype,
                time.monotonic() - began,
            )
        return engine


def _aliases(cls: type[BaseModel]) -> set[str]:
    return {field.alias for field in cls.model_fields.values() if field.alias}


def shipped_model() -> str:
    """The folder of the model that ships with the package."""
    return str(embedded_model_path())


class ModelSource(BaseModel):
    """A model by name, loaded when first needed; a loaded model; or a server."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    model: str | None = None
    """A folder, a `.gguf` file, a Hugging Face hub name, or `hub-name:file.gguf`; None is the model
    that ships with the package."""
    dtype: str = "auto"
    """"auto" (the checkpoint's) or a torch dtype's name."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", "mps"."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    attn_implementation: str = "auto"
    """"auto", "sdpa" or "eager"."""
    max_slots: int | None = Field(default=None, ge=1)
    """Most KV-cache slots to hold; None takes what fits in half of the free memory."""
    draft_rows: int | None = Field(default=None, ge=1)
    """Rows of a forward pass that drafts may fill; None: measured when the model is loaded."""
    prefix_cache_tokens: int = Field(default=16384, ge=0)
    """Tokens of questions whose keys and values are kept for later ones that begin alike."""
    cuda_graphs: bool | None = None
    """Record forward passes as CUDA graphs; None: if the model is on one CUDA device."""
    pack_weights: bool | None = None
    """Rewrite the weights for faster steps on a CPU; None: unless the model was given loaded."""
    quantization: str | None = None
    """"int8" keeps the weights in eight bits, on a CPU; texts then differ a little. None: as the
    checkpoint has them."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    use_safetensors: bool = True
    """Refuse pickled weights."""
    keep_alive: float | None = Field(default=None, gt=0)
    """Seconds after the last call in which the model stays loaded; None: as long as this object
    lives. `close()` lets it go at once."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """For transformers' `from_pretrained`: `device_map`, `quantization_config`, …"""
    prompts: ReasoningPrompts | None = None
    """The model's prompts; None: its own wording if its folder has one, else English or Chinese by
    the question's script."""

    remote: OpenAICompletionsEngine | None = Field(default=None, alias="engine")
    """A server that answers instead of a local model; passed as `engine`. The fields above about
    loading do not apply to it."""

    engines: SkipJsonSchema[EngineCache] = Field(
        default_factory=EngineCache, exclude=True, repr=False
    )
    """The loaded model, shared by the copies that LangChain creates; internal."""

    def __init__(self, model: str | None = None, /, **fields: Any) -> None:
        super().__init__(**fields if model is None else {"model": model, **fields})

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return known_names(fields, [*cls.model_fields, *_aliases(cls)])

    @field_validator("remote", mode="before")
    @classmethod
    def _is_a_server(cls, engine: Any) -> Any:
        if engine is None or isinstance(engine, OpenAICompletionsEngine | dict):
            return engine
        raise ValueError(
            f"engine={type(engine).__name__} is not a server; give an OpenAICompletionsEngine. "
            "A local Engine goes through from_engine, a loaded model through from_model"
        )

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.remote is not None and self.model is not None:
            raise ValueError(
                f"model={self.model!r} names a local model, and engine a server; give the server's "
                "model to the engine: OpenAICompletionsEngine(model=…)"
            )
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The model's name first, then what else differs from the defaults."""
        name = self.model or ("langchain_pos/embedded" if self.remote is None else None)
        if name is not None:
            yield "model", name
        for key, value in super().__repr_args__():
            if key not in ("model", "metadata", "profile", "engines") and value not in ({}, None):
                yield key, value

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, **fields: Any) -> Self:
        """Over a loaded transformers model and tokenizer."""
        from langchain_pos.engine.engine import Engine

        return cls.from_engine(
            Engine(
                model,
                tokenizer,
                attn_implementation=fields.get("attn_implementation", "auto"),
                max_slots=fields.get("max_slots"),
                draft_rows=fields.get("draft_rows"),
                prefix_cache_tokens=fields.get("prefix_cache_tokens", 16384),
                cuda_graphs=fields.get("cuda_graphs"),
                pack_weights=bool(fields.get("pack_weights")),
                quantization=fields.get("quantization"),
            ),
            **fields,
        )

    @classmethod
    def from_engine(cls, engine: Engine, **fields: Any) -> Self:
        """Over an engine; several may share one, and its forward passes."""
        name = str(getattr(engine.model, "name_or_path", "") or "") or None
        runnable = cls(**{"model": name, **fields})
        runnable.engines.give(runnable.model, runnable._load_options(), engine)
        return runnable

    @property
    def engine(self) -> Engine:
        """The engine; loads the model if necessary. A server if one was given.

        Raises:
            ModelLoadError, UnsupportedModelError: it cannot serve.
        """
        if self.remote is not None:
            return cast("Engine", self.remote)
        return self.engine_of(self.model)

    def engine_of(self, model: str | None) -> Engine:
        """The engine of another model, loaded like this one."""
        return self.engines.get(model, self._load_options(), keep_alive=self.keep_alive)

    def close(self) -> None:
        """Let go of the model; others that share it keep it, and a further call loads it again."""
        self.engines.close()

    @property
    def reasoner(self) -> Reasoner:
        """The three stages over `engine`."""
        return self._reasoner(self.model)

    def _reasoner(self, model: str | None) -> Reasoner:
        from langchain_pos.reasoning.reasoner import Reasoner

        if self.remote is not None:
            from langchain_pos.remote.decoder import RemoteDecoding

            prompts = self.prompts or self.remote.prompts
            return Reasoner(RemoteDecoding(self.remote, model), prompts=prompts)
        from langchain_pos.local.decoding import LocalDecoding

        decoding = LocalDecoding(self.engine_of(model))
        folder = Path(model).expanduser() if model else decoding.folder
        if folder is None or not folder.is_dir():
            named = folder.name if folder and folder.is_file() else model
            return Reasoner(decoding, prompts=self.prompts, model_name=named)
        prompts = self.prompts or load_prompts(folder)
        return Reasoner(decoding, prompts=prompts, model_name=folder.name)

    def _load_options(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "device": self.device,
            "revision": self.revision,
            "attn_implementation": self.attn_implementation,
            "max_slots": self.max_slots,
            "draft_rows": self.draft_rows,
            "prefix_cache_tokens": self.prefix_cache_tokens,
            "cuda_graphs": self.cuda_graphs,
            "pack_weights": self.pack_weights,
            "quantization": self.quantization,
            "trust_remote_code": self.trust_remote_code,
            "use_safetensors": self.use_safetensors,
            **self.model_kwargs,
        }
