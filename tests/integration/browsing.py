"""Opens pages of a console in a real Chromium, and watches what goes wrong in them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, Route, ViewportSize, sync_playwright

from tests.integration.live import Live

DESKTOP: ViewportSize = {"width": 1280, "height": 900}
WAIT_MS = 15_000  # for what has no promise: cores are shared with other tests


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    program = shutil.which("chromium")
    assert program is not None, "page tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Browser, live: Live, **options: Any) -> Iterator[Page]:
    """A page in a context of its own; afterwards nothing was wrong in it, and nothing outside was asked."""
    errors: list[str] = []
    outside: list[str] = []
    context = browser.new_context(**{"viewport": DESKTOP, "base_url": live.console_url, **options})
    context.set_default_timeout(WAIT_MS)

    def refuse(route: Route) -> None:
        outside.append(route.request.url)
        route.abort()

    # Only what goes elsewhere comes here: it waits until the test's thread is in a call of Playwright.
    context.route(re.compile(f"^(?!{re.escape(live.console_url.rstrip('/'))}/)"), refuse)
    page = context.new_page()
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        yield page
        assert errors == [] and outside == [], (errors, outside)
    finally:
        context.close()
