"""A visitor of the page, with a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

SCREENSHOTS = Path(__file__).parents[1] / "out" / "screenshots"


def chromium() -> Iterator[object]:
    """Debian's; Playwright's own cannot be downloaded everywhere."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*flags, "--disable-component-update", "--disable-sync"]
        )
        yield browser
        browser.close()


class Visitor:
    """One browser window, what went wrong in it, and what it asked for from elsewhere."""

    def __init__(self, browser, url: str, *, width: int = 1280, dark: bool = False, query: str = "") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page = self.context.new_page()
        self.failures: list[str] = []
        self.outside: list[str] = []
        self.page.on("pageerror", lambda error: self.failures.append(str(error)))
        self.page.on("request", self._requested)
        self.page.goto(url + query)
        self.page.get_by_role("button", name="Stylize", exact=True).wait_for()
        self.page.wait_for_timeout(300)

    def _requested(self, request) -> None:
        if request.url.startswith("http") and "127.0.0.1" not in request.url:
            self.outside.append(request.url)

    def tab(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name)
        if not tab.count():  # on a phone the last ones are in a menu
            self.page.get_by_role("button", name="More tabs").click()
            tab = self.page.locator(".overflow-menu").get_by_role("button", name=name)
        tab.click()
        self.page.wait_for_timeout(500)

    def upload(self, *files: Path, nth: int = 0) -> None:
        """Into the nth file field of the tab that is open."""
        fields = [
            f
            for f in self.page.locator("input[type=file]").all()
            if f.evaluate("e => { const t = e.closest('[role=tabpanel]'); return t && t.offsetParent !== null }")
        ]
        fields[nth].set_input_files([str(f) for f in files])
        self.page.wait_for_timeout(600)

    def button(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()

    def shot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def close(self) -> None:
        self.context.close()
        assert not self.failures
        assert not self.outside, "the page must work with no internet"
