"""The report of one run: its pages in order. What a run wrote is escaped where it enters the markup."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from threefold.report.caregiver import caregiver_html, is_caregiver
from threefold.report.curves import chart_html
from threefold.report.document import document, navigation, pages, write_page
from threefold.report.episodes import Embedded, embed, script_json
from threefold.report.groups import groups_data, groups_html
from threefold.report.heldout import heldout_html
from threefold.report.overview import overview_html
from threefold.report.reading import Run, read_run
from threefold.report.sections import Section, curve_sections
from threefold.report.skills import skills_html

WORDS_LIMIT = 1_000
"""Sentences about steps that are shown; the newest ones of a longer run."""
EPISODE_LIMIT = 400
"""Episodes that are embedded at most; `episodes.BYTE_LIMIT` bounds their bytes."""


def write_report(run_dir: Path, output: Path | None = None, *, reload: float | None = None) -> Path:
    """Write the report of a run as one self-contained HTML file.

    The run may be finished, running or crashed: what is missing is said on the page.

    Args:
        run_dir: The directory that training wrote.
        output: The file to write, `report.html` in the run directory where None. An older one is replaced.
        reload: Seconds after which an open page loads itself again; None for never.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: The directory does not exist or holds no run.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir, EPISODE_LIMIT)
    output = run_dir / "report.html" if output is None else Path(output)
    return write_page(output, page_html(run, reload=reload))


def page_html(run: Run, *, reload: float | None = None) -> str:
    """The whole file as text."""
    episodes = embed(run.episodes)
    parts = {
        "Held out": heldout_html(run, elsewhere=is_caregiver(run)),
        "Curves": _curves(run),
        "Groups": groups_html(run.episodes.map),
        "Episodes": _episodes(run, episodes),
        "Caregiver": caregiver_html(run),
        "Skills": skills_html(run),
        "What happened": _words(run),
        "Setup": _setup(run),
    }
    there = [name for name, html in parts.items() if html]
    parts = {"Overview": overview_html(run, (*run.notes, *episodes.notes), there), **parts}
    name = run.directory.resolve().name
    body = f"<header><h1>{escape(name)}</h1></header>{navigation(parts)}{pages(parts)}"
    data = {"episodes": episodes.json, "groups": script_json(groups_data(run.episodes.map))}
    return document(f"{name} - Threefold", body, data, reload=reload)


def _curves(run: Run) -> str:
    sections = curve_sections(run.metrics)
    return "".join(
        _all_metrics(section) if section.title == "All metrics" else section_html(section)
        for section in sections
    )


def section_html(section: Section) -> str:
    charts = "".join(chart_html(chart) for chart in section.charts)
    return (
        f"<section><h2>{escape(section.title)}</h2><p class=lead>{escape(section.lead)}</p>"
        f'<div class="charts">{charts}</div></section>'
    )


def _all_metrics(section: Section) -> str:
    charts = "".join(chart_html(chart) for chart in section.charts)
    return (
        f"<section><h2>All metrics</h2><p class=lead>{escape(section.lead)}</p><details><summary>"
        f'{len(section.charts)} charts</summary><div class="charts">{charts}</div></details></section>'
    )


def _words(run: Run) -> str:
    words = run.metrics.words
    if not words:
        return ""
    shown = list(words.items())[::-1][:WORDS_LIMIT]
    more = f" The newest {WORDS_LIMIT:,} of {len(words):,} are here." if len(words) > WORDS_LIMIT else ""
    rows = "".join(f"<tr><td>{step}</td><td class=prose>{escape(text)}</td></tr>" for step, text in shown)
    return (
        f"<section><h2>What happened</h2><p class=lead>Each step in a sentence, the newest first.{more}</p>"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="What happened in each step"><table>'
        f"<thead><tr><th>step</th><th>what happened</th></tr></thead><tbody>{rows}</tbody></table></div>"
        "</section>"
    )


def _episodes(run: Run, embedded: Embedded) -> str:
    if not embedded.shown:
        return ""
    total = run.episodes.episodes
    count = f"All {total:,} recorded episodes are here."
    if embedded.shown < total:
        count = (
            f"{embedded.shown:,} of {total:,} recorded episodes are here: whole groups, the newest and "
            "others spread evenly over the run. rollouts.jsonl has them all."
        )
    return (
        f"<section><h2>Episodes</h2><p class=lead>{escape(count)} Choose one to see the credit that "
        "each of its tokens was given.</p><noscript><p>Reading the episodes needs JavaScript.</p></noscript>"
        '<div id="browser"></div></section>'
    )


def _setup(run: Run) -> str:
    parts = []
    if run.config_text:
        parts.append(
            f"<details open><summary>config.yaml</summary><pre>{escape(run.config_text)}</pre></details>"
        )
    if run.environment:
        text = json.dumps(run.environment, indent=2, ensure_ascii=False)
        parts.append(f"<details open><summary>environment.json</summary><pre>{escape(text)}</pre></details>")
    return f"<section><h2>Setup</h2>{''.join(parts)}</section>" if parts else ""
