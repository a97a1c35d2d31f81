"""The run directory: never overwritten unasked, cut back on resume, bounded in size."""

import json
from collections.abc import Callable

import pytest

from threefold.training import run_directory
from threefold.training.run_directory import RunDirectory, replaced
from threefold.trajectory import Credited, Opening, Segment, Trajectory


def _episode(step: int) -> Credited:
    trajectory = Trajectory("t", step, 0, 0, "", Opening(""), (Segment((1,), (0,), (None,)),), ())
    return Credited(trajectory, step, ((0.0,),), 0.0, (("x",),))


def _checkpoint(run: RunDirectory, step: int, *, whole: bool = True) -> None:
    folder = run.path / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if whole:
        (folder / "trainer_state.json").write_text("{}", encoding="utf-8")


def test_a_directory_that_holds_a_run_is_refused(tmp_path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.append_metrics(1, {"loss": 0.0})
    with pytest.raises(FileExistsError, match="--resume"):
        RunDirectory(tmp_path / "run")
    RunDirectory(tmp_path / "run", append=True)


def test_resuming_needs_a_whole_checkpoint_and_takes_the_latest(tmp_path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        RunDirectory(tmp_path, resume=True)
    for step in (2, 10):
        _checkpoint(run, step)
    _checkpoint(run, 12, whole=False)
    latest = RunDirectory(tmp_path, resume=True).latest_checkpoint()
    assert latest is not None
    assert latest.name == "checkpoint-10"


def test_what_comes_after_the_checkpoint_is_dropped_with_a_cut_line(tmp_path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics(step, {"loss": float(step)})
        run.append_rollouts([_episode(step)])
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    run.drop_after(2)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_rollouts_are_rotated_and_the_oldest_dropped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run_directory, "ROLLOUT_BYTES", 1)
    monkeypatch.setattr(run_directory, "ROLLOUT_FILES", 3)
    run = RunDirectory(tmp_path)
    for step in range(1, 7):
        run.append_rollouts([_episode(step)])
    steps = {
        path.name: json.loads(path.read_text(encoding="utf-8"))["step"] for path in tmp_path.glob("rollouts*")
    }
    assert steps == {"rollouts.jsonl": 6, "rollouts.1.jsonl": 5, "rollouts.2.jsonl": 4}


def test_only_a_run_is_replaced(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match="not a run directory"), replaced(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").exists()
    with replaced(tmp_path / "absent") as delete:
        delete()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_replaced_run_comes_back_unless_the_other_one_could_begin(tmp_path, begun) -> None:
    run = RunDirectory(tmp_path / "run")
    run.append_metrics(1, {"reward": 0.5})
    left_by_a_kill = tmp_path / ".run.replaced"
    left_by_a_kill.mkdir()

    def fail(delete: Callable[[], None]) -> None:
        assert not run.path.exists()
        RunDirectory(run.path).append_metrics(1, {"reward": 1.0})
        if begun:
            delete()
        raise KeyError

    with pytest.raises(KeyError), replaced(run.path) as delete:
        fail(delete)
    assert ('"reward": 1.0' in (run.path / "metrics.jsonl").read_text()) == begun
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
