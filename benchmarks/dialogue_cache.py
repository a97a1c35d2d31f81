"""What keeping the cache between turns saves: the same dialogues with it, and prefilled at every turn.

    python benchmarks/dialogue_cache.py                       # = threefold bench dialogue
    python benchmarks/dialogue_cache.py --prompt 1200 --turns 20

Writes results/performance/dialogue.json; `python benchmarks/performance_page.py` makes the page of it.
"""

from __future__ import annotations

import sys

from threefold.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "dialogue", "--output", "results/performance", *sys.argv[1:]]))
