"""A progress bar while a model is loaded, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def loading_bar() -> Iterator[None]:
    """Show on standard error, where it is a terminal, that a model is being loaded, and how far.

    What transformers would draw itself is left out: in a log or a notebook it is noise.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    shown = console.is_terminal and not console.is_dumb_terminal
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        # Without a total the bar pulses: imports and the probe take their time, too.
        progress.add_task("Loading the model", total=None)
        from transformers.utils.logging import set_tqdm_hook

        before = set_tqdm_hook(partial(_bar, progress))
        try:
            yield
        finally:
            set_tqdm_hook(before)


def _bar(
    progress: Progress,
    factory: Callable[..., Any],
    args: tuple[Any, ...],
    settings: dict[str, Any],
) -> Any:
    """What transformers gets where it asks for a bar of tqdm's."""
    from transformers.utils.logging import EmptyTqdm

    iterable = args[0] if args else settings.get("iterable")
    if iterable is not None:
        iterable = _shown(progress, iterable, str(settings.get("desc") or "Loading"))
    return EmptyTqdm(iterable)


def _shown(progress: Progress, iterable: Any, what: str) -> Iterator[Any]:
    """The same items, with a bar of their own while they are taken."""
    total = len(iterable) if hasattr(iterable, "__len__") else None
    task = progress.add_task(what.rstrip("."), total=total)
    progress.refresh()
    for item in iterable:
        yield item
        progress.advance(task)
    progress.remove_task(task)
