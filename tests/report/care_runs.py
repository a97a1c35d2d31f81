"""Run directories with care dialogues and with a skill bank, written by the writers that training uses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from threefold.evaluation.episodes import EpisodeEvaluation
from threefold.evaluation.intervals import Interval
from threefold.recipe import parse_recipe
from threefold.skills.bank import Add, Bank, Modify, apply, operation_to_dict
from threefold.skills.skill import Skill
from threefold.skills.store import VersionRecord, write_version
from threefold.skills.triggers import Trigger
from threefold.training.run_directory import RunDirectory
from threefold.trajectory import Credited, Opening, Segment, Trajectory, Turn, Violation

SCOPE = "Research and training simulation, not for clinical use."
SUBTYPES = ("DLB", "FTD-bv", "VaD")


def care_episode(
    step: int, group: int, member: int, *, levels: list[float], rule: str | None = None, subtype: str = "DLB"
) -> Credited:
    """A dialogue whose distress is `levels` at the opening and after each turn; a rule is broken in its
    last."""
    turns = len(levels) - 1
    pieces = [(-1, "<|user|>Where is my coat?")]
    for turn in range(turns):
        pieces += [(turn, "Let us look"), (turn, " together."), (-1, "<|user|>It is cold.")]
    ids = tuple(turn for turn, _ in pieces)
    trajectory = Trajectory(
        task_id=f"coat-{group}",
        group_id=group,
        member=member,
        seed=0,
        environment="CaregiverDialogues",
        opening=Opening("Where is my coat?", {"D": levels[0], "R": 1.0}),
        segments=(Segment(tuple(range(len(ids))), ids, (None,) * len(ids)),),
        turns=tuple(
            Turn(
                "Let us look together.",
                "Let us look together.",
                "It is cold.",
                {"distress": levels[i] - levels[i + 1], "resistance": 0.0},
                {"D": levels[i + 1], "R": 1.0},
            )
            for i in range(turns)
        ),
        rewards={"goal": 2.0},
        success=rule is None and levels[-1] < 1,
        violation=None if rule is None else Violation(rule, turns - 1),
        ended="truncated" if rule is None else "violation",
        task={"subtype": subtype, "care_task": "dressing"},
    )
    advantages = tuple(0.0 if turn < 0 else 0.5 - 0.25 * member for turn in ids)
    return Credited(trajectory, step, (advantages,), None, (tuple(text for _, text in pieces),))


def care_evaluation(rise: float) -> EpisodeEvaluation:
    """What was measured on twelve scenarios; `rise` is how far distress fell."""

    def interval(mean: float) -> Interval:
        return Interval(mean, mean - 0.2, mean + 0.2)

    scores = {
        "success": interval(0.3 + rise / 4),
        "violation": interval(0.25),
        "distress, summed over turns": interval(rise),
        "D, last turn": interval(1.5 - rise),
    }
    return EpisodeEvaluation(
        mode="sampled",
        temperature=1.0,
        task_ids=tuple(f"s{i}" for i in range(12)),
        samples=1,
        values={"success": [[0.0]] * 12},
        scores=scores,
        pass_at={},
        states={},
        ended={"terminated": 4, "truncated": 8},
        mean_turns=3.0,
        mean_length=40.0,
        seconds=1.0,
        by_group=dict.fromkeys(SUBTYPES, scores),
        group_sizes=dict.fromkeys(SUBTYPES, 4),
        courses={"D": [interval(1.5), interval(1.2), interval(1.5 - rise)]},
    )


def write_care_run(path: Path, *, steps: int = 12, groups: int = 6, members: int = 4) -> Path:
    """A finished run in which distress falls further over training, and one rule is broken now and then."""
    rng = random.Random(0)
    run = RunDirectory(path)
    recipe = parse_recipe(
        {"environment": {"name": "caregiver"}, "credit": {"method": "t2grpo"}, "training": {"steps": steps}}
    )
    run.write_config(recipe.to_yaml())
    run.write_environment(0, scope=SCOPE)
    for step in range(1, steps + 1):
        run.append_metrics(step, {"reward": step / steps, "signal/dead_outcome": 0.5, "entropy": 1.0})
        episodes = []
        for group in range(groups):
            for member in range(members):
                fall = step / steps + rng.gauss(0, 0.1)
                rule = rng.choice(["coercion", "unsafe permission"]) if rng.random() < 0.2 else None
                levels = [2.0, 2.0 - fall / 2, 2.0 - fall]
                subtype = SUBTYPES[group % len(SUBTYPES)]
                episodes.append(care_episode(step, group, member, levels=levels, rule=rule, subtype=subtype))
        run.append_rollouts(episodes)
    before, after = care_evaluation(0.1), care_evaluation(0.8)
    change = {"mean": 0.7, "low": 0.4, "high": 1.0}
    run.write_evaluation(
        {
            "evaluations": [before.to_json(when="before", step=0), after.to_json(when="after", step=steps)],
            "gains": [{"score": "distress, summed over turns", "mode": "sampled", **change}],
        }
    )
    return path


def write_swap(run_dir: Path, words: str = "environment.options.perturb=0.5") -> None:
    """What `threefold eval --swap --output RUN/swap.json` leaves."""
    change: dict[str, Any] = {
        "score": "D, last turn",
        "mode": "sampled",
        "mean": 0.3,
        "low": 0.1,
        "high": 0.5,
    }
    swap = {
        "overrides": [words],
        "evaluations": [care_evaluation(0.5).to_json()],
        "changes": [change],
    }
    text = json.dumps({"evaluations": [care_evaluation(0.8).to_json()], "swaps": [swap]})
    (run_dir / "swap.json").write_text(text, encoding="utf-8")


def test_step(step: int, new: tuple[int, int], old: tuple[int, int], probability: float) -> dict[str, Any]:
    """One step of a test, as `Evolution` records it."""
    posteriors = {
        f"posterior_{arm}": [1.0 + won, 1.0 + of - won] for arm, (won, of) in (("new", new), ("old", old))
    }
    return {"step": step, "new": list(new), "old": list(old), **posteriors, "probability_new": probability}


test_step.__test__ = False  # type: ignore[attr-defined]


def write_bank(run_dir: Path, said: str = "Open it before you search elsewhere.") -> None:
    """Three versions: v1 was accepted over v0, and v2, which edits its skill and adds one, was rejected."""
    root = run_dir / "bank"
    empty = Bank("v0")
    write_version(root, empty, VersionRecord("v0"))
    first = Add(Skill("open-it", "You stand before something closed.", said), "success 3/4 with it")
    one = apply(empty, [first], "v1", 8)
    write_version(
        root,
        one,
        VersionRecord(
            "v1",
            "v0",
            5,
            "accept",
            8,
            (operation_to_dict(first),),
            {"diagnosis": "closed things stop the agent", "episodes": 40},
            (test_step(6, (3, 8), (1, 8), 0.8), test_step(7, (5, 8), (2, 8), 0.97)),
        ),
    )
    changed = Skill("open-it", "You stand before something closed.", said + "\nThen look inside.", revision=2)
    bundle = [
        Modify(changed, "half of the failures did not look"),
        Add(Skill("never", "Nothing fits.", "Wait.", Trigger("action_pattern", "dance")), "a try"),
    ]
    two = apply(one, bundle, "v2", 8)
    operations = tuple(map(operation_to_dict, bundle))
    test = (test_step(10, (2, 8), (4, 8), 0.1),)
    write_version(root, two, VersionRecord("v2", "v1", 9, "reject", 11, operations, {}, test))
