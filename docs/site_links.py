"""A hook of mkdocs that makes the repository's links work on the site.

The pages are written to be read in the repository, where they link to results, recipes and code. On the site
the results are pages of their own, and code and recipes are named without a link.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
SHOWN = {".md", ".svg", ".png"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Take in the results beside the pages of docs/."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in SHOWN:
            name = path.relative_to(ROOT).as_posix()
            file = File.generated(config, name, abs_src_path=str(path))
            if path.name != "README.md":  # which is in the navigation, and leads to the others
                file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point each relative link at the site's page, or leave its words where the site has none."""
    here = page.file.src_uri
    # where the file stands in the repository
    stands = here if here.startswith("results/") else f"docs/{here}"

    def mended(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if re.match(r"[a-z]+:|/", target):
            return match[0]
        where = posixpath.normpath(posixpath.join(posixpath.dirname(stands), target))
        if not (ROOT / where).exists():
            return match[0]  # mkdocs says that it leads nowhere
        name = where.removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            return text
        link = posixpath.relpath(name, posixpath.dirname(here) or ".")
        return f"{image}[{text}]({link}{anchor or ''})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(mended, part) for part in parts)
