"""What the cells of the study say: study.json with every figure, study.md in words and tables, and plots.

Nothing here trains. A cell that is missing is named and left out; a comparison uses the seeds that both arms
have.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study_plots
import yaml

from threefold.evaluation.intervals import crossed_bootstrap

CURVES = (
    "signal/outcome",
    "signal/dead_outcome",
    "signal/dead_all_right",
    "signal/dead_all_wrong",
    "signal/dead_composite@0.0001",
    "certainty/entropy_all_right",
    "certainty/entropy_all_wrong",
    "certainty/entropy_top_right",
    "certainty/entropy_top_wrong",
    "certainty/entropy_drifted_right",
    "certainty/entropy_drifted_wrong",
    "certainty/confidence_right",
    "certainty/confidence_wrong",
    "certainty/brier",
    "certainty/ece",
    "completions/mean_length",
)
"""What is followed over training; docs/metrics.md defines each."""
SCORE = "strict"
TOKENS = {"all": "all tokens", "top": "top-entropy tokens", "drifted": "critical tokens"}
CONTROLS = {"ispo-paper": "ispo-paper-noise", "ispo": "ispo-noise"}


def write(runs: Path, results: Path, arms: Sequence[str], seeds: Sequence[int], command: str) -> None:
    """Read every complete cell below `runs` and write the study below `results`."""
    cells = {
        (arm, seed): read_cell(runs / f"{arm}-{seed}")
        for arm in arms
        for seed in seeds
        if (runs / f"{arm}-{seed}" / "cell.json").exists()
    }
    if not cells:
        print(f"no complete cell below {runs}: nothing to report")
        return
    missing = [f"{arm}-{seed}" for arm in arms for seed in seeds if (arm, seed) not in cells]
    initial_file = runs / "initial.json"
    initial = json.loads(initial_file.read_text(encoding="utf-8")) if initial_file.exists() else None
    environment = _read(runs / "{}-{}".format(*next(iter(cells))) / "environment.json")
    study = {
        "command": command,
        "machine": environment["machine"],
        "versions": environment["versions"],
        "missing": missing,
        "initial": initial["evaluations"] if initial else None,
        "comparisons": compare(cells, arms, seeds),
        "cells": [{k: v for k, v in cell.items() if not k.startswith("_")} for cell in cells.values()],
    }
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(study, indent=1) + "\n"
    (results / "study.json").write_text(text, encoding="utf-8")
    page = _page(study, cells, arms)
    (results / "study.md").write_text(page, encoding="utf-8")
    study_plots.draw(results, study, cells, arms)
    print(page)


def read_cell(run: Path) -> dict[str, Any]:
    """Figures of one run directory; keys that begin with "_" stay out of study.json."""
    cell = _read(run / "cell.json")
    after = {e["mode"]: e for e in _read(run / "after.json")["evaluations"]}
    summary = {e["mode"]: e for e in _read(run / "evaluation.json")["evaluations"] if e["when"] == "after"}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    every = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["training"]["signals_every"]
    for step in steps:
        if (step["step"] - 1) % every:
            # Between these steps a method without signals sees the rows that its update takes, not all.
            for name in [name for name in step if name.startswith("certainty/")]:
                del step[name]
    generated = [s.get("dynamic_sampling/generated") for s in steps]
    episodes = sum(1 for _ in (run / "rollouts.jsonl").open(encoding="utf-8"))
    sampled = after["sampled"]
    return {
        "arm": cell["arm"],
        "seed": cell["seed"],
        "steps": len(steps),
        "episodes_trained": episodes,
        "episodes_generated": int(sum(g for g in generated if g is not None)) or episodes,
        "tokens": steps[-1].get("num_tokens"),
        "training_seconds": round(sum(s.get("step_time", 0.0) for s in steps), 1),
        "command_seconds": round(cell["seconds"], 1),
        "success": {mode: e["scores"][SCORE]["mean"] for mode, e in summary.items()},
        "by_difficulty": {k: v[SCORE] for k, v in summary["sampled"]["by_difficulty"].items()},
        "calibration": summary["sampled"].get("calibration"),
        "dead_before_replacing": _ends([s.get("dynamic_sampling/dead_first") for s in steps]),
        "curves": {name: _ends([s.get(name) for s in steps]) for name in CURVES},
        "_curves": {name: [s.get(name) for s in steps] for name in CURVES},
        "_problems": sampled["problem_ids"],
        "_success_N": [statistics.fmean(map(float, row)) for row in sampled["outcomes"][SCORE]],
        "_sampled": sampled,
    }


def compare(
    cells: Mapping[tuple[str, int], Mapping[str, Any]], arms: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Differences in sampled success: every arm against GRPO, and each ISPO against its noise control."""
    pairs = [(arm, "grpo") for arm in arms if arm != "grpo" and "grpo" in arms]
    pairs += [(arm, control) for arm, control in CONTROLS.items() if arm in arms and control in arms]
    common = {pair: [s for s in seeds if all((arm, s) in cells for arm in pair)] for pair in pairs}
    pairs = [pair for pair in pairs if common[pair]]
    found = []
    for arm, other in pairs:
        difference_SN = np.array(
            [
                np.subtract(cells[arm, s]["_success_N"], cells[other, s]["_success_N"])
                for s in common[arm, other]
            ]
        )
        assert all(cells[arm, s]["_problems"] == cells[other, s]["_problems"] for s in common[arm, other])
        plain = crossed_bootstrap(difference_SN)
        strict = crossed_bootstrap(difference_SN, level=1 - 0.05 / len(pairs))
        by_seed = difference_SN.mean(axis=1)
        found.append(
            {
                "arm": arm,
                "against": other,
                "seeds": common[arm, other],
                "mean": plain.mean,
                "interval_95": [plain.low, plain.high],
                "interval_bonferroni": [strict.low, strict.high],
                "comparisons": len(pairs),
                "by_seed": by_seed.tolist(),
            }
        )
    return found


# The page
# --------------------------------------------------------------------------------------------------------


def _page(study: Mapping[str, Any], cells: Mapping[tuple[str, int], Any], arms: Sequence[str]) -> str:
    present = [arm for arm in arms if any(a == arm for a, _ in cells)]
    seeds = sorted({seed for _, seed in cells})
    first = next(iter(cells.values()))
    parts = [
        "# The ISPO study",
        f"`{study['command']}`",
        f"{study['machine']['processor']}; "
        + ", ".join(f"{name} {version}" for name, version in study["versions"].items())
        + f". Seeds {', '.join(map(str, seeds))}; {len(first['_problems'])} held-out problems, "
        f"{first['_sampled']['samples']} samples each at temperature {first['_sampled']['temperature']:g}, "
        "the same for every arm. Each arm is measured at its last step.",
        "Success is the share of samples whose answer in the asked format is right. Intervals resample seeds "
        "and problems; they say nothing of other tasks or models.",
    ]
    if study["missing"]:
        parts.append(f"**Not complete:** {', '.join(study['missing'])} are missing.")
    parts += ["## Do the two failure modes arise under plain GRPO here?", *_failure_modes(cells)]
    parts += ["## Success on held-out problems", _success_table(study, cells, present)]
    parts += ["![Differences](differences.svg)", _comparison_words(study), _comparison_table(study)]
    parts += ["## Dead groups", _dead_table(cells, present), "![Dead groups](dead.svg)"]
    parts += ["## Entropy by outcome", _entropy_table(cells, present), "![Entropy](entropy.svg)"]
    parts += ["## Calibration", _calibration_table(study, cells, present), "![Reliability](reliability.svg)"]
    parts += ["## Cost", _cost_table(cells, present)]
    return "\n\n".join(parts) + "\n"


def _failure_modes(cells: Mapping[tuple[str, int], Any]) -> list[str]:
    plain = [cell for (arm, _), cell in cells.items() if arm == "grpo"]
    if not plain:
        return ["There is no complete cell of plain GRPO, so the question is open."]
    dead, right, wrong = (
        _mean_ends(plain, f"signal/dead_{name}") for name in ("outcome", "all_right", "all_wrong")
    )
    words = "grew" if dead[1] > dead[0] + 0.02 else "shrank" if dead[1] < dead[0] - 0.02 else "stayed"
    parts = [
        f"**Zero-advantage collapse.** In the first tenth of training {dead[0]:.0%} of the groups were dead "
        f"by outcome ({right[0]:.0%} all right, {wrong[0]:.0%} all wrong), in the last tenth {dead[1]:.0%} "
        f"({right[1]:.0%} and {wrong[1]:.0%}): the share {words}. Plain GRPO learns nothing from these."
    ]
    for place, name in TOKENS.items():
        falls, below, counted = 0, 0, 0
        for cell in plain:
            w, r = (cell["curves"][f"certainty/entropy_{place}_{side}"] for side in ("wrong", "right"))
            if w["last"] is None or r["last"] is None or w["first"] is None:
                continue
            counted += 1
            falls += w["last"] < w["first"]
            below += w["last"] < r["last"]
        if not counted:
            parts.append(f"**Hallucinated certainty, {name}:** not measured.")
            continue
        w, r = (_mean_ends(plain, f"certainty/entropy_{place}_{side}") for side in ("wrong", "right"))
        parts.append(
            f"**Hallucinated certainty, {name}.** Entropy of wrong episodes went from {w[0]:.3f} to "
            f"{w[1]:.3f} nats, of right ones from {r[0]:.3f} to {r[1]:.3f}. It fell in {falls} of {counted} "
            f"seeds, and ended below that of right episodes, which is the paper's claim, in {below} of "
            f"{counted}."
        )
    sure = _mean_ends(plain, "certainty/confidence_wrong")
    if not math.isnan(sure[0]):
        parts.append(
            f"**Confident errors.** The mean probability of a wrong answer after its own reasoning went from "
            f"{sure[0]:.1%} to {sure[1]:.1%}."
        )
    return parts


def _success_table(study: Mapping[str, Any], cells: Any, arms: Sequence[str]) -> str:
    levels = sorted({level for cell in cells.values() for level in cell["by_difficulty"]})
    rows = []
    if study["initial"]:
        by_mode = {e["mode"]: e for e in study["initial"]}
        scores = [by_mode[mode]["scores"][SCORE]["mean"] for mode in ("sampled", "greedy")]
        graded = [by_mode["sampled"]["by_difficulty"].get(level, {}).get(SCORE) for level in levels]
        rows.append(["before training", "", *map(_percent, [*scores, *graded])])
    for arm in arms:
        mine = _of(cells, arm)
        sampled = [cell["success"]["sampled"] for cell in mine]
        spread = f"{min(sampled):.1%} to {max(sampled):.1%}"
        greedy = statistics.fmean(cell["success"]["greedy"] for cell in mine)
        graded = [
            statistics.fmean(cell["by_difficulty"].get(level, 0.0) for cell in mine) for level in levels
        ]
        rows.append([arm, spread, *map(_percent, [statistics.fmean(sampled), greedy, *graded])])
    return _table(["arm", "seeds, lowest to highest", "sampled", "greedy", *levels], rows)


def _comparison_words(study: Mapping[str, Any]) -> str:
    found = study["comparisons"]
    if not found:
        return "No arm can be compared with another yet."
    m = found[0]["comparisons"]
    better = [f"{c['arm']} over {c['against']}" for c in found if c["interval_bonferroni"][0] > 0]
    worse = [f"{c['arm']} under {c['against']}" for c in found if c["interval_bonferroni"][1] < 0]
    parts = [
        f"{m} comparisons were made, so a difference is called clear where its interval at the level "
        f"1 - 0.05 / {m} (Bonferroni) keeps off zero.",
        f"Clearly better: {', '.join(better) or 'none'}. Clearly worse: {', '.join(worse) or 'none'}.",
    ]
    for arm, control in CONTROLS.items():
        one = next((c for c in found if (c["arm"], c["against"]) == (arm, control)), None)
        if one is not None:
            low, high = one["interval_bonferroni"]
            verdict = (
                "so what the signal says matters"
                if low > 0
                else "so the control does better, and the signal hurts"
                if high < 0
                else "so it is not shown that the signal does more than noise of the same spread"
            )
            parts.append(f"{arm} differs from its noise control by {one['mean']:+.1%}, {verdict}.")
    return " ".join(parts)


def _comparison_table(study: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{c['arm']} - {c['against']}",
            f"{c['mean']:+.1%}",
            "[{:+.1%}, {:+.1%}]".format(*c["interval_95"]),
            "[{:+.1%}, {:+.1%}]".format(*c["interval_bonferroni"]),
            ", ".join(f"{value:+.1%}" for value in c["by_seed"]),
        ]
        for c in study["comparisons"]
    ]
    return _table(["difference", "mean", "95 % interval", "with Bonferroni", "by seed"], rows)


def _dead_table(cells: Any, arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        mine = _of(cells, arm)
        before = [cell["dead_before_replacing"] for cell in mine]
        outcome = _mean_ends(mine, "signal/dead_outcome")
        replaced = (
            f"{_mean([b['first'] for b in before]):.0%} to {_mean([b['last'] for b in before]):.0%}"
            if before[0]["first"] is not None
            else "same"
        )
        composite = _mean_ends(mine, "signal/dead_composite@0.0001")
        values = [outcome, *(_mean_ends(mine, f"signal/dead_all_{side}") for side in ("right", "wrong"))]
        rows.append([arm, *(f"{a:.0%} to {b:.0%}" for a, b in [*values, composite]), replaced])
    note = (
        "Share of the groups that were trained on, first tenth of training to last tenth. *Composite*: the "
        "reward that the method normalises spans at most 0.0001. *Generated*: before dynamic sampling "
        "replaced any."
    )
    head = ["arm", "dead by outcome", "all right", "all wrong", "dead in the composite", "generated"]
    return note + "\n\n" + _table(head, rows)


def _entropy_table(cells: Any, arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        row = [arm]
        for place in TOKENS:
            for side in ("right", "wrong"):
                first, last = _mean_ends(_of(cells, arm), f"certainty/entropy_{place}_{side}")
                row.append("-" if math.isnan(first) else f"{first:.3f} to {last:.3f}")
        rows.append(row)
    note = (
        "Nats, first tenth of training to last tenth, measured alike for every arm: on all episodes of every "
        "tenth step. Critical tokens are those of ISPO's paper, in the steps in which there are any."
    )
    head = ["arm", *(f"{name}, {side}" for name in TOKENS.values() for side in ("right", "wrong"))]
    return note + "\n\n" + _table(head, rows)


def _calibration_table(study: Mapping[str, Any], cells: Any, arms: Sequence[str]) -> str:
    rows = []
    if study["initial"]:
        sampled = next(e for e in study["initial"] if e["mode"] == "sampled")
        rows.append(["before training", *_calibration_row([sampled.get("calibration")])])
    for arm in arms:
        rows.append([arm, *_calibration_row([cell["calibration"] for cell in _of(cells, arm)])])
    note = (
        "Confidence is the probability of the whole answer after its own reasoning; samples on held-out "
        "problems, mean of the seeds. ECE in ten bins of equal width, and of equal mass."
    )
    head = ["arm", "confidence", "accuracy", "Brier", "ECE, width", "ECE, mass", "without an answer"]
    return note + "\n\n" + _table(head, rows)


def _calibration_row(found: Sequence[Any]) -> list[str]:
    measured = [c for c in found if c]
    if not measured:
        return ["-"] * 6
    shares = [f"{_mean([c[name] for c in measured]):.1%}" for name in ("confidence", "accuracy")]
    errors = [f"{_mean([c[name] for c in measured]):.3f}" for name in ("brier", "ece_width", "ece_mass")]
    without = _mean([c["no_answer"] / (c["no_answer"] + c["samples"]) for c in measured])
    return [*shares, *errors, f"{without:.1%}"]


def _cost_table(cells: Any, arms: Sequence[str]) -> str:
    names = {
        "steps": "updates",
        "episodes_trained": "episodes trained",
        "episodes_generated": "episodes generated",
        "tokens": "tokens, prompts included",
        "training_seconds": "seconds of training",
        "command_seconds": "seconds of the command",
    }
    rows = [
        [arm, *(f"{_mean([cell[name] or 0 for cell in _of(cells, arm)]):,.0f}" for name in names)]
        for arm in arms
    ]
    note = (
        "Mean of the seeds. Seconds are those of cells that ran side by side, whatever else the machine did: "
        "they measure no speed."
    )
    return note + "\n\n" + _table(["arm", *names.values()], rows)


def _ends(values: Sequence[float | None]) -> dict[str, float | None]:
    """Means over the first and the last tenth of the steps in which there was a value; None without any."""
    known = [value for value in values if value is not None]
    tenth = max(1, len(known) // 10)
    if not known:
        return {"first": None, "last": None}
    return {"first": statistics.fmean(known[:tenth]), "last": statistics.fmean(known[-tenth:])}


def _mean_ends(cells: Sequence[Any], name: str) -> tuple[float, float]:
    return (
        _mean([cell["curves"][name]["first"] for cell in cells]),
        _mean([cell["curves"][name]["last"] for cell in cells]),
    )


def _mean(values: Sequence[float | None]) -> float:
    """Mean of what is not None; NaN where nothing is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan


def _of(cells: Mapping[tuple[str, int], Any], arm: str) -> list[Any]:
    return [cell for (name, _), cell in cells.items() if name == arm]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
