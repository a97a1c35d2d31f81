"""The frame of every page: one HTML file without a single request, in which no text of a run can act.

Everything that comes from a run is escaped where it enters the markup, and a content security policy admits
only the page's own script and style, by their hashes: should a text slip through, the browser still does not
run it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path

_DIALOG = (
    '<dialog id="episode" aria-label="Episode"><div class="bar">'
    '<button type="button" id="previous">Previous</button>'
    '<button type="button" id="next">Next</button><span id="place"></span>'
    '<button type="button" id="close">Close</button></div><div id="detail"></div></dialog>'
    '<div id="tip" role="status" hidden></div>'
)
_SCRIPTS = ("report.js", "groups.js", "pages.js")


def document(title: str, body: str, data: Mapping[str, str], *, reload: float | None = None) -> str:
    """A whole file.

    Args:
        title: Of the window, not escaped yet.
        body: Markup, escaped.
        data: JSON for the page's script by element id, as `episodes.script_json` writes it.
        reload: Seconds after which an open page loads itself again; None for never.
    """
    style, scripts = _asset("report.css"), [_asset(name) for name in _SCRIPTS]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {' '.join(map(_hash, scripts))}; base-uri 'none'; form-action 'none'"
    )
    embedded = "".join(
        f'<script type="application/json" id="{name}">{json}</script>' for name, json in data.items()
    )
    again = "" if reload is None else f' data-reload="{reload:g}"'
    return (
        f'<!doctype html>\n<html lang="en"{again}><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main>{body}</main>{_DIALOG}{embedded}"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )


def navigation(parts: Mapping[str, str]) -> str:
    """Links to the pages that are not empty, by their names."""
    links = "".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name, html in parts.items() if html)
    return f'<nav aria-label="Pages">{links}</nav>'


def pages(parts: Mapping[str, str]) -> str:
    """The pages, one below the other; a script shows one at a time, and without it all are there to read."""
    return "".join(
        f'<div id="{anchor(name)}" class="part" role="region" aria-label="{escape(name)}">{html}</div>'
        for name, html in parts.items()
        if html
    )


def link(name: str) -> str:
    """A link to a page, to stand behind a sentence."""
    return f' <a class="more" href="#{anchor(name)}">{escape(name)}</a>'


def anchor(name: str) -> str:
    return "part-" + name.lower().replace(" ", "-").replace("?", "")


def write_page(path: Path, html: str) -> Path:
    """Write a page whole or not at all; an older one is replaced, a missing folder made.

    Raises:
        IsADirectoryError: The path is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'report.html'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    # A lone surrogate can stand in JSON but not in UTF-8; it becomes a question mark.
    temporary.write_bytes(html.encode("utf-8", "replace"))
    temporary.replace(path)
    return path


def _asset(name: str) -> str:
    return (resources.files("threefold.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
