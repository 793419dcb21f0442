"""Opens pages in headless Chromium for tests, and asks axe-core what not everybody can read or reach there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000.0  # milliseconds; it only matters where other programs use the machine
# The smallest size of any text that is shown, in pixels.
SMALLEST = """() => Math.min(...[...document.querySelectorAll("body *")].filter((node) =>
  [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()) && node.checkVisibility()
  && !["SCRIPT", "STYLE", "NOSCRIPT", "TITLE"].includes(node.tagName.toUpperCase())
).map((node) => parseFloat(getComputedStyle(node).fontSize)))"""
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium during the block; skip the test where there is none."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(PROGRAMS)})")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")
    with api.sync_playwright() as driver:
        # Without its sandbox Chromium also runs as root, as in containers; the pages are this project's own.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def open_page(browser: Browser, address: str, *, width: int = 1280, dark: bool = False, **more: Any) -> Page:
    """Open a page of a given width in pixels; an error of its scripts fails the test when it is next used."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        accept_downloads=True,
        **more,
    )
    page.set_default_timeout(PATIENCE)
    page.errors = []  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
    page.goto(address, wait_until="load")
    return page


def serious(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical on a page, one line for each kind."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{each['impact']} {each['id']}: {[node['html'][:160] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def work_with(page: Page, setting: str) -> None:
    """Open a run, compare two runs and save a figure on the page of a study, and check what comes of it.

    Args:
        page: the page.
        setting: a dotted key in which the first two runs differ.
    """
    page.locator("html[data-drawn]").wait_for()
    dialog, runs = page.locator("dialog[open]"), page.locator("#list input.pick")
    page.locator("#list th.opens").first.press("Enter")
    dialog.wait_for()
    assert setting in (dialog.text_content() or "")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    for number in range(2):
        runs.nth(number).check()
    page.locator("#compare-open").click()
    dialog.wait_for()
    assert page.inner_text("#detail-title") == "2 runs side by side"
    assert setting in page.inner_text("dialog .differ")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    with page.expect_download() as download:
        page.locator("button.export").first.click()
    drawn = Path(download.value.path()).read_text(encoding="utf-8")
    assert drawn.startswith("<svg") and "var(--" not in drawn, "a figure stands alone, with its colours"
