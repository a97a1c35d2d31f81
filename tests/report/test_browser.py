"""The page in a real browser: a silent console, readable when narrow, episodes answer to the keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from threefold.evaluation.calibration import calibrate
from threefold.report import write_comparison, write_report
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
    calibrated(run_dir)
    hostile = episode(
        13, 0, 0, completion=["sum", HOSTILE, " x" * 100_000, "."], question=HOSTILE, advantages=[0, 1, -1, 0]
    )
    write_jsonl(run_dir / "rollouts.jsonl", [hostile])
    show_at(browser, 1280)
    browser.get(write_report(run_dir).as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.title == "run - Threefold"


def calibrated(run_dir: Path) -> None:
    """Add a reliability diagram to the page: a chart without steps."""
    data = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    found = calibrate([0.9, 0.6, 0.3], [True, False, False])
    data["evaluations"][-1]["calibration"] = {"score": "strict", **found.to_json(), "by_difficulty": {}}
    (run_dir / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")


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


# The map of groups


def words_of_map(page: Any) -> str:
    text: str = page.execute_script("return document.getElementById('groupat').textContent")
    return text


def test_map_of_groups_answers_to_the_keyboard_and_opens_episodes(page: Any) -> None:
    page.execute_script("document.querySelector('#groupmap svg').focus()")
    press(page, "\ue015")  # down arrow, at the bottom already
    assert words_of_map(page).startswith("Step 13, group 0: ")
    press(page, "\ue012")  # left arrow
    bottom = words_of_map(page)
    assert bottom.startswith("Step 12, group ")
    press(page, "\ue013")  # up arrow
    assert words_of_map(page).startswith("Step 12, group ")
    assert words_of_map(page) != bottom
    wanted = words_of_map(page).partition(":")[0]
    press(page, "\ue007")  # Enter
    assert heading(page) == f"{wanted}, member 0"
    press(page, "\ue00c")  # Escape
    assert page.execute_script("return document.activeElement === document.querySelector('#groupmap svg')")
    assert page.execute_script("return document.querySelector('select[name=step]').value") == "12"
    press(page, "\ue010", "j", "j", "h")  # End, and beyond the bottom
    assert words_of_map(page).startswith("Step 12, ")


def test_map_of_groups_answers_to_a_click(page: Any) -> None:
    page.execute_script(
        "const s = document.querySelector('#groupmap svg'); s.scrollIntoView({ block: 'center' });"
        "const box = s.getBoundingClientRect();"
        "const at = { clientX: box.left + 12, clientY: box.bottom - 26, bubbles: true };"
        "s.dispatchEvent(new MouseEvent('click', at))"
    )
    assert heading(page).startswith("Step 1, group ")


# Dialogues


def test_turns_show_states_skills_and_where_a_rule_was_broken(
    browser: Any, make_run: Callable[..., Path], dialogue: Callable[..., Credited], tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "talks", steps=1)
    write_jsonl(run_dir / "rollouts.jsonl", [dialogue(2, 0, member, said=HOSTILE) for member in range(2)])
    show_at(browser, 390)
    browser.get(write_report(run_dir).as_uri())
    browser.execute_script("document.querySelector('.list tbody tr').click()")
    rows = browser.execute_script(
        "const texts = (r) => [...r.cells].map((c) => c.textContent);"
        "return [...document.querySelectorAll('.turns tr')].map(texts)"
    )
    assert rows == [
        ["turn", "action", "reward distress", "D", "R", "advantage", "entropy", "skills"],
        ["start", "", "", "2", "1", "", "", ""],
        ["0", "Let us look.", "1", "1", "1", "+0.5", "0.3", "validate"],
        ["1", "Stop that. broke command", "-2", "3", "2", "-1", "0.75", ""],
    ]
    assert (
        browser.execute_script("return document.querySelector('.turns .broken').cells[0].textContent") == "1"
    )
    labels = browser.execute_script(
        "const label = (s) => getComputedStyle(s, '::before').content;"
        "return [...document.querySelectorAll('.turnstart')].map(label)"
    )
    assert labels == ['"turn " "0"', '"turn " "1"'] or labels == ['"turn 0"', '"turn 1"']
    masked = browser.execute_script(
        "return [...document.querySelectorAll('.text .masked')].map((s) => s.textContent)"
    )
    assert masked == ["<|user|>Where is my coat?", f"<|user|>{HOSTILE}"]
    grey, plain = browser.execute_script(
        "const colour = (s) => getComputedStyle(document.querySelector(s)).color;"
        "return [colour('.text .masked'), colour('.text .up')]"
    )
    assert grey != plain
    assert browser.execute_script(
        "const d = document.getElementById('detail'); return d.scrollWidth <= d.clientWidth"
    )
    assert browser.get_log("browser") == []
    assert browser.title == "talks - Threefold"


# Several runs


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_comparison_fits_the_window_and_its_console_is_silent(
    browser: Any, make_study: Callable[..., list[Path]], tmp_path: Path, width: int, scheme: str
) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    show_at(browser, width)
    browser.get(write_comparison(make_study(tmp_path)).as_uri())
    scroll, client = browser.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert scroll <= client
    marks = browser.execute_script("return document.querySelectorAll('.forest .dot').length")
    assert marks == 4  # three arms against the first, and the method against its noise control
    for link in browser.execute_script("return [...document.querySelectorAll('nav a')].map((a) => a.hash)"):
        assert browser.execute_script("return document.querySelector(arguments[0]) !== null", link)
    assert browser.get_log("browser") == []
