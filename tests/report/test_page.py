"""The page is complete, needs nothing from outside, and no text of a run can act in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.cli import main
from threefold.report import write_report
from threefold.report.episodes import embed, script_json
from threefold.report.sampling import sample_episodes
from threefold.trajectory import Credited, Segment, Turn, write_jsonl

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>--><svg onload=alert(1)>",
    '"\'><a href="javascript:alert(1)">x</a>',
    "&lt;b&gt; &amp; \u2028\u2029\u202e\x00\x1b[0m",
    "a" * 100_000,
]


class Page(HTMLParser):
    """Elements with their attributes, and the text of script elements by id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.text: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[self.elements[-1][1].get("id")] = data
        elif self._inside != "style":
            self.text.append(data)

    @property
    def episodes(self) -> list[dict[str, Any]]:
        episodes: list[dict[str, Any]] = json.loads(self.scripts["episodes"])
        return episodes

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def read_page(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_report_of_a_finished_run_shows_every_section(finished_run: Path) -> None:
    page = read_page(finished_run)
    headings = re.findall(r"<h2>(.*?)</h2>", (finished_run / "report.html").read_text(encoding="utf-8"))
    assert headings == [
        *("Is it learning?", "Is the signal real?", "Is it safe?"),
        "Result",
        *("Reward and success", "Dead groups", "Certainty", "ISPO signals", "Time", "All metrics"),
        "Groups",
        "Episodes",
        "What happened",
        "Setup",
    ]
    for fact in (
        "finished, 60 steps",
        "example/small-model-135M",
        "ispo",
        "2025-10-09 08:53 UTC",
        "30 min 58 s",
    ):
        assert fact in page.words
    assert "+12.0 [+8.3, +15.7]" in page.words
    assert "of 960 recorded episodes are here" in page.words
    assert (finished_run / "report.html").stat().st_size < 3_000_000


def test_page_asks_for_nothing_from_outside(finished_run: Path) -> None:
    page = read_page(finished_run)
    for tag, attributes in page.elements:
        assert tag not in {"iframe", "object", "embed", "img", "base", "form"}
        assert "src" not in attributes
        href = attributes.get("href")
        assert href in (None, "data:,") or href.startswith("#part-")
        assert not any(name.startswith("on") for name in attributes)
    html = (finished_run / "report.html").read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_warnings_of_the_run_stand_above_everything(finished_run: Path) -> None:
    with open(finished_run / "metrics.jsonl", "a", encoding="utf-8") as file:
        for step in (61, 62):  # a resume may say it again
            line = {"step": step, "split": "train", "warnings": ["entropy fell </li><script>"]}
            file.write(json.dumps(line) + "\n")
    page = read_page(finished_run)
    assert "What the run warned of Step 61: entropy fell </li><script> Result" in page.words
    assert "Step 62" not in page.words


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_in_every_place_stays_text(
    make_run: Callable[..., Path], episode: Callable[..., Credited], tmp_path: Path, text: str
) -> None:
    run_dir = make_run(tmp_path / "run", steps=3)
    plain = [(tag, sorted(attributes)) for tag, attributes in read_page(run_dir).elements]
    with open(run_dir / "config.yaml", "a", encoding="utf-8") as file:
        file.write(f"note: {json.dumps(text)}\n")
    (run_dir / "environment.json").write_text(json.dumps({"seed": text, text: text}), encoding="utf-8")
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 3, "words": text}) + "\n")
    record = episode(3, 9, 0, completion=[text, " ", text, "."], question=text)
    trajectory = replace(
        record.trajectory,
        task_id=text,
        environment=text,
        ended=text,
        rewards={text: 1.0},
        turns=(Turn(text, text),),
    )
    write_jsonl(
        run_dir / "rollouts.jsonl", [replace(record, trajectory=trajectory, signals={text: 1.0}, split=text)]
    )
    page = read_page(run_dir)
    assert [(tag, sorted(attributes)) for tag, attributes in page.elements] == plain
    found = next(e for e in page.episodes if e["group"] == 9)
    assert found["split"] == text
    assert found["question"].startswith(text[:1000])
    assert found["segments"][0][1]["texts"][0].startswith(text[:20_000])


def test_hostile_metric_and_score_names_stay_text(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", steps=2)
    before = sum(tag == "script" for tag, _ in read_page(run_dir).elements)
    name = HOSTILE[1]
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 2, "split": name, name: 1.0}) + "\n")
        file.write(
            json.dumps({"step": 2, f"rewards/{name}/mean": 1.0, f"signal/dead_composite@{name}": 1.0}) + "\n"
        )
    score = {
        "when": name,
        "mode": name,
        "problems": name,
        "scores": {name: {"mean": 1}},
        "by_difficulty": {name: {name: 1}},
    }
    (run_dir / "evaluation.json").write_text(json.dumps({"evaluations": [score]}), encoding="utf-8")
    page = read_page(run_dir)
    assert sum(tag == "script" for tag, _ in page.elements) == before
    assert page.words.count(name) >= 6


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_script_json_reads_back_and_cannot_end_its_element(value: Any) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not any(character in text for character in "<\u2028\u2029")


@pytest.mark.parametrize(
    "missing", ["config.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "rollouts.jsonl"]
)
def test_missing_file_is_named_and_the_rest_is_shown(finished_run: Path, missing: str) -> None:
    (finished_run / missing).unlink()
    page = read_page(finished_run)
    assert f"{missing} is missing" in page.words
    assert any(tag == "script" for tag, _ in page.elements)


def test_empty_run_gives_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    page = read_page(tmp_path)
    assert "no step is recorded" in page.words
    assert page.episodes == []
    assert not any(tag == "svg" for tag, _ in page.elements)


def test_run_that_stopped_early_says_where(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path / "run", steps=23))
    assert "stopped at step 23 of 60, or still running" in page.words


def test_metric_without_a_section_is_drawn_under_all_metrics(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "run", steps=2)
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 2, "somebody/elses_metric": 3.25}) + "\n")
    labels = [a["aria-label"] for tag, a in read_page(run_dir).elements if tag == "svg"]
    assert "somebody/elses_metric: somebody/elses_metric from 3.25 at step 2 to 3.25 at step 2" in labels


def test_output_can_stand_elsewhere_and_replaces_an_older_one(finished_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.write_text("old", encoding="utf-8")
    assert write_report(finished_run, output) == output
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (finished_run / "report.html").exists()


def test_output_that_is_a_folder_is_refused_and_leaves_nothing(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    assert main(["view", str(finished_run), "--output", str(folder)]) == 2
    assert "pages is a folder; name a file in it" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.part"))


def test_output_in_a_folder_that_is_not_there_makes_it(finished_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "for" / "friends" / "page.html"
    assert write_report(finished_run, output) == output
    assert output.is_file()


def test_embedded_episode_carries_credit_per_token(tmp_path: Path, episode: Callable[..., Credited]) -> None:
    record = episode(
        5,
        2,
        1,
        success=False,
        completion=["7", " +", " 8", "\n", " 14", "."],
        advantages=[0, -1, 2, 0.5, 0.5, 0],
    )
    write_jsonl(tmp_path / "rollouts.jsonl", [record])
    (found,) = json.loads(embed(sample_episodes(tmp_path)).json)
    prompt, written = found["segments"][0]
    assert prompt == {"turn": -1, "text": "".join(record.token_texts[0][:4])}
    assert written["texts"] == ["7", " +", " 8", "\n", " 14", "."]
    assert written["advantage"] == [0, -1, 2, 0.5, 0.5, 0]
    assert written["signals"]["entropy"] == [
        pytest.approx(h, rel=1e-3) for h in record.token_signals["entropy"][0][4:]
    ]
    assert written["critical"] == [
        k for k, flag in enumerate(record.token_signals["critical"][0][4:]) if flag
    ]
    assert found["given"] == "14"
    assert found["success"] is False
    assert found["advantage"] == pytest.approx(2 / 6, rel=1e-3)
    assert found["reward"] == pytest.approx(record.signals["reward"], rel=1e-3)


def test_advantage_that_is_constant_over_a_turn_is_one_number_and_turns_are_apart(
    tmp_path: Path, episode: Callable[..., Credited]
) -> None:
    record = episode(
        completion=["go", " north", "<wall>", "go", " east"], advantages=[1.0, 1.0, 0.0, -0.5, -0.5]
    )
    segment = record.trajectory.segments[0]
    turn_ids = (-1, -1, -1, -1, 0, 0, -1, 1, 1)
    trajectory = replace(
        record.trajectory,
        segments=(Segment(segment.token_ids, turn_ids, segment.logprobs),),
        turns=(Turn("go north", action="north", rewards={"goal": 0.0}), Turn("go east", action="east")),
    )
    write_jsonl(tmp_path / "rollouts.jsonl", [replace(record, trajectory=trajectory)])
    (found,) = json.loads(embed(sample_episodes(tmp_path)).json)
    runs = found["segments"][0]
    assert [run["turn"] for run in runs] == [-1, 0, -1, 1]
    assert [run.get("advantage") for run in runs] == [None, 1, None, -0.5]
    assert runs[2]["text"] == "<wall>"
    assert found["given"] == "east"
    assert [(turn["action"], turn["rewards"]) for turn in found["turns"]] == [
        ("north", {"goal": 0}),
        ("east", {}),
    ]


def test_embedding_stays_within_its_bytes_and_keeps_the_newest(finished_run: Path) -> None:
    sample = sample_episodes(finished_run)
    for limit in (30_000, 200_000):
        embedded = embed(sample, byte_limit=limit)
        episodes = json.loads(embedded.json)
        assert len(embedded.json.encode("utf-8")) <= limit + 2
        assert embedded.shown == len(episodes) > 0
        assert episodes[0]["step"] == 60
    assert min(e["step"] for e in episodes) < 20


def test_long_episode_is_cut_and_says_so(tmp_path: Path, episode: Callable[..., Credited]) -> None:
    write_jsonl(tmp_path / "rollouts.jsonl", [episode(completion=["word "] * 5_000)])
    (found,) = json.loads(embed(sample_episodes(tmp_path)).json)
    assert found["tokens"] == 5_000
    assert found["cut"] == 1_000
    assert len(found["segments"][0][1]["texts"]) == 4_000


def test_record_whose_columns_do_not_match_is_left_out_with_a_reason(
    tmp_path: Path, episode: Callable[..., Credited]
) -> None:
    bad = replace(episode(4, 1, 0), advantages=((0.0,),))
    write_jsonl(tmp_path / "rollouts.jsonl", [bad, episode(4, 2, 0)])
    embedded = embed(sample_episodes(tmp_path))
    assert embedded.shown == 1
    assert "step 4, group 1" in embedded.notes[0]
    assert "1 advantages" in embedded.notes[0]


def test_report_needs_no_training_library() -> None:
    names = ["torch", "trl", "transformers"]
    code = f"import sys, threefold.report; print([m for m in {names} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
