"""A whole step of plain GRPOTrainer beside ThreefoldTrainer with ISPO, T²-GRPO and ReSkill.

    python benchmarks/whole_step.py                           # = threefold bench step

Writes results/performance/step.json; `python benchmarks/performance_page.py` makes the page of it.
"""

from __future__ import annotations

import sys

from threefold.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "step", "--output", "results/performance", *sys.argv[1:]]))
