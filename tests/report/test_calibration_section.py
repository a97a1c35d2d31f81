"""The report's section on calibration, from evaluation.json to the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threefold.evaluation.calibration import calibrate
from threefold.report.page import write_report
from threefold.report.reading import read_run

CONFIDENCE = [0.95, 0.85, 0.85, 0.2, None]
RIGHT = [True, True, False, False, False]


def evaluation(calibration: Any) -> dict[str, Any]:
    scores = {"strict": {"mean": 0.4, "low": 0.2, "high": 0.6}}
    entry = {"when": "after", "mode": "sampled", "scores": scores, "calibration": calibration}
    return {"evaluations": [entry], "gains": []}


def measured() -> dict[str, Any]:
    found = calibrate(CONFIDENCE, RIGHT)
    return {"score": "strict", **found.to_json(), "by_difficulty": {"<hard>": found.to_json(table=False)}}


def test_the_figures_of_the_run_stand_on_the_page(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    (run / "evaluation.json").write_text(json.dumps(evaluation(measured())))
    page = write_report(run).read_text()
    section = page.partition("<h2>Calibration</h2>")[2].partition("</section>")[0]
    # By hand: (0.05² + 0.15² + 0.85² + 0.2²) / 4
    assert "<td>0.197</td>" in section
    assert section.count("<circle") == 3  # bins that hold a sample
    assert "&lt;hard&gt;" in section
    assert "<hard>" not in section


def test_a_run_without_confidence_has_no_such_section(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    assert "<h2>Calibration</h2>" not in write_report(run).read_text()


def test_a_figure_that_is_no_number_is_named(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    broken = {**measured(), "brier": None}
    (run / "evaluation.json").write_text(json.dumps(evaluation(broken)))
    assert any("brier that is not a finite number" in note for note in read_run(run).notes)
