"""The page in a real browser: a silent console, readable when narrow, episodes answer to the keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser_parts import (
    DOWN,
    END,
    ENTER,
    ESCAPE,
    HOSTILE,
    LEFT,
    RIGHT,
    UP,
    assert_quiet,
    choose,
    load,
    open_part,
    overflow,
    press,
    screenshot,
    show_at,
)
from run_parts import make_episode, write_run

from threefold.evaluation.calibration import calibrate
from threefold.report import write_report
from threefold.trajectory import Credited, write_jsonl


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose newest episode is hostile."""
    run_dir = write_run(tmp_path_factory.mktemp("runs") / "run", steps=12)
    calibrated(run_dir)
    hostile = make_episode(
        13, 0, 0, completion=["sum", HOSTILE, " x" * 100_000, "."], question=HOSTILE, advantages=[0, 1, -1, 0]
    )
    write_jsonl(run_dir / "rollouts.jsonl", [hostile])
    return write_report(run_dir)


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """Its episodes, at the width of a desk."""
    show_at(browser, 1280)
    load(browser, report, "#part-episodes")
    yield browser
    assert_quiet(browser, "run - Threefold")


def calibrated(run_dir: Path) -> None:
    """Add a reliability diagram to the page: a chart without steps."""
    data = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    found = calibrate([0.9, 0.6, 0.3], [True, False, False])
    data["evaluations"][-1]["calibration"] = {"score": "strict", **found.to_json(), "by_difficulty": {}}
    (run_dir / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")


def heading(page: Any) -> str:
    text: str = page.execute_script("return document.querySelector('#detail h2')?.textContent ?? ''")
    return text


def count(page: Any) -> str:
    text: str = page.execute_script("return document.querySelector('.pager span').textContent")
    return text


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_episode_fits_the_window(page: Any, width: int, scheme: str) -> None:
    show_at(page, width, scheme)
    page.execute_script("document.querySelector('.list tbody tr').click()")
    assert overflow(page) <= 0
    assert overflow(page, "#detail") <= 0
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    press(page, "j")
    screenshot(page, f"episode-{width}-{scheme}", width)


def test_keyboard_opens_moves_and_closes(page: Any) -> None:
    page.execute_script("document.querySelector('.list tbody tr').focus()")
    press(page, ENTER)
    assert heading(page) == "Step 13, group 0, member 0"
    press(page, "j")
    assert heading(page) == "Step 12, group 3, member 0"
    press(page, RIGHT)
    assert heading(page) == "Step 12, group 3, member 1"
    press(page, "k")
    press(page, LEFT)
    assert heading(page) == "Step 13, group 0, member 0"
    press(page, ESCAPE)
    assert not page.execute_script("return document.getElementById('episode').open")
    press(page, "j", ENTER)
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


def test_a_veto_does_not_pale_the_others(
    browser: Any, make_run: Callable[..., Path], dialogue: Callable[..., Credited], tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "vetoed", steps=1)
    vetoed, clean = dialogue(2, 0, 0), dialogue(2, 0, 1)
    vetoed = replace(vetoed, advantages=(tuple(-16.0 if a else 0.0 for a in vetoed.advantages[0]),))
    clean = replace(clean, trajectory=replace(clean.trajectory, violation=None))
    write_jsonl(run_dir / "rollouts.jsonl", [vetoed, clean])
    show_at(browser, 1280)
    load(browser, write_report(run_dir), "#part-episodes")
    shades = []
    for row in range(2):
        browser.execute_script("document.querySelectorAll('.list tbody tr')[arguments[0]].click()", row)
        shades.append(
            browser.execute_script(
                "return [...document.querySelectorAll('.text .up, .text .down')]"
                ".map((s) => Number(s.style.getPropertyValue('--w')))"
            )
        )
        assert "16" not in browser.execute_script("return document.querySelector('.scale').textContent")
        browser.execute_script("document.getElementById('close').click()")
    assert shades[0] == [0.75] * 5
    assert 0.3 < min(shades[1]) < max(shades[1]) < 0.75


def test_map_of_groups_answers_to_the_keyboard_and_opens_episodes(page: Any) -> None:
    open_part(page, "Groups")
    page.execute_script("document.querySelector('#groupmap svg').focus()")
    press(page, DOWN)  # at the bottom already
    assert words_of_map(page).startswith("Step 13, group 0: ")
    press(page, LEFT)
    bottom = words_of_map(page)
    assert bottom.startswith("Step 12, group ")
    press(page, UP)
    assert words_of_map(page).startswith("Step 12, group ")
    assert words_of_map(page) != bottom
    wanted = words_of_map(page).partition(":")[0]
    press(page, ENTER)
    assert heading(page) == f"{wanted}, member 0"
    press(page, ESCAPE)
    assert page.execute_script("return document.activeElement === document.querySelector('#groupmap svg')")
    assert page.execute_script("return document.querySelector('select[name=step]').value") == "12"
    press(page, END, "j", "j", "h")  # beyond the bottom
    assert words_of_map(page).startswith("Step 12, ")


def test_map_of_groups_answers_to_a_click(page: Any) -> None:
    open_part(page, "Groups")
    page.execute_script(
        "const s = document.querySelector('#groupmap svg'); s.scrollIntoView({ block: 'center' });"
        "const box = s.getBoundingClientRect();"
        "const at = { clientX: box.left + 12, clientY: box.bottom - 26, bubbles: true };"
        "s.dispatchEvent(new MouseEvent('click', at))"
    )
    assert heading(page).startswith("Step 1, group ")


# Dialogues


def with_state(record: Credited, **values: float) -> Credited:
    """The same dialogue with more states at every turn."""
    turns = tuple(replace(turn, state={**turn.state, **values}) for turn in record.trajectory.turns)
    return replace(record, trajectory=replace(record.trajectory, turns=turns))


def test_turns_show_states_skills_and_where_a_rule_was_broken(
    browser: Any, make_run: Callable[..., Path], dialogue: Callable[..., Credited], tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "talks", steps=1)
    records = [with_state(dialogue(2, 0, member, said=HOSTILE), left=0.0) for member in range(2)]
    write_jsonl(run_dir / "rollouts.jsonl", records)
    show_at(browser, 390)
    load(browser, write_report(run_dir), "#part-episodes")
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
    assert "Answer given" not in browser.execute_script(
        "return document.querySelector('#detail').textContent"
    )
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
    assert overflow(browser, "#detail") <= 0
    screenshot(browser, "dialogue-390-light", 390)
    assert_quiet(browser, "talks - Threefold")
