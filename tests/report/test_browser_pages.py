"""Every page of a report in a real browser: navigation, widths, themes, escaping, and a page that follows its
run.

Screenshots of all pages are kept in build/screenshots (or where THREEFOLD_SCREENSHOTS says) to be looked at.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser_parts import (
    ESCAPE,
    HOSTILE,
    SCHEMES,
    WIDTHS,
    assert_quiet,
    choose,
    load,
    open_part,
    overflow,
    press,
    screenshot,
    show_at,
    shown,
    wait_for,
)
from care_runs import care_episode, write_bank, write_care_run, write_swap
from run_parts import make_dialogue, make_metrics, write_study

from threefold.evaluation.calibration import calibrate
from threefold.report import write_comparison, write_report
from threefold.report.watch import watch
from threefold.training.run_directory import RunDirectory
from threefold.trajectory import write_jsonl

PAGES = [
    *("Overview", "Held out", "Curves", "Groups", "Episodes", "Caregiver", "Skills"),
    *("What happened", "Setup"),
]
LONG = "x" * 100_000


def write_full_run(path: Path, text: str) -> Path:
    """A run with everything that a page can show, in which `text` stands wherever somebody else writes."""
    write_care_run(path, steps=16)
    rng = random.Random(0)
    with open(path / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, 17):
            line = make_metrics(step, 16, rng)
            if step == 12:
                line |= {"words": text, "warnings": [text], f"rewards/{text[:200]}/mean": 1.0}
            file.write(json.dumps(line) + "\n")
    hostile = care_episode(16, 99, 0, levels=[2, 1, 1], rule=text, subtype=text)
    write_jsonl(path / "rollouts.jsonl", [hostile])
    write_bank(path, said=f"Open it. {text[:2_000]}".replace("\n", " "))
    write_swap(path, f"environment.options.patient={text}")
    with open(path / "config.yaml", "a", encoding="utf-8") as file:
        file.write(f"note: {json.dumps(text)}\n")
    evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    found = calibrate([0.9, 0.6, 0.3], [True, False, False])
    after = evaluation["evaluations"][-1]
    after["calibration"] = {"score": "strict", **found.to_json(), "by_difficulty": {}}
    after["by_group"][text] = after["scores"]
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that is full of hostile text."""
    return write_report(write_full_run(tmp_path_factory.mktemp("runs") / "full", HOSTILE))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_page_fits_in_every_theme(browser: Any, report: Path, width: int, scheme: str) -> None:
    show_at(browser, width, scheme)
    load(browser, report)
    assert [link.text for link in browser.find_elements("css selector", "nav a")] == PAGES
    for name in PAGES:
        open_part(browser, name)
        assert shown(browser) == [name]
        assert overflow(browser) <= 0, name
        current = browser.execute_script("return document.querySelector('nav [aria-current]').textContent")
        assert current == name
        screenshot(browser, f"{name.lower().replace(' ', '-')}-{width}-{scheme}", width)
    assert_quiet(browser, "full - Threefold")


def test_every_closed_part_fits_when_it_is_opened(browser: Any, report: Path) -> None:
    show_at(browser, 390)
    load(browser, report)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for name in PAGES:
        open_part(browser, name)
        assert overflow(browser) <= 0, name
    assert_quiet(browser, "full - Threefold")


def test_no_text_of_a_run_became_an_element(browser: Any, report: Path) -> None:
    show_at(browser, 1280)
    load(browser, report)
    found = browser.execute_script(
        "return [document.querySelectorAll('img, iframe, object, embed, [onerror], [onclick], [src]').length,"
        "[...document.querySelectorAll('a')].filter((a) => "
        "!a.getAttribute('href').startsWith('#part-')).length,"
        "document.scripts.length, document.querySelectorAll('style').length]"
    )
    assert found == [0, 0, 5, 1]  # two are data, three the page's own
    text = browser.execute_script("return document.body.textContent")
    assert text.count("javascript:document.title") > 5
    browser.execute_script("for (const a of document.querySelectorAll('a')) a.click()")
    assert_quiet(browser, "full - Threefold")


def test_a_hundred_thousand_characters_on_a_line_fit(browser: Any, tmp_path: Path) -> None:
    page = write_report(write_full_run(tmp_path / "long", LONG))
    assert page.stat().st_size < 5_000_000
    show_at(browser, 390)
    load(browser, page)
    for name in PAGES:
        open_part(browser, name)
        assert overflow(browser) <= 0, name
    assert_quiet(browser, "long - Threefold")


def test_the_list_shows_what_tells_openings_apart(browser: Any, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    told = "You have to help, and never to hurry. " * 30
    for group, place in enumerate(("In the kitchen.", "On the sofa.")):
        episode = make_dialogue(group=group)
        opening = replace(episode.trajectory.opening, text=f"{told}\n{place}\nWhere is my coat?\n")
        run.append_rollouts([replace(episode, trajectory=replace(episode.trajectory, opening=opening))])
    for width, cells in ((1280, 8), (390, 4)):
        show_at(browser, width)
        load(browser, write_report(run.path), "#part-episodes")
        seen = browser.execute_script(
            "return [...document.querySelectorAll('.list tr')].map((row) => [...row.cells]"
            ".filter((cell) => cell.offsetParent !== null).map((cell) => cell.textContent))"
        )
        assert [len(row) for row in seen] == [cells] * 3
        assert "opening" in seen[0]
        assert "true answer" not in seen[0]
        for place in ("In the kitchen. Where is my coat?", "On the sofa. Where is my coat?"):
            assert any(place in row for row in seen[1:])


# Navigation


def test_keys_lead_through_the_pages(browser: Any, report: Path) -> None:
    show_at(browser, 1280)
    load(browser, report)
    press(browser, "3")
    assert shown(browser) == ["Curves"]
    press(browser, "]")
    assert shown(browser) == ["Groups"]
    press(browser, "[", "[")
    assert shown(browser) == ["Held out"]
    press(browser, "1", "[")
    assert shown(browser) == ["Overview"]
    press(browser, "5")
    search = browser.find_element("css selector", "input[type=search]")
    search.send_keys("2")  # typed, not followed
    assert shown(browser) == ["Episodes"]
    browser.back()
    assert shown(browser) == ["Overview"]


def test_a_finding_leads_to_its_page_and_a_version_to_its_place(browser: Any, report: Path) -> None:
    show_at(browser, 1280)
    load(browser, report)
    link = browser.find_element("css selector", ".card a.more")
    name = link.text.split(" ›")[0]
    link.click()
    assert shown(browser) == [name]
    load(browser, report, "#part-skills-v1")
    assert shown(browser) == ["Skills"]
    top = browser.execute_script(
        "return document.getElementById('part-skills-v1').getBoundingClientRect().top"
    )
    assert 0 <= top < 844
    open_part(browser, "Setup")
    assert browser.execute_script("return scrollY") == 0


def test_without_a_script_everything_is_there_to_read(browser: Any, report: Path) -> None:
    show_at(browser, 1280)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        load(browser, report)
        hidden = [p for p in browser.find_elements("css selector", ".part") if not p.is_displayed()]
        assert hidden == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# A page that follows its run


def hold(browser: Any) -> None:
    """Keep the page from loading itself, as somebody does who types into it."""
    for _ in range(50):
        script = "document.querySelector('input[type=search]').focus(); window.held = true"
        browser.execute_script(script)
        time.sleep(1)  # a reload that was under way is over by then
        if browser.execute_script("return window.held === true"):
            return
    raise AssertionError("the page loads itself though somebody types into it")


def test_a_watched_page_loads_itself_again_and_keeps_the_place(browser: Any, tmp_path: Path) -> None:
    run_dir = write_full_run(tmp_path / "run", "a text")
    show_at(browser, 1280)
    load(browser, write_report(run_dir, reload=0.5), "#part-episodes")
    hold(browser)
    choose(browser, "outcome", "wrong")
    browser.execute_script("scrollTo(0, 60)")
    kept = browser.execute_script("return [scrollY, document.querySelector('.pager span').textContent]")
    assert kept[0] == 60
    RunDirectory(run_dir, append=True).append_metrics(17, {"reward": 1.0, "words": "a step more"})
    write_report(run_dir, reload=0.5)
    browser.execute_script("document.activeElement.blur()")
    newest = "document.querySelector('#part-what-happened td')?.textContent"
    wait_for(browser, f"window.held === undefined && {newest} === '17' && document.readyState === 'complete'")
    hold(browser)
    assert shown(browser) == ["Episodes"]
    again = browser.execute_script("return [scrollY, document.querySelector('.pager span').textContent]")
    assert again == kept
    assert browser.execute_script("return document.querySelector('select[name=outcome]').value") == "wrong"
    assert_quiet(browser, "run - Threefold")


def test_a_watched_page_waits_while_somebody_reads_an_episode(browser: Any, tmp_path: Path) -> None:
    run_dir = write_full_run(tmp_path / "run", "a text")
    show_at(browser, 1280)
    load(browser, write_report(run_dir, reload=0.5), "#part-episodes")
    hold(browser)
    browser.execute_script("document.querySelector('.list tbody tr').click()")
    time.sleep(2)
    assert browser.execute_script("return window.held && document.getElementById('episode').open")
    press(browser, ESCAPE)
    wait_for(browser, "window.held === undefined && document.readyState === 'complete'")
    hold(browser)
    browser.execute_script("document.getElementById('watching').click(); document.activeElement.blur()")
    time.sleep(2)
    assert browser.execute_script("return window.held")
    assert "Paused" in browser.execute_script("return document.getElementById('watching').textContent")


def test_a_page_of_a_complete_run_stays(browser: Any, tmp_path: Path) -> None:
    run_dir = write_full_run(tmp_path / "run", "a text")
    show_at(browser, 1280)
    load(browser, watch([run_dir], lambda reload: write_report(run_dir, reload=reload), every=0.5))
    assert browser.execute_script("return document.getElementById('watching')") is None


# Several runs


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_comparison_fits_and_its_console_is_silent(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    show_at(browser, width, scheme)
    load(browser, write_comparison(write_study(tmp_path)))
    names = [link.text for link in browser.find_elements("css selector", "nav a")]
    assert names == ["Overview", "Differences", "Side by side", "Curves", "Settings", "Runs"]
    browser.execute_script("document.querySelector('details').open = true")
    for name in names:
        open_part(browser, name)
        assert shown(browser) == [name]
        assert overflow(browser) <= 0, name
        screenshot(browser, f"comparison-{name.lower().replace(' ', '-')}-{width}-{scheme}", width)
    marks = browser.execute_script("return document.querySelectorAll('.forest .dot').length")
    assert marks == 4  # three arms against the first, and the method against its noise control
    assert_quiet(browser, "Comparison of 12 runs - Threefold")
