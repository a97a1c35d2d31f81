"""A real browser for the tests of the page, and what they do with it."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(
    os.environ.get("THREEFOLD_SCREENSHOTS") or Path(__file__).parents[2] / "build" / "screenshots"
)
"""Folder of the screenshots, a build artefact to look at."""
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
HOSTILE = (
    "</script><script>document.title='owned'</script></style><img src=x onerror=\"document.title='owned'\">"
    "<a href=\"javascript:document.title='owned'\">a link</a>"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
ENTER, ESCAPE, LEFT, UP, RIGHT, DOWN, END = (
    chr(code) for code in (0xE007, 0xE00C, 0xE012, 0xE013, 0xE014, 0xE015, 0xE010)
)
"""Keys by the code points of WebDriver."""


def start(profile: Path) -> Iterator[Any]:
    """A Chromium that keeps its console's messages; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(
            "no browser: chromium or chromedriver is not on the path (Debian: chromium, chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


def show_at(browser: Any, width: int, scheme: str = "light") -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    resize(browser, width, 844)


def resize(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait_for(browser: Any, script: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return {script}"):
        assert time.monotonic() < end, f"not within {seconds} s: {script}"
        time.sleep(0.05)


def load(browser: Any, path: Path, part: str = "") -> None:
    """Open a report anew, at one of its pages."""
    browser.set_page_load_timeout(60)  # a page takes a second; the default is five minutes
    browser.get("about:blank")  # or a change of the fragment alone would not load it
    browser.get(path.as_uri() + part)
    # On a busy machine the driver can return before the page's own script has run.
    wait_for(browser, "location.protocol === 'file:' && document.readyState === 'complete'")


def open_part(browser: Any, name: str) -> None:
    """Choose a page in the navigation, as a reader does."""
    links = browser.find_elements("css selector", "nav a")
    link = next(link for link in links if link.text == name)
    link.click()


def shown(browser: Any) -> list[str]:
    """Names of the pages that can be seen."""
    names: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('.part')].filter((p) => p.offsetParent !== null)"
        ".map((p) => p.getAttribute('aria-label'))"
    )
    return names


def overflow(browser: Any, selector: str = "html") -> int:
    """Pixels by which an element is wider than its window."""
    pixels: int = browser.execute_script(
        "const e = document.querySelector(arguments[0]); return e.scrollWidth - e.clientWidth", selector
    )
    return pixels


def screenshot(browser: Any, name: str, width: int) -> Path:
    """Keep a picture of the whole page, of its top where it is very long."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    resize(browser, width, min(height, 4_000))
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    resize(browser, width, 844)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    path.write_bytes(base64.b64decode(picture))
    return path


def press(browser: Any, *keys: str) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def assert_quiet(browser: Any, title: str) -> None:
    """Nothing of a run acted: the console is silent, and the title is the page's own."""
    assert browser.get_log("browser") == []
    assert browser.title == title


def choose(browser: Any, name: str, value: str) -> None:
    """Set a filter of the table of episodes."""
    browser.execute_script(
        "const s = document.querySelector(`select[name=${arguments[0]}]`); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'))",
        name,
        value,
    )
