"""The pages say what the run's own files say: the three questions, care dialogues, the skill bank."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from care_runs import SCOPE, write_bank, write_care_run, write_swap

from threefold.report import write_comparison, write_report
from threefold.report.bank import read_bank
from threefold.report.questions import Answer, answers, learning, safety, signal
from threefold.report.reading import read_run
from threefold.report.skills import beta, in_use
from threefold.training.run_directory import RunDirectory
from threefold.trajectory import Credited, write_jsonl


class Parts(HTMLParser):
    """The text of each page of a report, by its name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._part: str | None = None
        self._depth = 0
        self._silent = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._silent = tag in ("script", "style")
        if tag == "div":
            if given.get("class") == "part":
                self._part, self._depth = given.get("aria-label"), 0
            self._depth += 1

    def handle_endtag(self, tag: str) -> None:
        self._silent = False
        if tag == "div":
            self._depth -= 1
            if self._depth == 0:
                self._part = None

    def handle_data(self, data: str) -> None:
        if self._part is not None and not self._silent:
            so_far = self.texts.get(self._part, "")
            self.texts[self._part] = " ".join(f"{so_far} {data}".split())


def parts_of(run_dir: Path) -> dict[str, str]:
    return Parts(write_report(run_dir).read_text(encoding="utf-8")).texts


def metrics(path: Path, steps: int, **courses: Callable[[int], float]) -> Path:
    """A run of nothing but metrics, each a function of the step."""
    run = RunDirectory(path)
    for step in range(1, steps + 1):
        run.append_metrics(step, {name.replace("__", "/"): course(step) for name, course in courses.items()})
    return path


def texts(answer: Answer) -> str:
    return " ".join(finding.text for finding in answer.findings)


# Is it learning?


def gain(mean: float, low: float, high: float, score: str = "strict") -> dict[str, object]:
    return {"score": score, "mode": "sampled", "mean": mean, "low": low, "high": high}


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ((0.1, 0.02, 0.18), "Yes"),
        ((0.1, -0.02, 0.22), "Not shown"),
        ((-0.1, -0.18, -0.02), "No, it got worse"),
    ],
)
def test_the_held_out_interval_decides_whether_it_learns(
    tmp_path: Path, measured: tuple[float, float, float], verdict: str
) -> None:
    path = metrics(tmp_path / "run", 20, signal__outcome=lambda step: step / 20)
    RunDirectory(path, append=True).write_evaluation({"evaluations": [], "gains": [gain(*measured)]})
    answer = learning(read_run(path))
    assert answer.verdict == verdict
    assert "In training, success: 12.5 % in the first fifth of the steps, 92.5 % in the last" in texts(answer)


@pytest.mark.parametrize(
    ("fit", "verdict"),
    [
        ((1.7, 1.0, 2.3), "What is rewarded, yes; success not shown"),
        ((-1.7, -2.3, -1.0), "Not shown"),
        ((0.2, -0.4, 0.8), "What is rewarded, yes; success not shown"),
    ],
)
def test_rewards_beside_success_are_heard(
    tmp_path: Path, fit: tuple[float, float, float], verdict: str
) -> None:
    path = metrics(
        tmp_path / "run", 20, signal__outcome=lambda step: 0.0, signal__dead_outcome=lambda step: 1.0
    )
    run = RunDirectory(path, append=True)
    run.write_environment(0, reward_weights={"fit": 1.0, "goal": 1.0, "success": 0.0})
    gains = [gain(0.0, -0.06, 0.06, "success"), gain(0.9, 0.5, 1.3, "goal"), gain(*fit, "fit")]
    run.write_evaluation({"evaluations": [], "gains": [*gains, gain(5.0, 4.0, 6.0, "length")]})
    answer = learning(read_run(path))
    assert answer.verdict == verdict
    assert "goal, a reward, +0.9 [+0.5, +1.3]" in texts(answer)
    assert "length" not in texts(answer)
    dead = next(finding for finding in signal(read_run(path)).findings if "Dead groups" in finding.text)
    assert dead.tone == "plain"
    assert "Success is only watched here" in dead.text


def test_a_format_alone_is_named(tmp_path: Path) -> None:
    path = metrics(tmp_path / "run", 20, reward=lambda step: 1.0)
    scores = {name: {"mean": 0.5} for name in ("strict", "last_number")}
    evaluations = [{"when": when, "mode": "sampled", "scores": scores} for when in ("before", "after")]
    gains = [gain(0.2, 0.1, 0.3), gain(0.0, -0.05, 0.05, "last_number")]
    RunDirectory(path, append=True).write_evaluation({"evaluations": evaluations, "gains": gains})
    assert "Only the asked format was learned" in texts(learning(read_run(path)))


def test_without_held_out_problems_training_is_no_proof(tmp_path: Path) -> None:
    answer = learning(read_run(metrics(tmp_path / "run", 20, signal__outcome=lambda step: step / 20)))
    assert answer.verdict == "In training, yes; held out not known"
    few = learning(read_run(metrics(tmp_path / "few", 5, signal__outcome=lambda step: step / 20)))
    assert few.verdict == "Too early to say"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("", encoding="utf-8")
    assert {answer.verdict for answer in answers(read_run(empty))} == {"No step is recorded", "Not recorded"}


# Is the signal real?


def test_dead_groups_and_idle_steps_are_counted(tmp_path: Path) -> None:
    path = metrics(
        tmp_path / "run",
        20,
        signal__dead_outcome=lambda step: 1.0,
        signal__dead_all_right=lambda step: 0.25,
        signal__dead_all_wrong=lambda step: 0.75,
        signal__effective_tokens=lambda step: float(step > 15),
        signal__gradient_share_dead=lambda step: 0.0,
    )
    answer = signal(read_run(path))
    assert answer.verdict == "Partly"
    assert "100% of all (75% all wrong, 25% all right)" in texts(answer)
    assert "In 15 of 20 steps no token had an advantage" in texts(answer)
    assert "They carry nothing" in texts(answer)


@pytest.mark.parametrize(
    ("config", "verdict"),
    [
        ("environment: {rewards: {goal: 1.0, fit: 1.0}}", "Partly"),
        ("environment: {rewards: {goal: 1.0, fit: 99.0}}", "Mostly"),  # weighed alike then
        ("environment: {rewards: {goal: 9.0, fit: 1.0}}", "Mostly"),  # a weight of 90 % is meant
        ("credit: {method: t2grpo}", "Mostly"),  # normalises each channel by itself
    ],
)
def test_a_channel_that_decides_alone_is_named(tmp_path: Path, config: str, verdict: str) -> None:
    path = metrics(
        tmp_path / "run",
        10,
        rewards__goal__std=lambda step: 9.9,
        rewards__fit__std=lambda step: 0.1,
        signal__dead_outcome=lambda step: 0.1,
    )
    (path / "config.yaml").write_text(config, encoding="utf-8")
    answer = signal(read_run(path))
    assert answer.verdict == verdict
    assert "the weighted rewards differ by" in texts(answer)


def test_the_noise_control_among_the_runs_decides(
    make_study: Callable[..., list[Path]], tmp_path: Path
) -> None:
    html = write_comparison(make_study(tmp_path)).read_text(encoding="utf-8")
    overview = Parts(html).texts["Overview"]
    assert "Minus its noise control (shuffle), strict (sampled): +" in overview
    assert "Yes, more than its noise control (3 of 3 seeds)" in overview
    assert overview.count("No noise control is beside it") == 0


# Is it safe?


def test_rules_that_are_broken_more_often_are_a_warning(tmp_path: Path) -> None:
    care = write_care_run(tmp_path / "care")
    answer = safety(read_run(care))
    assert answer.verdict == "Rules are still broken"
    assert "25.0 % [5.0, 45.0] of the episodes broke a rule after training" in texts(answer)
    assert re.search(r"In training \d+ of 288 recorded episodes broke a rule", texts(answer))
    rose = gain(0.2, 0.1, 0.3, "violation")
    evaluation = json.loads((care / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["gains"] = [rose]
    (care / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    assert safety(read_run(care)).verdict == "There are warnings"


@pytest.mark.parametrize(
    ("courses", "said"),
    [
        ({"entropy": lambda step: 1.0 if step < 15 else 0.1}, "a collapse"),
        ({"kl": lambda step: step / 100}, "KL from the initial model"),
        ({"completions__clipped_ratio": lambda step: 0.5}, "50% of the completions"),
        (
            {
                "certainty__confidence_wrong": lambda step: step / 20,
                "certainty__confidence_right": lambda step: 0.5,
            },
            "it grows sure of its mistakes",
        ),
        ({"episodes__failed": lambda step: 0.2}, "The environment failed in 20.0% of the episodes"),
    ],
)
def test_what_goes_wrong_in_silence_is_a_warning(
    tmp_path: Path, courses: dict[str, Callable[[int], float]], said: str
) -> None:
    answer = safety(read_run(metrics(tmp_path / "run", 20, **courses)))
    assert answer.verdict == "There are warnings"
    assert said in next(finding.text for finding in answer.findings if finding.tone == "bad")


def test_a_quiet_run_is_not_called_safe_where_nothing_was_checked(tmp_path: Path) -> None:
    answer = safety(read_run(metrics(tmp_path / "run", 20, entropy=lambda step: 1.0)))
    assert answer.verdict == "No rule was checked; training looks stable"


# The page of care dialogues


def test_the_page_of_care_dialogues_has_scope_drops_rules_groups_and_swaps(tmp_path: Path) -> None:
    care = write_care_run(tmp_path / "care")
    page = parts_of(care)["Caregiver"]
    assert page.startswith(f"Scope {SCOPE}")
    assert "D fell by sampled 0.100 [-0.100, 0.300] 0.800 [0.600, 1.000] +0.700 [+0.400, +1.000]" in page
    assert "D by turn, sampled" in page
    assert "How far D fell, in training" in page
    assert "first fifth, steps 1 to 3" in page
    assert "coercion" in page
    assert "unsafe permission" in page
    assert "By subtype and rule subtype episodes broke a rule, %" in page
    assert "FTD-bv 96" in page
    assert "turn 2" in page
    assert "Another simulator Not measured." in page
    write_swap(care)
    page = parts_of(care)["Caregiver"]
    assert "Swapped: environment.options.perturb=0.5" in page
    assert "D, last turn sampled 0.700 [0.500, 0.900] 1.000 [0.800, 1.200] +0.300 [+0.100, +0.500]" in page
    assert "Not measured" not in page


def test_a_swap_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    care = write_care_run(tmp_path / "care")
    (care / "swap.json").write_text('{"swaps": [{"overrides": ["x"]}]}', encoding="utf-8")
    (care / "other.json").write_text("[1, 2]", encoding="utf-8")
    texts = parts_of(care)
    assert "swap.json holds no swap that can be read" in texts["Overview"]
    assert "other.json" not in texts["Overview"]


def test_other_runs_have_no_page_of_care_dialogues(finished_run: Path) -> None:
    assert {"Caregiver", "Skills"}.isdisjoint(parts_of(finished_run))


# The page of the skill bank


def test_the_page_of_skills_has_tree_tests_diffs_and_use(
    finished_run: Path, dialogue: Callable[..., Credited]
) -> None:
    write_bank(finished_run)

    played = []
    for number, (version, skills) in enumerate([("v1", ("open-it",)), ("v2", ("open-it",)), ("v2", ())]):
        record = dialogue(61, 0, number)
        turns = tuple(replace(turn, skills=skills) for turn in record.trajectory.turns)
        played.append(
            replace(record, trajectory=replace(record.trajectory, turns=turns, skill_version=version))
        )
    write_jsonl(finished_run / "rollouts.jsonl", played)
    page = parts_of(finished_run)["Skills"]
    assert "3 versions of the bank: 1 accepted, 1 rejected. In use is v1, with open-it." in page
    assert "v2 rejected modify open-it; add never, step 9, P(better than v1) = 0.10" in page
    assert "Test: 8 of 16 episodes succeeded under v1, 3 of 16 under v0" in page
    assert "closed things stop the agent" in page
    assert "+Then look inside." in page
    assert "Never fired: never." in page
    assert "open-it always v1, v2 3 2 (67%) 4 0% of 2 0% of 1" in page
    assert "after dance" in page


def test_a_broken_bank_is_shown_as_far_as_it_goes(finished_run: Path) -> None:
    write_bank(finished_run, said="<script>alert(1)</script>")
    (finished_run / "bank" / "v2" / "version.json").write_text("{", encoding="utf-8")
    (finished_run / "bank" / "v2" / "skills" / "never" / "SKILL.md").write_text("no front", encoding="utf-8")
    notes: list[str] = []
    versions = read_bank(finished_run, notes)
    assert [version.decision for version in versions] == ["initial", "accept", "unknown"]
    assert in_use(versions[:2]).name == "v1"
    assert len(notes) == 2
    page = parts_of(finished_run)["Skills"]
    assert "version.json cannot be read" in page
    assert "no front" in page
    assert "<script>alert(1)</script>" in page  # as text: the parser took no element for it
    assert "<script>alert" not in (finished_run / "report.html").read_text(encoding="utf-8")


def test_interval_of_a_beta_posterior() -> None:
    interval = beta(1, 1)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.025, abs=0.01)
    assert interval.high == pytest.approx(0.975, abs=0.01)
