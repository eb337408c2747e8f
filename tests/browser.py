"""Opens a page in headless Chromium and writes down everything it says and asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Visit:
    """An open page.

    Attributes:
        page: playwright's page.
        errors: errors and warnings on the console, uncaught exceptions, opened dialogs.
        requests: addresses that were asked for.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """Pixels by which the content is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def drawn(self) -> int:
        """Figures in which plotly has drawn a trace, and that have a size."""
        return self.page.evaluate(
            """[...document.querySelectorAll("[data-chart]")].filter((frame) => {
                 const svg = frame.querySelector("svg.main-svg");
                 const traces = svg?.querySelector(".cartesianlayer").querySelectorAll(".trace, .hm");
                 return traces?.length && svg.getBoundingClientRect().width > 100;
               }).length"""
        )


def chromium() -> str:
    """The browser's path; skips the test where there is no browser or no playwright."""
    pytest.importorskip("playwright.sync_api")
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if not found:
        pytest.skip("no Chromium; install it, or set CHROMIUM to its path")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser, for :func:`visit`."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


@contextmanager
def visit(
    running: Any,
    where: Path | str,
    *,
    width: int = 1280,
    height: int = 800,
    dark: bool = False,
    phone: bool = False,
    ready: str = "html[data-drawn]",
) -> Iterator[Visit]:
    """Open a file or an address and wait until what says that it is ready is there: by default, all figures drawn."""
    context = running.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=phone,
        is_mobile=phone,
        reduced_motion="reduce",
    )
    seen = Visit(context.new_page())
    seen.page.on(
        "console", lambda m: seen.errors.append(f"{m.type}: {m.text}") if m.type in {"error", "warning"} else None
    )
    seen.page.on("pageerror", lambda error: seen.errors.append(f"uncaught: {error}"))
    seen.page.on("dialog", lambda dialog: (seen.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    try:
        seen.page.goto(where if isinstance(where, str) else where.resolve().as_uri())
        seen.page.wait_for_selector(ready, state="attached", timeout=60_000)
        yield seen
    finally:
        context.close()
