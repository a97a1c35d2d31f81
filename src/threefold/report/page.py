"""The report of one run: its sections in order. What a run wrote is escaped where it enters the markup."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from threefold.report.calibration import calibration_html
from threefold.report.curves import chart_html
from threefold.report.document import anchored, document, navigation, write_page
from threefold.report.episodes import Embedded, embed, script_json
from threefold.report.groups import groups_data, groups_html
from threefold.report.reading import Evaluation, Interval, Run, read_run
from threefold.report.sections import Section, curve_sections

WORDS_LIMIT = 1_000
"""Sentences about steps that are shown; the newest ones of a longer run."""
EPISODE_LIMIT = 400
"""Episodes that are embedded at most; `episodes.BYTE_LIMIT` bounds their bytes."""


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write the report of a run as one self-contained HTML file.

    The run may be finished, running or crashed: what is missing is said on the page.

    Args:
        run_dir: The directory that training wrote.
        output: The file to write, `report.html` in the run directory where None. An older one is replaced.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: The run directory does not exist.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir, EPISODE_LIMIT)
    output = run_dir / "report.html" if output is None else Path(output)
    return write_page(output, page_html(run))


def page_html(run: Run) -> str:
    """The whole page as text."""
    episodes = embed(run.episodes)
    sections = curve_sections(run.metrics)
    main = [section for section in sections if section.title != "All metrics"]
    rest = [section for section in sections if section.title == "All metrics"]
    parts = {
        "Result": _results(run) + calibration_html(run.evaluations),
        "Curves": "".join(section_html(section) for section in main),
        "What happened": _words(run.metrics.words),
        "Groups": groups_html(run.episodes.map),
        "Episodes": _episodes(run, episodes),
        "All metrics": "".join(_all_metrics(section) for section in rest),
        "Setup": _setup(run),
    }
    body = [
        _header(run),
        _scope(run),
        navigation(parts),
        _warnings(run),
        notes_html((*run.notes, *episodes.notes)),
        *anchored(parts),
    ]
    data = {"episodes": episodes.json, "groups": script_json(groups_data(run.episodes.map))}
    return document(_title(run), "".join(body), data)


def _title(run: Run) -> str:
    return f"{run.directory.resolve().name} - Threefold"


def _header(run: Run) -> str:
    metrics = run.metrics
    facts = {
        "Status": _status(run),
        "Model": _setting(run.config, "model", "model_name_or_path"),
        "Method": _setting(run.config, "method", "credit"),
        "Data": _setting(run.config, "dataset", "data", "task", "environment"),
        "Seed": _plain(run.environment.get("seed")) or _setting(run.config, "seed"),
        "Started": _moment(metrics.started),
        "Duration": _duration(metrics.started, metrics.ended),
    }
    items = "".join(
        f"<div><dt>{k}</dt><dd>{escape(v) if v else _UNKNOWN}</dd></div>" for k, v in facts.items()
    )
    return f"<header><h1>{escape(run.directory.resolve().name)}</h1><dl class='facts'>{items}</dl></header>"


_UNKNOWN = '<span class="muted">not recorded</span>'


def _status(run: Run) -> str:
    last = run.metrics.last_step
    planned = _planned_steps(run.config)
    if last is None:
        return "no step is recorded"
    if planned is None:
        return f"{last} steps recorded; how many were planned is not"
    if last >= planned:
        return f"finished, {planned} steps"
    return f"stopped at step {last} of {planned}, or still running"


def _planned_steps(config: Mapping[str, Any]) -> int | None:
    value = _find(config, "max_steps")
    if value is None:
        value = _find(config, "steps")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return None
    updates = _find(config, "updates_per_step")
    return value * updates if isinstance(updates, int) else value


def _setting(config: Mapping[str, Any], *names: str) -> str:
    """The first of these settings that the recipe has, in any section; a section answers with its name."""
    for name in names:
        value = _find(config, name)
        if isinstance(value, Mapping):
            value = next(
                (value[k] for k in ("name", "train", "path", "id", "method", "type") if value.get(k)), None
            )
        if value not in (None, ""):
            return _plain(value)
    return ""


def _find(config: Mapping[str, Any], name: str) -> Any:
    """The value of a key, the one nearest to the root where there are several."""
    level: list[Mapping[str, Any]] = [config]
    while level:
        for mapping in level:
            if mapping.get(name) is not None:
                return mapping[name]
        level = [value for mapping in level for value in mapping.values() if isinstance(value, Mapping)]
    return None


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _moment(time: float | None) -> str:
    if time is None:
        return ""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):  # a number that is no time of this calendar
        return f"{time:g}"


def _duration(started: float | None, ended: float | None) -> str:
    if started is None or ended is None:
        return ""
    minutes, seconds = divmod(round(ended - started), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _scope(run: Run) -> str:
    """What the run's figures are for, where its environment says so; at the top of the page."""
    scope = _plain(run.environment.get("scope"))
    return f'<aside class="notes"><h2>Scope</h2><p>{escape(scope)}</p></aside>' if scope else ""


def _warnings(run: Run) -> str:
    items = "".join(f"<li>Step {step}: {escape(text)}</li>" for step, text in run.metrics.warnings)
    return f'<aside class="notes"><h2>What the run warned of</h2><ul>{items}</ul></aside>' if items else ""


def notes_html(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<aside class="notes"><h2>What is missing</h2><ul>{items}</ul></aside>' if items else ""


def _results(run: Run) -> str:
    if not run.evaluations:
        return ""
    rows = []
    for mode in dict.fromkeys(evaluation.mode for evaluation in run.evaluations):
        before = next((e for e in run.evaluations if e.mode == mode and e.when == "before"), None)
        after = next((e for e in reversed(run.evaluations) if e.mode == mode and e.when != "before"), None)
        names = dict.fromkeys(name for e in (before, after) if e for name in e.scores)
        for name in names:
            gain = next((g.value for g in run.gains if (g.score, g.mode) == (name, mode)), None)
            percent = not any(e and name in e.in_own_units for e in (before, after))
            rows.append(
                f"<tr><th scope=row>{escape(name)}</th><td>{escape(mode)}</td>"
                f"<td>{_interval(before.scores.get(name) if before else None, percent=percent)}</td>"
                f"<td>{_interval(after.scores.get(name) if after else None, percent=percent)}</td>"
                f"<td>{_interval(gain, signed=True, percent=percent)}</td></tr>"
            )
    return (
        "<section><h2>Result</h2><p class=lead>Score on held-out problems before and after training, in "
        "percent (reward channels of an environment in their own units), with its interval; the gain is "
        "paired by problem.</p>"
        "<div class=scroll><table class=results><thead><tr>"
        "<th>score</th><th>mode</th><th>before</th><th>after</th><th>gain</th></tr></thead><tbody>"
        f"{''.join(rows)}</tbody></table></div>{_conditions(run.evaluations)}{_by_difficulty(run.evaluations)}</section>"
    )


def _interval(value: Interval | None, *, signed: bool = False, percent: bool = True) -> str:
    """Percent with one decimal, or three decimals; a gain that the interval separates from zero is set in
    bold."""
    if value is None:
        return '<span class="muted">not measured</span>'
    scale, form = (100, ".1f") if percent else (1, ".3f")
    form = f"+{form}" if signed else form
    mean = f"{scale * value.mean:{form}}"
    if value.low is None or value.high is None:
        return mean
    if signed and (value.low > 0 or value.high < 0):
        mean = f"<strong>{mean}</strong>"
    return f'{mean} <span class="muted">[{scale * value.low:{form}}, {scale * value.high:{form}}]</span>'


def _conditions(evaluations: Iterable[Evaluation]) -> str:
    parts = []
    for e in evaluations:
        details = {"temperature": e.temperature, "problems": e.problems, "samples each": e.samples}
        known = ", ".join(f"{name} {_plain(value)}" for name, value in details.items() if value is not None)
        step = "" if e.step is None else f" (step {_plain(e.step)})"
        parts.append(f"{e.when}{step}, {e.mode}: {known or 'conditions not recorded'}")
    return f'<p class="muted">{escape("; ".join(parts))}.</p>'


def _by_difficulty(evaluations: tuple[Evaluation, ...]) -> str:
    columns = [e for e in evaluations if e.by_difficulty]
    if not columns:
        return ""
    keys = dict.fromkeys(
        (difficulty, score)
        for e in columns
        for difficulty, scores in e.by_difficulty.items()
        for score in scores
    )
    head = "".join(f"<th>{escape(e.when)}, {escape(e.mode)}</th>" for e in columns)
    rows = "".join(
        f"<tr><th scope=row>{escape(difficulty)}</th><td>{escape(score)}</td>"
        + "".join(f"<td>{_percent(e.by_difficulty.get(difficulty, {}).get(score))}</td>" for e in columns)
        + "</tr>"
        for difficulty, score in sorted(keys)
    )
    return (
        "<details><summary>By difficulty</summary><div class=scroll><table class=results><thead><tr>"
        f"<th>difficulty</th><th>score</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _percent(value: float | None) -> str:
    return '<span class="muted">not measured</span>' if value is None else f"{100 * value:.1f}"


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


def _words(words: Mapping[int, str]) -> str:
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
        parts.append(f"<details><summary>config.yaml</summary><pre>{escape(run.config_text)}</pre></details>")
    if run.environment:
        text = json.dumps(run.environment, indent=2, ensure_ascii=False)
        parts.append(f"<details><summary>environment.json</summary><pre>{escape(text)}</pre></details>")
    return f"<section><h2>Setup</h2>{''.join(parts)}</section>" if parts else ""
