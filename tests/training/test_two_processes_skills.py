"""A skill bank over two processes: the first one's leads, and it lives as it does on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skill_parts import recipe_writer
from threefold.skills.store import read_bank, versions
from threefold.trajectory import Credited, read_jsonl

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).with_name("two_processes_skills.py"))
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def ran(*command: str, fails: bool = False) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (answer.returncode != 0) == fails, answer.stderr[-3000:]
    return answer.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run on one process and on two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    ran(sys.executable, SCRIPT, str(one))
    ran(*TWO, SCRIPT, str(two))
    return one / "run", two / "run"


def life(run: Path, step: int = 8) -> dict[str, Any]:
    """What happened to a bank until a checkpoint; what was said in the episodes is the sampler's."""
    state = json.loads((run / "checkpoints" / f"checkpoint-{step}" / "threefold_skills.json").read_text())
    return {name: state[name] for name in ("bank", "events", "counts", "running", "rng", "seen")}


def test_a_bank_lives_as_on_one_process(runs: tuple[Path, Path]) -> None:
    """The same draws, posteriors, decisions and versions."""
    one, two = runs
    assert life(one) == life(two)
    assert {event["kind"] for event in life(two)["events"]} >= {"testing", "reject"}
    assert versions(one / "bank") == versions(two / "bank")
    known = {(run.parent / f"bank{rank}.txt").read_text() for run, rank in ((one, 0), (two, 0), (two, 1))}
    assert len(known) == 1, "each process knows the bank in use"


def test_each_episode_is_played_under_the_version_that_was_drawn_for_it(runs: tuple[Path, Path]) -> None:
    drawn = []
    for run in runs:
        played = [r for r in read_jsonl(run / "rollouts.jsonl") if isinstance(r, Credited)]
        assert len(played) == 8 * 8
        for record in played:
            shown = read_bank(run / "bank", record.trajectory.skill_version).names
            assert all(turn.skills == shown for turn in record.trajectory.turns)
        drawn.append([record.trajectory.skill_version for record in played])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[1][8:16])) == 2  # under test, in both processes' halves
    assert len(set(drawn[1][8:12])) == len(set(drawn[1][12:16])) == 2


def test_a_run_that_ended_inside_a_test_goes_on(runs: tuple[Path, Path], tmp_path: Path) -> None:
    ran(*TWO, SCRIPT, str(tmp_path), "4")
    ran(*TWO, SCRIPT, str(tmp_path), "8")
    assert life(tmp_path / "run") == life(runs[1])
    assert (tmp_path / "bank0.txt").read_text() == (tmp_path / "bank1.txt").read_text()


def test_a_bug_of_a_creator_ends_both_processes_with_its_message(tmp_path: Path) -> None:
    said = ran(*TWO, SCRIPT, str(tmp_path), "broken", fails=True)
    assert said.count("KeyError: 'a bug in a creator'") == 2


def test_a_recipe_with_skills_trains_on_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_writer(tmp_path, monkeypatch)(**{"training.steps": 4})
    ran(*TWO, "-m", "threefold", "train", str(recipe))
    bank = tmp_path / "run" / "bank"
    assert len(versions(bank)) > 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    assert [line["step"] for line in steps if "skills/reservoir" in line] == [1, 2, 3, 4]
    assert any(0 < line.get("skills/share_new", 0) < 1 for line in steps)
    played = [r for r in read_jsonl(tmp_path / "run" / "rollouts.jsonl") if isinstance(r, Credited)]
    assert len(played) == 4 * 8
    assert {r.trajectory.skill_version for r in played} >= {"v0", "v1"}
