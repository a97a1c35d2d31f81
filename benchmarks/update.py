"""The update of TRL's GRPOTrainer and of ThreefoldTrainer with its speed-ups, on the same episodes.

    python benchmarks/update.py                          # = threefold bench update
    python benchmarks/update.py --prompt 128 --completion 256

Writes results/performance/update.json; `python benchmarks/performance_page.py` makes the page of it.
"""

from __future__ import annotations

import sys

from threefold.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "update", "--output", "results/performance", *sys.argv[1:]]))
