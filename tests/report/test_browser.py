"""The page in a real browser: a silent console, readable when narrow, episodes answer to the keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from threefold.report import write_report
from threefold.trajectory import Credited, write_jsonl

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture
def page(
    browser: Any, make_run: Callable[..., Path], episode: Callable[..., Credited], tmp_path: Path
) -> Iterator[Any]:
    """The report of a run whose newest episode is hostile, at the width of a desk."""
    run_dir = make_run(tmp_path / "run", steps=12)
    hostile = episode(
        13, 0, 0, completion=["sum", HOSTILE, " x" * 100_000, "."], question=HOSTILE, advantages=[0, 1, -1, 0]
    )
    write_jsonl(run_dir / "rollouts.jsonl", [hostile])
    show_at(browser, 1280)
    browser.get(write_report(run_dir).as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.title == "run - Threefold"


def show_at(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def press(page: Any, *keys: str) -> None:
    page.switch_to.active_element.send_keys(*keys)


def heading(page: Any) -> str:
    text: str = page.execute_script("return document.querySelector('#detail h2')?.textContent ?? ''")
    return text


def count(page: Any) -> str:
    text: str = page.execute_script("return document.querySelector('.pager span').textContent")
    return text


def choose(page: Any, name: str, value: str) -> None:
    page.execute_script(
        "const s = document.querySelector(`select[name=${arguments[0]}]`); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'))",
        name,
        value,
    )


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(page: Any, width: int, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    show_at(page, width)
    page.execute_script("document.querySelector('.list tbody tr').click()")
    for selector in ("html", "#detail"):
        scroll, client = page.execute_script(
            "const e = document.querySelector(arguments[0]); return [e.scrollWidth, e.clientWidth]", selector
        )
        assert scroll <= client
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")


def test_keyboard_opens_moves_and_closes(page: Any) -> None:
    page.execute_script("document.querySelector('.list tbody tr').focus()")
    press(page, "\ue007")  # Enter
    assert heading(page) == "Step 13, group 0, member 0"
    press(page, "j")
    assert heading(page) == "Step 12, group 3, member 0"
    press(page, "\ue014")  # right arrow
    assert heading(page) == "Step 12, group 3, member 1"
    press(page, "k")
    press(page, "\ue012")  # left arrow
    assert heading(page) == "Step 13, group 0, member 0"
    press(page, "\ue00c")  # Escape
    assert not page.execute_script("return document.getElementById('episode').open")
    press(page, "j", "\ue007")
    assert heading(page) == "Step 12, group 3, member 0"


def test_filters_leave_what_they_name(page: Any) -> None:
    assert count(page) == "1 to 25 of 193"
    choose(page, "step", "7")
    assert count(page) == "1 to 16 of 16"
    choose(page, "outcome", "right")
    right = int(count(page).split()[-1]) if "of" in count(page) else 0
    choose(page, "outcome", "wrong")
    wrong = int(count(page).split()[-1]) if "of" in count(page) else 0
    assert right + wrong == 16
    choose(page, "outcome", "")
    choose(page, "dead", "dead")
    dead = int(count(page).split()[-1]) if "of" in count(page) else 0
    choose(page, "dead", "alive")
    alive = int(count(page).split()[-1]) if "of" in count(page) else 0
    assert dead + alive == 16
    choose(page, "step", "")
    choose(page, "dead", "")
    page.execute_script(
        "const s = document.querySelector('input[type=search]'); s.value = 'ONERROR';"
        "s.dispatchEvent(new Event('input'))"
    )
    assert count(page) == "1 to 1 of 1"


def test_tokens_are_shaded_by_sign_and_masked_ones_are_grey(page: Any) -> None:
    page.execute_script("document.querySelector('.list tbody tr').click()")
    classes = page.execute_script(
        "return [...document.querySelectorAll('.text span')].map((s) => s.className)"
    )
    shades = [" ".join(c for c in name.split() if c != "critical") for name in classes]
    assert shades == ["masked", "", "up", "down", ""]
    texts = page.execute_script(
        "return [...document.querySelectorAll('.text span')].map((s) => s.textContent)"
    )
    assert texts[2] == HOSTILE
    tip = page.execute_script(
        "document.querySelector('.text .up').click(); return document.getElementById('tip').textContent"
    )
    assert tip.startswith("advantage +1\nentropy ")
    assert "logp " in tip
    assert tip.endswith("critical")
    page.execute_script(
        "const s = document.getElementById('shade'); s.value = 'entropy';s.dispatchEvent(new Event('change'))"
    )
    assert page.execute_script("return document.querySelectorAll('.text .heat').length") == 4
