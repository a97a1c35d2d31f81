"""The page that opens first: what was run, three questions answered, and what to be careful of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from threefold.report.document import link
from threefold.report.questions import Answer, answers
from threefold.report.reading import Run


def overview_html(run: Run, notes: Sequence[str], parts: Iterable[str]) -> str:
    """The page.

    Args:
        run: What was read.
        notes: What is missing or was left out, one sentence each.
        parts: Names of the other pages that there are, which findings lead to.
    """
    return (
        _facts(run) + scope_html(run) + cards_html(answers(run), parts) + _warnings(run) + notes_html(notes)
    )


def cards_html(three: Iterable[Answer], parts: Iterable[str]) -> str:
    """A card an answer: its verdict, and the findings that it rests on with links to where more is shown."""
    known = set(parts)
    cards = []
    for answer in three:
        items = "".join(
            f'<li class="t-{finding.tone}">{escape(finding.text)}'
            f"{link(finding.part) if finding.part in known else ''}</li>"
            for finding in answer.findings
        )
        cards.append(
            f'<article class="card t-{answer.tone}"><h2>{escape(answer.question)}</h2>'
            f"<p class=answer>{escape(answer.verdict)}</p><ul>{items}</ul></article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _facts(run: Run) -> str:
    metrics = run.metrics
    facts = {
        "Status": status(run),
        "Model": _setting(run.config, "model", "model_name_or_path"),
        "Method": _setting(run.config, "method", "credit"),
        "Data": _data(run.config),
        "Seed": _plain(run.environment.get("seed")) or _setting(run.config, "seed"),
        "Started": _moment(metrics.started),
        "Duration": _duration(metrics.started, metrics.ended),
    }
    items = "".join(
        f"<div><dt>{k}</dt><dd>{escape(v) if v else _UNKNOWN}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _data(config: Mapping[str, Any]) -> str:
    """The environment where there is one, else the problems."""
    environment = config.get("environment")
    if isinstance(environment, Mapping) and environment.get("name"):
        return f"environment {_plain(environment['name'])}"
    return _setting(config, "dataset", "data", "task", "environment")


_UNKNOWN = '<span class="muted">not recorded</span>'


def status(run: Run) -> str:
    last = run.metrics.last_step
    planned = planned_steps(run.config)
    if last is None:
        return "no step is recorded"
    if planned is None:
        return f"{last} steps recorded; how many were planned is not"
    if last >= planned:
        return f"finished, {planned} steps"
    return f"stopped at step {last} of {planned}, or still running"


def planned_steps(config: Mapping[str, Any]) -> int | None:
    """Optimizer updates that the recipe asks for, None where it does not say."""
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


def scope_html(run: Run) -> str:
    """What the run's figures are for, where its environment says so."""
    scope = _plain(run.environment.get("scope"))
    return f'<aside class="notes"><h2>Scope</h2><p>{escape(scope)}</p></aside>' if scope else ""


def _warnings(run: Run) -> str:
    items = "".join(f"<li>Step {step}: {escape(text)}</li>" for step, text in run.metrics.warnings)
    return f'<aside class="notes"><h2>What the run warned of</h2><ul>{items}</ul></aside>' if items else ""


def notes_html(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<aside class="notes"><h2>What is missing</h2><ul>{items}</ul></aside>' if items else ""
