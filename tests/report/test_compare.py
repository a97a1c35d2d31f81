"""Runs side by side: what is paired with what, what is refused, and that the numbers are the hand's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from threefold.cli import main
from threefold.evaluation.episodes import EpisodeEvaluation
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.intervals import Interval, crossed_bootstrap, paired_bootstrap
from threefold.recipe import parse_recipe
from threefold.report import write_comparison
from threefold.report.compare import compare
from threefold.report.compare_page import comparison_html
from threefold.training.run_directory import RunDirectory

Make = Callable[..., Path]
ANY = Interval(0.5, 0.4, 0.6)


def evaluation(right: Mapping[str, Sequence[int]], temperature: float = 1.0) -> Evaluation:
    """An evaluation in which each problem has these outcomes."""
    return Evaluation(
        mode="sampled" if temperature else "greedy",
        temperature=temperature,
        problem_ids=tuple(right),
        samples=len(next(iter(right.values()))),
        outcomes={
            "strict": [[bool(v) for v in row] for row in right.values()],
            "format": [[True for _ in row] for row in right.values()],
        },
        scores={"strict": ANY, "format": ANY},
        pass_at={},
        by_difficulty={},
        mean_length=5.0,
        truncated=0.0,
        seconds=1.0,
        texts=[],
    )


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a run as training leaves it: the complete recipe, metrics, and after.json by problem."""

    def write(name: str, right: Any = None, seed: int = 0, temperature: float = 1.0, **keys: Any) -> Path:
        sections: dict[str, dict[str, Any]] = {"run": {"seed": seed, "dir": name}}
        for key, value in keys.items():
            section, _, field = key.partition("__")
            sections.setdefault(section, {})[field] = value
        run = RunDirectory(tmp_path / name)
        run.write_config(parse_recipe(sections).to_yaml())
        for step in range(1, 21):
            run.append_metrics(step, {"signal/dead_outcome": 0.25, "step_time": 2.0, "signal/outcome": 0.5})
        if right is not None:
            run.write_after([right if not isinstance(right, dict) else evaluation(right, temperature)])
        return tmp_path / name

    return write


def test_two_runs_are_paired_by_problem_whatever_the_order(make: Make) -> None:
    first = make("grpo", {"a": [0, 0], "b": [1, 0], "c": [1, 1]})
    second = make("dr", {"c": [1, 1], "a": [1, 0], "b": [1, 1]}, credit__method="dr_grpo")
    found = compare([first, second])
    (difference,) = found.differences
    assert (difference.first, difference.second, difference.problems) == ("grpo", "dr_grpo", 3)
    assert difference.interval == paired_bootstrap([0, 0.5, 1], [0.5, 1, 1], bounds=(-1, 1))
    assert difference.interval.mean == pytest.approx(1 / 3)
    assert difference.seeds == (0,)
    assert "not what training again would give" in found.multiplicity()


def test_seeds_are_crossed_and_matched_by_their_numbers(make: Make) -> None:
    rows = {
        ("grpo", 3): (0, 1, 0),
        ("grpo", 4): (1, 1, 0),
        ("dr_grpo", 4): (1, 1, 1),
        ("dr_grpo", 3): (1, 0, 0),
    }
    runs = [
        make(f"{m}-{s}", dict(zip("abc", [[v] for v in row], strict=True)), seed=s, credit__method=m)
        for (m, s), row in rows.items()
    ]
    (difference,) = compare(runs).differences
    by_hand = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])  # seed 3, seed 4: dr_grpo minus grpo
    assert difference.seeds == (3, 4)
    assert difference.by_seed == pytest.approx((0.0, 1 / 3))
    assert difference.interval == crossed_bootstrap(by_hand)
    assert difference.chance == "3 problems x 2 seeds"


def test_all_comparisons_together_have_wider_intervals(make: Make) -> None:
    rng = np.random.default_rng(0)
    rows = [{str(i): [int(rng.random() < p)] for i in range(60)} for p in (0.3, 0.6, 0.5)]
    methods = ("grpo", "dr_grpo", "ngrpo")
    runs = [make(m, row, credit__method=m) for m, row in zip(methods, rows, strict=True)]
    found = compare(runs)
    assert len(found.differences) == 2
    for difference in found.differences:
        values = [rows[methods.index(difference.second)][str(i)][0] - rows[0][str(i)][0] for i in range(60)]
        assert difference.family == paired_bootstrap([0] * 60, values, level=0.975, bounds=(-1, 1))
        assert difference.family.low <= difference.interval.low
        assert difference.family.high >= difference.interval.high
    assert found.multiplicity().startswith("2 differences: ")


def test_the_noise_control_is_set_beside_its_method(make: Make) -> None:
    row = {"a": [1], "b": [0], "c": [1]}
    runs = [
        make("grpo", row),
        make("noise", row, credit__method="ispo", credit__noise_control="shuffle", credit__noise_seed=7),
        make("paper", row, credit__method="ispo-paper"),
        make("ispo", row, credit__method="ispo"),
    ]
    found = compare(runs)
    assert [beside.arm for beside in found.beside] == [
        "grpo", "ispo-paper", "ispo", "ispo, noise control (shuffle)"
    ]  # fmt: skip
    controls = [(d.first, d.second) for d in found.differences if d.control]
    assert controls == [("ispo, noise control (shuffle)", "ispo")]
    assert len(found.differences) == 4
    alone = compare(runs[:2])
    assert any("the method that it controls for is not among the runs" in note for note in alone.notes)
    as_baseline = compare([runs[3], runs[1]])
    assert [(d.first, d.second, d.control) for d in as_baseline.differences] == [
        ("ispo, noise control (shuffle)", "ispo", True)
    ]


def test_each_noise_control_of_a_method_is_set_beside_it(make: Make) -> None:
    """T²-GRPO has two: of its turns, and of all rewards."""
    row = {"a": [1], "b": [0], "c": [1]}
    runs = [make("t2grpo", row, credit__method="t2grpo")] + [
        make(kind, row, credit__method="t2grpo", credit__noise_control=kind, credit__noise_seed=3)
        for kind in ("all", "turns")
    ]
    found = compare(runs)
    assert [(d.first, d.second, d.control) for d in found.differences] == [
        ("t2grpo, noise control (all)", "t2grpo", True),
        ("t2grpo, noise control (turns)", "t2grpo", True),
    ]
    overview = comparison_html(found).partition("Is there a difference?")[0]
    assert 0 < overview.find("noise control (turns), strict") < overview.find("noise control (all), strict")


def test_noise_of_an_added_method_is_a_control_too(make: Make) -> None:
    row = {"a": [1], "b": [0], "c": [1]}
    added = {"method": "ispo", "weight": 0.5, "noise_control": None, "noise_seed": 0}
    noise = {**added, "noise_control": "shuffle", "noise_seed": 3}
    runs = [
        make("together", row, credit__method="t2grpo", credit__together=[added]),
        make("noise", row, credit__method="t2grpo", credit__together=[noise]),
    ]
    assert [(d.first, d.second, d.control) for d in compare(runs).differences] == [
        ("t2grpo + ispo, noise control (shuffle)", "t2grpo + ispo", True)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train": "tiny-arithmetic"}, "held-out data is 'arithmetic' and 'tiny-arithmetic'"),
        ({"data__test_split": "validation"}, "data.test_split is 'test' and 'validation'"),
        ({"environment__name": "toy"}, "different problems"),
        ({"temperature": 0.5}, "temperatures 0.5, 1.0 measure different things"),
        ({"right": {"x": [1], "y": [0]}}, "no problems in common"),
        ({"right": {"a": [1], "y": [0]}}, "paired on the 1 problems that all have, of 2"),
        ({"right": None}, "has no after.json"),
        ({"seed": 5}, "no seed in common"),
    ],
)
def test_what_cannot_be_paired_is_named(make: Make, changes: dict[str, Any], message: str) -> None:
    row = {"a": [1], "b": [0]}
    runs = [make("one", row), make("two", **{"right": row, "credit__method": "dr_grpo", **changes})]
    found = compare(runs)
    assert any(message in note for note in found.notes), found.notes
    assert len(found.differences) == ("all have" in message or "seed" in message)
    assert [beside.runs for beside in found.beside] == [1, 1]


def test_no_seed_in_common_averages_instead_of_pairing_at_random(make: Make) -> None:
    runs = [
        make("one", {"a": [1], "b": [0]}, seed=1),
        make("two", {"a": [0], "b": [0]}, seed=2),
        make("three", {"a": [1], "b": [1]}, seed=3, credit__method="dr_grpo"),
    ]
    (difference,) = compare(runs).differences
    assert difference.interval.mean == pytest.approx(((1 - 0.5) + (1 - 0)) / 2)
    assert difference.seeds == ()
    assert difference.chance == "2 problems; seeds not paired"


def test_the_same_recipe_and_seed_counts_once(make: Make) -> None:
    runs = [
        make("one", {"a": [1]}),
        make("again", {"a": [1]}),
        make("dr", {"a": [0]}, credit__method="dr_grpo"),
    ]
    found = compare(runs)
    assert [beside.runs for beside in found.beside] == [1, 1]
    assert any("is left out, as it is no further draw" in note for note in found.notes)


def test_arms_of_one_method_are_told_apart_by_what_differs(make: Make) -> None:
    runs = [make("one", {"a": [1]}), make("two", {"a": [1]}, training__kl=0.1)]
    found = compare(runs)
    assert [beside.arm for beside in found.beside] == ["grpo (kl 0.0)", "grpo (kl 0.1)"]
    assert found.settings == (("training.kl", ("0.0", "0.1")),)


def test_a_recipe_from_before_a_setting_is_the_one_that_leaves_it_out(make: Make) -> None:
    runs = [
        make("old", {"a": [1]}),
        make("new", {"a": [1]}, seed=1),
        make("dr", {"a": [0]}, credit__method="dr_grpo"),
    ]
    text = (runs[0] / "config.yaml").read_text(encoding="utf-8")
    assert "  kl_on_dead_groups:" in text
    kept = [line for line in text.splitlines() if "kl_on_dead_groups" not in line]
    (runs[0] / "config.yaml").write_text("\n".join(kept), encoding="utf-8")
    found = compare(runs)
    assert [(beside.arm, beside.runs) for beside in found.beside] == [("grpo", 2), ("dr_grpo", 1)]


def test_how_often_a_run_was_measured_is_no_part_of_its_method(make: Make) -> None:
    runs = [make("one", {"a": [1]}), make("two", {"a": [1]}, seed=1, evaluation__every=5)]
    runs.append(make("dr", {"a": [0]}, credit__method="dr_grpo"))
    assert [beside.runs for beside in compare(runs).beside] == [2, 1]


def test_tasks_pair_in_their_places_and_unscored_ones_are_left_out(make: Make) -> None:
    def played(values: list[list[float | None]]) -> EpisodeEvaluation:
        return EpisodeEvaluation(
            mode="sampled", temperature=1.0, task_ids=("x", "y"), samples=2, values={"success": values},
            scores={"success": ANY}, pass_at={}, states={}, ended={}, mean_turns=1.0, mean_length=2.0,
            seconds=1.0,
        )  # fmt: skip

    toy = {"environment__name": "toy"}
    runs = [
        make("one", played([[0.0, None], [None, None]]), **toy),
        make("two", played([[1.0, 0.0], [1.0, 1.0]]), credit__method="dr_grpo", **toy),
    ]
    found = compare(runs)
    (difference,) = found.differences
    assert (difference.score, difference.problems, difference.interval.mean) == ("success", 1, 0.5)
    assert any("paired on the 1 tasks that all have, of 2" in note for note in found.notes)


def test_what_is_no_comparison_is_refused(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make("one", {"a": [1]}), make("two", {"a": [1]}, credit__method="dr_grpo")
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([one], "needs two runs"),
        ([one, one], "are one run"),
        ([one, tmp_path / "nowhere"], "there is no folder"),
        ([one, tmp_path / "empty"], "holds no run"),
        ([one, two, "--baseline", tmp_path / "empty"], "none of the runs"),
        ([one, two, "--score", "strikt"], "no run has the score 'strikt'; they have strict, format"),
    ]:
        assert main(["compare", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err


def test_command_prints_tables_or_json_and_writes_the_page(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make("one", {"a": [0, 0], "b": [0, 0]})
    two = make("two", {"a": [1, 1], "b": [1, 1]}, credit__method="dr_grpo")
    assert main(["compare", str(one), str(two), "--score", "all"]) == 0
    said = capsys.readouterr().out
    assert "+100.0" in said
    assert "B - A" in said
    assert "2 differences: 1 excludes zero at 95 %" not in said  # two problems prove nothing
    assert main(["compare", str(one), str(two), "--json", "--output", str(tmp_path / "c.html")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["differences"][0]["interval"]["mean"] == 1.0
    assert data["arms"][0]["figures"]["dead groups"] == 0.25
    assert (tmp_path / "c.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_page_escapes_what_a_recipe_says_and_stays_small(make: Make) -> None:
    hostile = "</script><script>alert(1)</script>"
    one, two = make("one", {"a": [0], "b": [1]}), make("two", {"a": [1], "b": [1]}, prompt__system=hostile)
    page = write_comparison([one, two]).read_text(encoding="utf-8")
    assert write_comparison([one, two]) == one.parent / "comparison.html"
    assert hostile not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert page.count("<script>") == 3  # the page's own
    assert len(page) < 200_000
    assert yaml.safe_load((two / "config.yaml").read_text())["prompt"]["system"] == hostile


def test_a_recipe_that_cannot_be_read_is_said_and_differs_in_nothing(make: Make) -> None:
    right = {"a": [1], "b": [0]}
    first, second = make("grpo", right), make("other", right)
    (first / "config.yaml").write_text(": [", encoding="utf-8")
    found = compare([first, second])
    assert not found.settings
    assert any("grpo: config.yaml is not valid YAML" in note for note in found.notes)
