"""How long a report takes, how much memory, and how large its file is, by the number of episodes.

A run directory is made through the writer that training uses: care dialogues of real lengths with broken
rules, a signal a token, a skill bank, metrics of every step; no model, the words are drawn. The report is
then written in a process of its own, whose peak of resident memory is read from the system.

    python benchmarks/report_size.py
    python benchmarks/report_size.py --episodes 1000 100000 --keep /tmp/large-run

The writer keeps about 600 MB of a run's rollouts and drops older parts, and so does this one: a row says how
many episodes were left to read. Writes results/report-size.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.evaluation.episodes import EpisodeEvaluation
from threefold.evaluation.intervals import Interval
from threefold.recipe import parse_recipe
from threefold.report.records import rollout_files
from threefold.skills.bank import Add, Bank, apply, operation_to_dict
from threefold.skills.skill import Skill
from threefold.skills.store import VersionRecord, write_version
from threefold.training.run_directory import RunDirectory
from threefold.trajectory import Credited, Opening, Segment, Trajectory, Turn, Violation

ROOT = Path(__file__).resolve().parents[1]
SUBTYPES = ("AD-early", "AD-mid-late", "DLB", "FTD-bv", "PDD", "VaD", "lvPPA", "nfvPPA", "svPPA")
WORDS = "we you look coat together cold see that sounds hard tea warm hand let us sit now later home"
GROUP = 8
TURNS = 3
MEASURE = """
import json, re, sys, time
from pathlib import Path

begun, worked = time.perf_counter(), time.process_time()
from threefold.report import write_report

page = write_report(Path(sys.argv[1]))
found = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - worked}
# Not getrusage: its peak counts the process that started this one, too.
status = Path("/proc/self/status").read_text()
found["peak"] = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1e3
html = page.read_text(encoding="utf-8")
said = next((text for text in html.split("<p class=lead>") if "recorded episodes are here" in text), "")
print(json.dumps({**found, "page": page.stat().st_size / 1e6, "said": said.partition(". ")[0]}))
"""
SCOPE = "Research and training simulation, not for clinical use."


@dataclass(frozen=True)
class Row:
    """One report."""

    written: int
    left: int
    """Episodes that the writer kept."""
    megabytes: float
    """Of rollouts."""
    seconds: float
    """By the clock."""
    processor: float
    """Seconds of the processor."""
    peak: float
    """Resident memory in MB."""
    page: float
    """MB."""
    said: str
    """What the page says of its sample."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds, memory and size of a report.")
    parser.add_argument("--episodes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--keep", type=Path, help="make the last run directory there and leave it")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "report-size.md")
    options = parser.parse_args()
    rows = []
    for count in options.episodes:
        with tempfile.TemporaryDirectory() as folder:
            last = options.keep is not None and count == options.episodes[-1]
            path = options.keep if last else Path(folder) / "run"
            begun = time.perf_counter()
            write_run(path, count)
            print(f"{count} episodes written in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            rows.append(row(path, count))
            print(rows[-1], file=sys.stderr)
    write(options.output, rows)


def write_run(path: Path, episodes: int) -> None:
    """A run of so many episodes, 64 a step, through the writers of training."""
    rng = random.Random(0)
    run = RunDirectory(path)
    per_step = 8 * GROUP
    steps = -(-episodes // per_step)
    run.write_config(
        parse_recipe(
            {
                "environment": {"name": "caregiver"},
                "credit": {"method": "t2grpo"},
                "training": {"steps": steps},
            }
        ).to_yaml()
    )
    run.write_environment(0, scope=SCOPE)
    write_bank(path)
    for step in range(1, steps + 1):
        here = min(per_step, episodes - (step - 1) * per_step)
        run.append_rollouts(dialogue(rng, step, i // GROUP, i % GROUP, steps) for i in range(here))
        run.append_metrics(step, metrics(rng, step, steps))
    evaluations = [evaluation(when, rise) for when, rise in (("before", 0.1), ("after", 0.8))]
    run.write_evaluation({"evaluations": evaluations, "gains": []})


def dialogue(rng: random.Random, step: int, group: int, member: int, steps: int) -> Credited:
    """Turns of about eight tokens, each with an answer of as many."""
    ids: list[int] = [-1] * 24
    texts = [rng.choice(WORDS.split()) for _ in ids]
    levels, turns = [2.0], []
    rule = rng.choice(["coercion", "unsafe permission"]) if rng.random() < 0.1 else None
    for turn in range(TURNS):
        said = [" " + rng.choice(WORDS.split()) for _ in range(rng.randint(6, 10))]
        heard = [" " + rng.choice(WORDS.split()) for _ in range(rng.randint(6, 10))]
        ids += [turn] * len(said) + [-1] * len(heard)
        texts += said + heard
        levels.append(max(0.0, levels[-1] - rng.random() * step / steps))
        skills = ("take-up-what-was-said",) if rng.random() < 0.5 else ()
        state = {"D": levels[-1], "R": 1.0, "accepted": 0.0, "left": 0.0}
        reward = {"distress": levels[-2] - levels[-1], "resistance": 0.0}
        turns.append(Turn("".join(said), "".join(said), "".join(heard), reward, state, None, skills))
    mine = [turn >= 0 for turn in ids]
    trajectory = Trajectory(
        task_id=f"scenario-{rng.randrange(1000)}",
        group_id=group,
        member=member,
        seed=step,
        environment="CaregiverDialogues",
        opening=Opening(" ".join(texts[:24]), {"D": 2.0, "R": 1.0}),
        segments=(
            Segment(
                tuple(rng.randrange(50_000) for _ in ids),
                tuple(ids),
                tuple(round(-rng.random() * 3, 4) if own else None for own in mine),
            ),
        ),
        turns=tuple(turns),
        rewards={"goal": rng.random(), "fit": rng.random(), "term": rng.random()},
        success=rule is None and rng.random() < step / steps,
        violation=None if rule is None else Violation(rule, rng.randrange(TURNS)),
        skill_version="v1",
        ended="truncated" if rule is None else "violation",
        task={"subtype": SUBTYPES[(step + group) % len(SUBTYPES)], "care_task": "dressing"},
    )
    advantages = tuple(round(rng.gauss(0, 1), 6) if own else 0.0 for own in mine)
    entropy = tuple(round(rng.random() * 3, 6) if own else None for own in mine)
    return Credited(
        trajectory,
        step,
        (advantages,),
        None,
        (tuple(texts),),
        {"reward": rng.random()},
        {"entropy": (entropy,)},
    )


def metrics(rng: random.Random, step: int, steps: int) -> dict[str, Any]:
    """As many figures as a step of training logs, by names that are used and names that are not."""
    named = {
        name: rng.random()
        for name in ("reward", "entropy", "signal/outcome", "signal/dead_outcome", "turns/violations", "kl")
    }
    others = {f"figure/{number}": rng.random() for number in range(60)}
    return {
        **named,
        **others,
        "words": f"step {step} of {steps}: 4 of 8 groups gave no signal from outcomes.",
    }


def evaluation(when: str, rise: float) -> dict[str, Any]:
    def interval(mean: float) -> Interval:
        return Interval(mean, mean - 0.2, mean + 0.2)

    scores = {"success": interval(0.4), "violation": interval(0.2), "D, last turn": interval(1.5 - rise)}
    return EpisodeEvaluation(
        mode="sampled",
        temperature=1.0,
        task_ids=("s0",),
        samples=1,
        values={},
        scores=scores,
        pass_at={},
        states={},
        ended={"truncated": 1},
        mean_turns=4.0,
        mean_length=50.0,
        seconds=1.0,
        by_group=dict.fromkeys(SUBTYPES, scores),
        group_sizes=dict.fromkeys(SUBTYPES, 20),
        courses={"D": [interval(1.5 - rise * turn / 4) for turn in range(5)]},
    ).to_json(when=when)


def write_bank(path: Path) -> None:
    empty = Bank("v0")
    add = Add(
        Skill("take-up-what-was-said", "Somebody says what worries them.", "Say it back first."), "a start"
    )
    write_version(path / "bank", empty, VersionRecord("v0"))
    record = VersionRecord("v1", "v0", 1, "accept", 6, (operation_to_dict(add),))
    write_version(path / "bank", apply(empty, [add], "v1"), record)


def row(path: Path, count: int) -> Row:
    """Write the report in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    files = rollout_files(path)
    left = 0
    for file in files:
        with open(file, "rb") as lines:
            left += sum(1 for _ in lines)
    size = sum(file.stat().st_size for file in files) / 1e6
    return Row(written=count, left=left, megabytes=size, **json.loads(answer.stdout))


def write(output: Path, rows: list[Row]) -> None:
    """The table."""
    heads = (
        *("episodes written", "left to read", "rollouts, MB", "seconds", "of the processor"),
        *("peak memory, MB", "page, MB", "what the page says"),
    )
    table = [
        (
            *(f"{r.written:,}", f"{r.left:,}", f"{r.megabytes:.0f}", f"{r.seconds:.1f}"),
            *(f"{r.processor:.1f}", f"{r.peak:.0f}", f"{r.page:.2f}", r.said),
        )
        for r in rows
    ]
    lines = [
        "# What a report costs",
        "",
        "`python benchmarks/report_size.py`: run directories of care dialogues (about 75 tokens, three "
        "turns, a",
        "signal a token), made through the writer of training without a model, then `write_report` in a "
        "process",
        "of its own. Memory is the peak of that whole process, Python and numpy included.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *table)),
        "",
        "The writer keeps the newest 600 MB or so of a run's rollouts, and the report reads what is kept.",
        "",
    ]
    output.write_text("\n".join(lines), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
