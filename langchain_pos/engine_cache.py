"""The engine behind a runnable and behind the copies that LangChain makes of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_pos.errors import ModelLoadError

if TYPE_CHECKING:
    from langchain_pos.engine.engine import Engine


class LoadedEngines:
    """Engines by what they are loaded from; each is loaded once, when it is first asked for.

    Where a field is configurable, LangChain makes a new runnable of a runnable's fields for every
    call. All of them hold this one object, so they share the engine, and a model that the caller
    has loaded himself stays with them. A copy for another process starts empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: list[tuple[str | None, dict[str, Any], Engine]] = []
        self._given: tuple[str | None, Engine] | None = None
        self.identity: str | None = None
        """Tells given engines apart in cache keys: two models of one name may differ in weights."""

    def give(self, name: str | None, options: dict[str, Any], engine: Engine) -> None:
        """Keep an engine that exists already."""
        self._given = name, engine
        self.identity = uuid4().hex
        self._engines.append((name, options, engine))

    def get(self, name: str | None, options: dict[str, Any]) -> Engine:
        """The engine of a model.

        Args:
            name: folder or hub name; None for the shipped model, or for a given one.
            options: for `Engine.load`.

        Raises:
            ModelLoadError, UnsupportedModelError: it cannot be loaded, or cannot serve.
        """
        with self._lock:
            for known, with_options, engine in self._engines:
                if (known, with_options) == (name, options):
                    return engine
            if self._given is not None and self._given[0] == name:
                raise ModelLoadError(
                    "this runnable was made from a model that was loaded already, so its device, "
                    "dtype, slots and the like cannot be changed; make another runnable with "
                    "from_model, or give the model's folder or hub name"
                )
            from langchain_pos.engine.engine import Engine

            engine = Engine.load(name or shipped_model(), **options)
            self._engines.append((name, options, engine))
            return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedEngines:
        return self

    def __reduce__(self) -> tuple[type[LoadedEngines], tuple[()]]:
        if self._given is not None:
            raise TypeError(
                "a runnable made from a model that was loaded already cannot be pickled; make it "
                "with model=… (a folder or hub name), and each process loads its own"
            )
        return LoadedEngines, ()


def shipped_model() -> str:
    """The folder of the model that ships with the package."""
    from langchain_pos.embedded import embedded_model_path

    return str(embedded_model_path())
