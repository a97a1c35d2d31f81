"""`threefold bench`: everything runs with a tiny model, work is equal in all arms, and slower is noticed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from threefold import ISPO
from threefold.bench import credit, dialogue, page, parts, scaling, step, update
from threefold.bench.record import QUICK, Cell, Options, in_both, read, regressions, write
from threefold.cli import main

TINY = Options(**{**QUICK, "prompt": 24, "completion": 32, "warm_up": 0})


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_the_gradients_of_both_arms_are_equal() -> None:
    cells = update.measure(TINY)
    assert [cell.name for cell in cells] == ["0% of the groups dead", "50% of the groups dead"]
    for cell in cells:
        assert 0 < cell.figures["gradients_apart"] < 1e-5
        assert [len(seconds) for seconds in cell.seconds.values()] == [1, 1]


def test_with_gradient_checkpointing_and_other_micro_batches_too() -> None:
    cell = update.compare("", Options(**{**vars(TINY), "gradient_checkpointing": True, "micro_batch": 2}))
    assert 0 < cell.figures["gradients_apart"] < 1e-5


def tokens_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Prompt tokens and completion lengths of every generation batch from here on, of either trainer."""
    from trl import GRPOTrainer

    seen: list[tuple[int, list[int]]] = []
    original = GRPOTrainer._generate_and_score_completions

    def noting(self: Any, inputs: Any) -> Any:
        output = original(self, inputs)
        lengths = output["completion_mask"].sum(dim=1).tolist()
        seen.append((int(output["prompt_mask"].sum()), sorted(lengths)))
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", noting)
    return seen


def test_the_arms_of_a_step_do_equal_work_and_its_parts_make_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = tokens_of(monkeypatch)
    cells = step.measure(TINY)
    assert [cell.name for cell in cells] == list(step.METHODS)
    for cell, plain, ours in zip(cells, seen[::2], seen[1::2], strict=True):
        assert plain == ours
        for arm, spent in cell.parts.items():
            assert min(value for values in spent.values() for value in values) >= 0
            assert sum(values[0] for values in spent.values()) == pytest.approx(cell.seconds[arm][0])
    assert seen[0] == (24 * 8, [32] * 8)
    assert set(cells[0].parts["Threefold ISPO"]) == {*page.PARTS}


def test_prompts_have_the_length_that_is_asked_for() -> None:
    _, tokenizer = parts.load("tiny")
    assert [len(tokenizer(parts.text_of(tokenizer, n, n))["input_ids"]) for n in (1, 7, 100)] == [1, 7, 100]


def test_the_end_token_is_never_drawn_and_scored_alike() -> None:
    model, tokenizer = parts.load("tiny")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.softmax(-1)[..., tokenizer.eos_token_id].max() == 0


def test_dialogues_with_and_without_a_cache_say_the_same() -> None:
    cells = dialogue.measure(Options(**{**vars(TINY), "turns": 2}))
    assert [cell.name for cell in cells] == ["1 turns", "2 turns", "10 turns"]


def test_scaling_moves_one_axis_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Options] = []
    monkeypatch.setattr(update, "compare", lambda name, one: asked.append(one) or Cell(name, {}))
    names = [cell.name for cell in scaling.measure(Options(model="tiny"))]
    assert names[:3] == ["G = 2", "G = 4", "G = 8"]
    assert [name for name in names if name.startswith("model")] == [
        "model = tiny",
        "model = small",
        "model = medium",
    ]
    usual = vars(Options(model="tiny"))
    for one in asked:
        assert len({name for name, value in vars(one).items() if value != usual[name]} - {"groups"}) <= 1


def test_credit_is_measured_on_batches_of_two_sizes() -> None:
    growing = [cell for cell in credit.measure(TINY) if cell.figures]
    assert [cell.name for cell in growing] == ["GRPO (and ReSkill)", "ISPO", "T²-GRPO"]
    for cell in growing:
        assert len(cell.seconds) == 2
        assert cell.figures == {"times_as_many_tokens": 16.0}


def test_credit_that_is_slower_on_every_batch_is_a_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    before = credit.measure(TINY)
    quick = ISPO.assign

    def four_times(self: Any, batch: Any) -> Any:
        for _ in range(3):
            quick(self, batch)
        return quick(self, batch)

    monkeypatch.setattr(ISPO, "assign", four_times)
    assert any(
        text.startswith("ISPO beside a sort, credit") for text in regressions(before, credit.measure(TINY))
    )


# Figures, baseline and page


def cell(ratio: float, name: str = "half") -> Cell:
    return Cell(name, {"TRL": [2.0, 4.0, 1.0], "Threefold": [2.0 * ratio, 4.0 * ratio, 1.5]})


def test_a_ratio_that_grew_by_more_than_a_tenth_is_a_regression() -> None:
    assert regressions([cell(0.5)], [cell(0.54)]) == []
    (text,) = regressions([cell(0.5)], [cell(0.6)])
    assert text == "half, Threefold: 0.600 of TRL's seconds, the baseline has 0.500 (+20%)"
    assert regressions([cell(0.5)], [cell(0.9, "another")]) == []


def test_a_cost_that_grows_no_faster_than_the_tokens_is_no_regression() -> None:
    past, linear, more = (replace(cell(ratio), figures={"times_as_many_tokens": 4.0}) for ratio in (2, 4, 5))
    assert regressions([past], [linear]) == []
    assert len(regressions([past], [more])) == 1


def test_a_baseline_that_was_not_measured_again_is_told() -> None:
    compared, missing = in_both([cell(0.5), cell(0.5, "gone")], [cell(0.5), cell(0.5, "new")])
    assert [(old.name, new.name, arm) for old, new, arm in compared] == [("half", "half", "Threefold")]
    assert missing == ["gone, Threefold"]
    other_yardstick = Cell("half", {"another": [1.0], "Threefold": [1.0]})
    assert in_both([cell(0.5)], [other_yardstick]) == ([], ["half, Threefold"])


def test_the_file_holds_cells_machine_load_and_seed(tmp_path: Path) -> None:
    path = write(tmp_path, "update", [cell(0.5)], TINY, command="threefold bench", before="0.10 0.20 0.30")
    data = read(path)
    assert data["cells"] == [cell(0.5)]
    assert data["options"]["seed"] == 0
    assert {"processor", "cores", "threads", "load"} <= set(data["machine"])
    assert data["machine"]["load"]["before"] == "0.10 0.20 0.30"
    assert data["versions"]["torch"]


def test_the_page_shows_medians_and_ranges(tmp_path: Path) -> None:
    write(tmp_path, "update", [cell(0.5)], TINY, command="threefold bench update", before="0.10 0.20 0.30")
    text = page.performance(tmp_path)
    assert "`threefold bench update`" in text
    assert "|  | Threefold | 1.5 | 0.50 [0.50, 1.50] | 2.00 |" in text
    with pytest.raises(FileNotFoundError, match="holds no figures"):
        page.performance(tmp_path / "empty")


def test_the_command_measures_writes_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "credit", "--quick", "--output", str(tmp_path / "new")]
    assert main(words) == 0
    written = tmp_path / "new" / "credit.json"
    assert "| ISPO | 64 x 256 tokens |" in capsys.readouterr().out
    data = json.loads(written.read_text(encoding="utf-8"))
    for one in data["cells"]:  # a past in which the second arm took next to no time
        *_, second = one["seconds"]
        one["seconds"][second] = [1e-9 for _ in one["seconds"][second]]
    past = tmp_path / "past"
    past.mkdir()
    (past / "credit.json").write_text(json.dumps(data), encoding="utf-8")
    assert main([*words, "--baseline", str(past)]) == 1
    said = capsys.readouterr()
    assert "credit: 5 ratios held against the baseline, 2 grew by over 10 %" in said.out
    assert "slower than the baseline: credit: ISPO beside a sort, credit: " in said.err
    data["cells"][0]["name"] = "Gone"
    for one in data["cells"]:
        *_, second = one["seconds"]
        one["seconds"][second] = [1e9 for _ in one["seconds"][second]]
    (past / "credit.json").write_text(json.dumps(data), encoding="utf-8")
    assert main([*words, "--baseline", str(past)]) == 1
    said = capsys.readouterr()
    assert "credit: 4 ratios held against the baseline, 0 grew by over 10 %" in said.out
    assert "not compared: credit: Gone, 256 x 1024 tokens is in the baseline" in said.err


def test_standard_output_holds_the_tables_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "update", "--quick", "--warm-up", "0", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("## The update alone")
    assert "train_runtime" not in said
    assert "grad_norm" not in said


def test_what_would_be_lost_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "update", [cell(0.5)], Options(), command="", before="")
    where = ["--baseline", str(tmp_path), "--output", str(tmp_path)]
    assert main(["bench", "update", *where]) == 2
    assert "update.json would be overwritten" in capsys.readouterr().err
    taken = tmp_path / "file"
    taken.write_text("", encoding="utf-8")
    assert main(["bench", "update", "--output", str(taken)]) == 2
    assert "File exists" in capsys.readouterr().err


def test_the_command_lists_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    assert "update    The policy's update alone" in capsys.readouterr().out
    assert main(["bench", "upate"]) == 2
    assert (
        "there is no bench 'upate'; did you mean update? (choose from update, step" in capsys.readouterr().err
    )
    assert main(["bench", "credit", "--group", "1"]) == 2
    assert "group must be at least 2, got 1" in capsys.readouterr().err
    assert main(["bench", "update", "--quick", "--micro-batch", "3"]) == 2
    assert "micro_batch 3 does not divide a step's 8 episodes" in capsys.readouterr().err
    for name, value in (("micro-batch", 0), ("threads", 0), ("warm-up", -1), ("seed", -1)):
        assert main(["bench", "credit", f"--{name}", str(value)]) == 2
        assert f"{name.replace('-', '_')} must be at least {value + 1}, got" in capsys.readouterr().err
    assert main(["bench", "credit", "--quick", "--baseline", str(tmp_path)]) == 2
    assert "run `threefold bench credit --output" in capsys.readouterr().err


def test_a_baseline_of_other_work_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    past = write(tmp_path, "update", [cell(0.5)], Options(prompt=64), command="bench it", before="")
    assert main(["bench", "update", "--baseline", str(tmp_path)]) == 2
    assert "was measured with prompt=64, not 512" in capsys.readouterr().err
    assert main(["bench", "credit", "--baseline", str(past)]) == 2
    assert f"the baseline {past} is of update, not of credit" in capsys.readouterr().err
    past.write_text("a page", encoding="utf-8")
    assert main(["bench", "update", "--baseline", str(past)]) == 2
    assert "is no file that `threefold bench` wrote" in capsys.readouterr().err
    assert Options(rounds=9, threads=1).differences(asdict(Options())) == []


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no file that `threefold bench` wrote"):
        read(tmp_path / "x.json")
