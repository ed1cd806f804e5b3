"""A progress bar while a model is read, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def loading_bar() -> Iterator[None]:
    """Show transformers' progress in rich's way where standard error is a terminal.

    What transformers would draw itself is left out: in a log or a notebook it is noise.
    """
    from transformers.utils.logging import set_tqdm_hook

    before = set_tqdm_hook(_bar)
    try:
        yield
    finally:
        set_tqdm_hook(before)


def _bar(factory: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """What transformers gets where it asks for a bar of tqdm's."""
    from transformers.utils.logging import EmptyTqdm

    iterable = args[0] if args else settings.get("iterable")
    if iterable is not None:
        iterable = _shown(iterable, str(settings.get("desc") or "Loading"))
    return EmptyTqdm(iterable)


def _shown(iterable: Any, what: str) -> Iterator[Any]:
    """The same items, with a bar while they are taken."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (console.is_terminal and not console.is_dumb_terminal):
        yield from iterable
        return
    yield from track(iterable, what.rstrip("."), console=console, transient=True)
