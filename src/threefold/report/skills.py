"""The page of the skill bank: its versions as a tree, their tests, what changed, and which skills were used.

Versions, evidence and tests are read from the run's `bank/`; how often a skill fired is counted over every
recorded episode (`tallies`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from threefold.report.bank import Version, read_bank
from threefold.report.curves import Chart, Series, chart_html
from threefold.report.document import anchor
from threefold.report.intervals import Interval, in_words
from threefold.report.reading import Run
from threefold.report.tallies import Tallies, Use

DETAILED = 60
"""Versions that are shown in detail; the newest ones of a longer run."""
DIFF_LINES = 400
"""Lines of a version's diff that are shown."""
_MARKS = {
    "initial": ("plain", "to begin with"),
    "imported": ("plain", "imported"),
    "testing": ("testing", "under test"),
    "accept": ("good", "accepted"),
    "auto-accept": ("good", "taken without a test"),
    "reject": ("bad", "rejected"),
}


def skills_html(run: Run) -> str:
    """The page, "" where the run has no bank."""
    notes: list[str] = []
    versions = read_bank(run.directory, notes)
    if not versions:
        return ""
    by_name = {version.name: version for version in versions}
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        _tree(versions)
        + (f'<aside class="notes"><ul>{said}</ul></aside>' if said else "")
        + _posteriors(versions)
        + _used(versions, run.episodes.tallies)
        + _details(versions, by_name)
    )


def in_use(versions: Sequence[Version]) -> Version:
    """The newest version that is neither under test nor rejected."""
    return next((v for v in reversed(versions) if v.decision not in ("testing", "reject")), versions[0])


# The tree


def _tree(versions: Sequence[Version]) -> str:
    now = in_use(versions)
    counts = {
        word: sum(v.decision in kinds for v in versions)
        for word, kinds in {
            "accepted": ("accept", "auto-accept"),
            "rejected": ("reject",),
            "under test": ("testing",),
        }.items()
    }
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none was proposed"
    names = ", ".join(now.texts) or "no skill"
    lead = (
        f"{len(versions)} version{'s' * (len(versions) > 1)} of the bank: {said}. In use is {now.name}, with "
        f"{names}. A version is its parent and a bundle of changes; each is tested against its parent inside "
        "the groups that train the policy."
    )
    known = {version.name for version in versions}
    roots = [v for v in versions if v.parent not in known]
    return (
        f"<section><h2>Versions</h2><p class=lead>{escape(lead)}</p>"
        f'<ul class="tree">{"".join(_branch(v, versions, now, 0) for v in roots)}</ul></section>'
    )


def _branch(version: Version, versions: Sequence[Version], now: Version, depth: int) -> str:
    tone, word = _MARKS.get(version.decision, ("plain", version.decision))
    changes = "; ".join(f"{o.get('op', '')} {o.get('name', '')}" for o in version.operations)
    said = f", {_p(version)}" if version.test else ""
    when = f", step {version.step}" if version.step else ""
    children = [v for v in versions if v.parent == version.name and v is not version]
    inner = "".join(_branch(child, versions, now, depth + 1) for child in children) if depth < 100 else ""
    current = ' aria-current="true"' if version is now else ""
    return (
        f'<li><a class="version v-{tone}"{current} '
        f'href="#{_id(version)}"><strong>{escape(version.name)}</strong> '
        f"<span>{escape(word)}{' · in use' if version is now else ''}</span></a> "
        f'<span class="muted">{escape(changes)}{escape(when)}{escape(said)}</span>'
        + (f"<ul>{inner}</ul>" if inner else "")
        + "</li>"
    )


def _p(version: Version) -> str:
    return f"P(better than {version.parent}) = {version.test[-1].probability:.2f}"


def _id(version: Version) -> str:
    return anchor(f"Skills {version.name}")


# Tests


def _posteriors(versions: Sequence[Version]) -> str:
    tested = [version for version in versions if version.test]
    if not tested:
        return ""
    drawn = tested[-12:]
    every = Chart(
        "Is the new version better?",
        tuple(
            Series(v.name, {step.step: step.probability for step in v.test}, number % 6)
            for number, v in enumerate(drawn)
        ),
        "Posterior probability that the version under test succeeds more often than its parent.",
        share=True,
    )
    lead = (
        "In each step of a test the episodes of every group are played under the new version or its parent "
        "by "
        "chance; each one's successes update its Beta posterior."
    )
    if len(drawn) < len(tested):
        lead += f" The newest {len(drawn)} of {len(tested)} tests are drawn."
    charts = chart_html(every) + "".join(chart_html(_means(v)) for v in drawn[-5:])
    return (
        f'<section><h2>Tests</h2><p class=lead>{escape(lead)}</p><div class="charts">{charts}</div></section>'
    )


def _means(version: Version) -> Chart:
    arms = (("new", f"{version.name}, new"), ("old", f"{version.parent}, parent"))
    series = []
    for colour, (arm, name) in enumerate(arms):
        course = {step.step: beta(*getattr(step, arm)) for step in version.test}
        band = {s: (i.low, i.high) for s, i in course.items() if i.low is not None and i.high is not None}
        series.append(Series(name, {s: i.mean for s, i in course.items()}, colour, band))
    return Chart(
        f"{version.name} against {version.parent}: success",
        tuple(series),
        "Posterior means of success with their 95 % intervals.",
    )


def beta(a: float, b: float) -> Interval:
    """Mean and central 95 % of a Beta distribution, by 4,000 draws."""
    low, high = np.quantile(np.random.default_rng(0).beta(a, b, 4_000), [0.025, 0.975])
    return Interval(a / (a + b), float(low), float(high))


# Use


def _used(versions: Sequence[Version], tallies: Tallies) -> str:
    """Which skill fired how often in the recorded episodes, by skill over all versions that hold it."""
    played = [version for version in versions if version.name in tallies.versions]
    names = list(dict.fromkeys(name for version in played for name in version.texts))
    if not names:
        return ""
    rows, silent = [], []
    for name in names:
        holding = [version for version in played if name in version.texts]
        held, fired = Use(), Use()
        for version in holding:
            held.merge(tallies.versions[version.name])
            if (use := tallies.skills.get((version.name, name))) is not None:
                fired.merge(use)
        if not fired.episodes:
            silent.append(name)
        share = fired.episodes / held.episodes if held.episodes else 0.0
        rows.append(
            f"<tr{' class=broken' if not fired.episodes else ''}><th scope=row>{escape(name)}</th>"
            f"<td>{escape(_trigger(holding[-1], name))}</td>"
            f"<td>{escape(', '.join(v.name for v in holding[-6:]))}</td>"
            f"<td>{held.episodes:,}</td><td>{fired.episodes:,} ({share:.0%})</td><td>{fired.turns:,}</td>"
            f"<td>{_success(fired)}</td><td>{_success(held.without(fired))}</td></tr>"
        )
    said = (
        f"Never fired: {', '.join(silent)}. Such a skill costs nothing and does nothing; look at its trigger."
        if silent
        else "Every skill that was played with fired."
    )
    head = (
        "skill",
        "when",
        "versions",
        "episodes that had it",
        "in which it fired",
        "turns",
        "success where it fired",
        "where it did not",
    )
    return (
        f"<section><h2>Which skills fired</h2><p class=lead>{escape(said)} Whether it fires depends on "
        f"what the agent "
        "does, so success with and without it says nothing of its effect: the tests above do.</p>"
        '<div class=scroll tabindex="0" role="region" aria-label="Which skills fired"><table '
        'class="results groups">'
        f"<thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f"</div>{_by_version(played, tallies)}</section>"
    )


def _by_version(played: Sequence[Version], tallies: Tallies) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(v.name)}</th><td>{use.episodes:,}</td><td>{use.turns:,}</td>"
        f"<td>{_success(use)}</td></tr>"
        for v in played
        if (use := tallies.versions.get(v.name)) is not None
    )
    return (
        "<details><summary>Episodes by version</summary><div class=scroll><table class=results><thead><tr>"
        "<th>version</th><th>episodes</th><th>turns</th><th>success</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _success(use: Use) -> str:
    return "" if not use.scored else f"{use.right / use.scored:.0%} of {use.scored:,}"


def _trigger(version: Version, name: str) -> str:
    skill = version.skills.get(name)
    if skill is None:
        return "not readable"
    kind = {"general": "always", "beginning": "at the beginning", "action_pattern": "after"}
    return f"{kind.get(skill.trigger.kind, skill.trigger.kind)} {skill.trigger.pattern}".strip()


# Details


def _details(versions: Sequence[Version], by_name: Mapping[str, Version]) -> str:
    shown = versions[-DETAILED:][::-1]
    lead = "What each version changed and why, the newest first."
    if len(shown) < len(versions):
        lead += f" The newest {len(shown)} of {len(versions)} are here; threefold skills history has all."
    return (
        f"<section><h2>What changed</h2><p class=lead>{escape(lead)}</p>"
        + "".join(_detail(v, by_name.get(v.parent or "")) for v in shown)
        + "</section>"
    )


def _detail(version: Version, parent: Version | None) -> str:
    tone, word = _MARKS.get(version.decision, ("plain", version.decision))
    decided = "" if version.decided_step is None else f" at step {version.decided_step}"
    return (
        f'<article class="bankversion" id="{_id(version)}"><h3><span class="version v-{tone}">'
        f"<strong>{escape(version.name)}</strong> <span>{escape(word)}{escape(decided)}</span></span></h3>"
        f"{_evidence(version)}{_test(version)}{_diff(version, parent)}</article>"
    )


def _evidence(version: Version) -> str:
    items = [
        f"<li>{escape(str(o.get('op', '')))} <strong>{escape(str(o.get('name', '')))}</strong>: "
        f"{escape(str(o.get('reason') or 'no reason was given'))}</li>"
        for o in version.operations
    ]
    evidence = dict(version.evidence)
    said = [
        f"<p>{escape(label)}: {escape(str(evidence.pop(key)))}</p>"
        for key, label in (("diagnosis", "Diagnosis"), ("episodes", "Episodes that the creator saw"))
        if evidence.get(key)
    ]
    rest = {key: value for key, value in evidence.items() if value}
    more = ""
    if rest:
        text = escape(json.dumps(rest, indent=2, ensure_ascii=False, default=str)[:20_000])
        more = f"<details><summary>More evidence</summary><pre>{text}</pre></details>"
    return f"<ul>{''.join(items)}</ul>{''.join(said)}{more}" if items or said or more else ""


def _test(version: Version) -> str:
    if not version.test:
        return ""
    rows = "".join(
        f"<tr><td>{s.step}</td><td>{s.won_new[0]} of {s.won_new[1]}</td><td>{s.won_old[0]} of "
        f"{s.won_old[1]}</td>"
        f"<td>{escape(in_words(beta(*s.new)))}</td><td>{escape(in_words(beta(*s.old)))}</td>"
        f"<td>{s.probability:.3f}</td></tr>"
        for s in version.test[-50:]
    )
    last = version.test[-1]
    won = [sum(s.won_new[i] for s in version.test) for i in (0, 1)]
    lost = [sum(s.won_old[i] for s in version.test) for i in (0, 1)]
    return (
        f"<p>Test: {won[0]} of {won[1]} episodes succeeded under {escape(version.name)}, {lost[0]} of "
        f"{lost[1]} under "
        f"{escape(str(version.parent))}; {escape(_p(version))} after step {last.step}.</p>"
        "<details><summary>The test, step by step</summary><div class=scroll><table class=results><thead><tr>"
        "<th>step</th><th>new</th><th>parent</th><th>posterior, new</th><th>posterior, parent</th>"
        f"<th>P(new &gt; parent)</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _diff(version: Version, parent: Version | None) -> str:
    """The texts that differ from the parent's, line by line."""
    before = parent.texts if parent is not None else {}
    names = [n for n in dict.fromkeys([*before, *version.texts]) if before.get(n) != version.texts.get(n)]
    lines: list[str] = []
    for name in names:
        one, two = before.get(name, "").splitlines(), version.texts.get(name, "").splitlines()
        lines.append(f"@ {name}")
        lines += list(difflib.unified_diff(one, two, lineterm="", n=2))[2:]
    if not lines:
        return ""
    cut = f"\n{len(lines) - DIFF_LINES} lines more" if len(lines) > DIFF_LINES else ""
    return f'<pre class="diff">{"".join(map(_line, lines[:DIFF_LINES]))}{cut}</pre>'


def _line(line: str) -> str:
    kind = {"+": "ins", "-": "del", "@": "hunk"}.get(line[:1], "same")
    return f'<span class="{kind}">{escape(line[:2_000])}</span>\n'
