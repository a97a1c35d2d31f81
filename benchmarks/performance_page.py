"""results/performance.md, and what docs/speed.md quotes of it, from the JSON files in results/performance.

threefold bench --output results/performance              # measures; hours on two cores
python benchmarks/performance_page.py
"""

from __future__ import annotations

from pathlib import Path

from threefold.bench import page
from threefold.bench.record import read

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "performance"
BEGIN, END = "<!-- speed results -->", "<!-- end speed results -->"
QUOTED = ("step", "update", "dialogue")
"""Benches whose tables the documentation quotes, those that were measured."""


def main() -> None:
    target = FOLDER.with_suffix(".md")
    target.write_text(page.performance(FOLDER), encoding="utf-8")
    print(f"{target.relative_to(ROOT)} is written")
    docs = ROOT / "docs" / "speed.md"
    text = docs.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    docs.write_text(f"{before}{BEGIN}\n{quoted()}\n{END}{after}", encoding="utf-8")
    print(f"{docs.relative_to(ROOT)} quotes it")


def quoted() -> str:
    """The tables of the benches that the documentation quotes."""
    lines = []
    for name in QUOTED:
        path = FOLDER / f"{name}.json"
        if path.exists():
            lines += [line.replace("## ", "### ", 1) for line in page.section(read(path))] + [""]
    return "\n".join([*lines, "All of it: [results/performance.md](../results/performance.md)."])


if __name__ == "__main__":
    main()
