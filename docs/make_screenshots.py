"""Screenshots of the page for the documentation: `python docs/make_screenshots.py`.

Needs `langchain-pos[serve,test]` and Chromium. Without `--model` the shipped model is asked. The
pictures in `docs/figures` are of Qwen2.5-Coder-0.5B-Instruct and `--example 3`.
"""

from __future__ import annotations

import argparse
import io
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from langchain_pos import ChatParallelReasoning
from langchain_pos.server import bind, make_server

if TYPE_CHECKING:
    from collections.abc import Iterator

FIGURES = Path(__file__).parent / "figures"
MOST_BYTES = 150_000
MINUTES = 15 * 60_000  # milliseconds, for one answer on a CPU
WRITTEN = """least => {
  const texts = [...document.querySelectorAll(".card .text")].map(text => text.textContent.length);
  return texts.length > 1 && Math.min(...texts) >= least;
}"""
"""Whether every branch has so many characters."""


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder or hub name; without it, the shipped model")
    parser.add_argument("--name", help="that the page shows; by default the model's")
    parser.add_argument("--example", type=int, default=0, help="which one is asked, from 0")
    parser.add_argument("--max-tokens", type=int, help="of each answer and each branch")
    parser.add_argument("--into", type=Path, default=FIGURES)
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    most = options.max_tokens
    budgets = {} if most is None else {"max_tokens": most, "max_branch_tokens": most}
    chat = ChatParallelReasoning(model=options.model, **budgets)
    with serving(chat, options.name) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)

        def opened(width: int, height: int, scheme: Any = "light", **more: Any) -> Page:
            size: Any = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme=scheme, **more)
            page.goto(url)
            page.locator("#model:not(:empty)").wait_for()
            return page

        def save(page: Page, name: str) -> None:
            write_png(page.screenshot(), options.into / f"{name}.png")

        # 1. While the branches write.
        page = opened(1200, 860)
        page.locator(".example").nth(options.example).click()
        page.wait_for_function(WRITTEN, arg=20, timeout=MINUTES)
        save(page, "page")
        page.locator("#stop").click()
        # 2. On a phone.
        phone = opened(390, 780, device_scale_factor=1.5, has_touch=True, is_mobile=True)
        phone.locator(".example").nth(options.example).click()
        phone.wait_for_function(WRITTEN, arg=20, timeout=MINUTES)
        save(phone, "page_phone")
        phone.locator("#stop").click()
        # 3. In the dark, a race.
        dark = opened(1200, 860, "dark")
        dark.locator(".example").nth(options.example).click()
        dark.locator(".actions:not([hidden])").wait_for(timeout=MINUTES)
        dark.locator(".race").click()
        dark.locator(".verdict:not([hidden])").wait_for(timeout=MINUTES)
        dark.locator(".race-view").evaluate("view => view.scrollIntoView()")
        save(dark, "page_dark")
        browser.close()


@contextmanager
def serving(chat: ChatParallelReasoning, name: str | None) -> Iterator[str]:
    """The address of a server on a free port."""
    server = make_server(chat, model_name=name)
    socket = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def write_png(png: bytes, path: Path) -> None:
    """Write it with as few colours as do, small enough for a repository."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST_BYTES}; make it smaller")
    print(f"{path}: {size} bytes")


if __name__ == "__main__":
    main()
