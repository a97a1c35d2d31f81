"""A pool of environments in processes: as good as one process, and it outlives whatever dies in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from threefold.envs import Environment, EpisodeScore, Observation, Task
from threefold.envs.errands import Errands
from threefold.envs.pool import EnvironmentFailed, EnvironmentPool, WorkerDied
from threefold.rollout.driver import Limits, Start, run_episodes

EOS = 1


class Moody:
    """Three turns. It does as the agent says: "raise", "die" (natively), "hang", "spawn" a process, "odd" (an
    answer that cannot be sent), "meet" (wait until another episode has come here too)."""

    channels = ("turns",)

    def __init__(self, meeting: str = "") -> None:
        self.meeting = meeting

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self.turn, self.member = 0, member
        return Observation(messages=({"role": "user", "content": f"{task.id} {seed}"},))

    def step(self, action_text: str) -> Observation:
        self.turn += 1
        said: Any = action_text.strip()
        if said == "raise":
            raise KeyError("no such thing")
        if said == "die":
            os.abort()
        if said == "hang":
            time.sleep(600)
        if said == "spawn":
            said = str(subprocess.Popen(["sleep", "600"]).pid)
        if said == "odd":
            said = threading.Lock()
        if said == "meet":
            self.meet()
        done = self.turn == 3
        return Observation(
            messages=({"role": "user", "content": "."},),
            action=said,
            state={"process": float(os.getpid())},
            terminated=done,
            success=done or None,
        )

    def meet(self) -> None:
        Path(self.meeting, str(self.member)).touch()
        for _ in range(3000):
            if len(os.listdir(self.meeting)) == 2:
                return
            time.sleep(0.01)
        raise TimeoutError("nobody came")

    def score(self, episodes: Sequence[Any]) -> Sequence[EpisodeScore]:
        return [EpisodeScore({"turns": float(len(episode.turns))}, True) for episode in episodes]

    def close(self) -> None:
        pass


def gone(pid: int) -> bool:
    """Whether a process has ended, waiting for it a little; a zombie has."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def pool() -> Iterator[EnvironmentPool]:
    with EnvironmentPool(Moody, workers=2) as pool:
        yield pool


def opened(pool: EnvironmentPool) -> Environment:
    environment = pool()
    environment.reset(Task("t"), 0, 0)
    return environment


def saying(tokenizer: Any, *turns: Sequence[str | Callable[[], str]]) -> Callable[..., Any]:
    """Says turns[k][i] as the i-th that still plays in turn k; a function is called for its text."""
    spoken = iter(turns)

    def generate(contexts, max_new_tokens):
        texts = [text() if callable(text) else text for text in next(spoken)]
        return [(tokenizer(text)["input_ids"] + [EOS], None) for text in texts[: len(contexts)]]

    return generate


def starts(count: int) -> list[Start]:
    return [Start(Task(f"t{i // 2}"), 3 + i // 2, i // 2, i % 2) for i in range(count)]


def play(tokenizer: Any, make: Any, count: int, *turns: Sequence[Any]) -> list[Any]:
    return run_episodes(starts(count), make, saying(tokenizer, *turns), tokenizer, limits=Limits(turns=5))


def test_episodes_are_those_of_one_process(tokenizer: Any) -> None:
    """The same record, whether the environments play here or in two other processes."""
    tasks = Errands.tasks("train", 3, 0)
    begin = [Start(tasks[i // 2], 5 + i // 2, i // 2, i % 2) for i in range(6)]
    turns = [["ask"] * 6, ["open red", "get key", "dance", "ask", "", "look"], ["open blue"] * 6]

    def played(make: Any) -> list[Any]:
        return run_episodes(begin, make, saying(tokenizer, *turns), tokenizer, limits=Limits(turns=3))

    with EnvironmentPool(Errands, {"turns": 4}, workers=2) as pool:
        assert isinstance(pool(), Environment)
        assert played(pool) == played(lambda: Errands(turns=4))
        assert len(pool.processes) == 2


def test_workers_answer_side_by_side(tokenizer: Any, tmp_path: Path) -> None:
    """Each of two environments waits until the other has come to the same turn."""
    with EnvironmentPool(Moody, {"meeting": str(tmp_path)}, workers=2) as pool:
        one, two = play(tokenizer, pool, 2, ["meet", "meet"], ["a", "b"], ["a", "b"])
    assert (one.ended, two.ended) == ("terminated", "terminated")
    assert one.turns[0].state["process"] != two.turns[0].state["process"]


def test_environments_that_say_nothing_stay_in_this_thread(tokenizer: Any) -> None:
    seen = set()

    class Here(Moody):
        def step(self, action_text: str) -> Observation:
            seen.add(threading.current_thread())
            return super().step(action_text)

    play(tokenizer, Here, 4, *[["a"] * 4] * 3)
    assert seen == {threading.main_thread()}


def test_a_killed_worker_costs_its_episodes_and_nothing_else(tokenizer: Any, pool: EnvironmentPool) -> None:
    killed: list[int] = []

    def kill() -> str:
        killed.append(pool.processes[0])
        os.kill(killed[0], signal.SIGKILL)
        return "a"

    episodes = play(tokenizer, pool, 4, ["a"] * 4, [kill, "a", "a", "a"], ["b", "b"])
    assert [e.ended.partition(" ")[0] for e in episodes] == ["error:", "terminated"] * 2
    assert "WorkerDied" in episodes[0].ended
    assert [e.success for e in episodes] == [None, True, None, True]
    assert [dict(e.rewards) for e in episodes] == [{}, {"turns": 3.0}] * 2
    assert [turn.text for turn in episodes[0].turns] == ["a", "a"]  # what was said is kept
    assert pool.replaced == 1
    again = play(tokenizer, pool, 4, *[["a"] * 4] * 3)
    assert [e.ended for e in again] == ["terminated"] * 4
    assert len(pool.processes) == 2
    assert killed[0] not in pool.processes


def test_an_environment_that_crashes_its_process(tokenizer: Any, pool: EnvironmentPool) -> None:
    episodes = play(tokenizer, pool, 2, ["die", "a"], ["a"], ["a"])
    assert "signal 6 (SIGABRT) in the middle of `step`" in episodes[0].ended
    assert episodes[1].ended == "terminated"
    assert pool.replaced == 1


def test_an_episode_that_has_not_begun_begins_in_the_new_worker(pool: EnvironmentPool) -> None:
    environment = opened(pool)
    (old,) = pool.processes
    os.kill(old, signal.SIGKILL)
    assert gone(old)
    assert environment.reset(Task("u"), 1, 0).messages[0]["content"] == "u 1"
    assert environment.step("a").action == "a"
    assert pool.replaced == 1


def test_an_environment_that_raises_leaves_its_neighbours_alone() -> None:
    with EnvironmentPool(Moody, workers=1) as pool:
        bad, good = opened(pool), opened(pool)
        with pytest.raises(EnvironmentFailed, match="KeyError: 'no such thing'"):
            bad.step("raise")
        with pytest.raises(EnvironmentFailed, match="cannot be sent to another process"):
            bad.step("odd")
        assert good.step("a").action == "a"
        assert pool.replaced == 0


def test_one_that_hangs_is_killed_with_what_it_started() -> None:
    with EnvironmentPool(Moody, workers=1, timeout=20) as pool:
        environment = opened(pool)
        child = int(environment.step("spawn").action)
        pool._slots[0]._timeout = 0.5
        with pytest.raises(WorkerDied, match=r"did not answer within 0\.5 s in the middle of `step`"):
            environment.step("hang")
        assert gone(child)
        with pytest.raises(WorkerDied, match="has died"):
            environment.step("a")


def test_nothing_is_left_after_closing(pool: EnvironmentPool) -> None:
    environments = [opened(pool), opened(pool)]
    child = int(environments[0].step("spawn").action)
    processes = pool.processes
    pool.close()
    pool.close()
    assert all(gone(pid) for pid in [*processes, child])
    for environment in environments:
        environment.close()  # too late, and harmless
    with pytest.raises(RuntimeError, match="closed"):
        pool()


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), 9)", "sys.exit(3)", "del pool; import time; time.sleep(600)"]
)
def test_nothing_is_left_of_an_owner_that_did_not_close(end: str) -> None:
    program = (
        "import os, sys\n"
        "from threefold.envs.errands import Errands\n"
        "from threefold.envs.pool import EnvironmentPool\n"
        "pool = EnvironmentPool(Errands, workers=2)\n"
        "for _ in range(2):\n"
        "    pool().reset(Errands.tasks('train', 1, 0)[0], 0, 0)\n"
        "print(*pool.processes, flush=True)\n"
        f"{end}\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        processes = [int(word) for word in owner.stdout.readline().split()]
        assert processes
        assert all(gone(pid) for pid in processes)
    finally:
        owner.kill()
        owner.communicate()


def test_seats_are_spread_and_given_back(pool: EnvironmentPool) -> None:
    environments = [opened(pool) for _ in range(4)]
    places = [environment.step("a").state["process"] for environment in environments]
    assert sorted(places.count(pid) for pid in set(places)) == [2, 2]
    for environment in environments:
        environment.close()
        environment.close()
    assert [len(slot.seats) for slot in pool._slots] == [0, 0]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EnvironmentPool(Moody, workers=0)
    with pytest.raises(ValueError, match="positive, got -1"):
        EnvironmentPool(Moody, timeout=-1)
    with pytest.raises(ValueError, match="at the top of a module"):
        EnvironmentPool(lambda: Moody())
    with (
        EnvironmentPool(Moody, {"meting": "x"}, workers=1) as pool,
        pytest.raises(EnvironmentFailed, match="unexpected keyword argument 'meting'"),
    ):
        opened(pool)


def test_an_answer_that_was_not_waited_for_is_never_another_episodes():
    """As in a notebook: an interrupt while the pool waits, and the pool is used on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with EnvironmentPool(Slow, workers=1) as pool:
            environment = pool()
            environment.reset(Task("first"), 0, 0)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                environment.step("late")
            environment.close()
            other = pool()
            assert other.reset(Task("second"), 0, 0).messages[0]["content"] == "second"
            assert other.step("now").action == "now"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Slow:
    """Answers what it is told, "late" after a second."""

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        return Observation(messages=({"role": "user", "content": task.id},))

    def step(self, action_text: str) -> Observation:
        time.sleep(1.0 if action_text == "late" else 0.0)
        return Observation(action=action_text)

    def score(self, episodes: Sequence[Any]) -> Sequence[EpisodeScore]:
        return [EpisodeScore({}) for _ in episodes]

    def close(self) -> None:
        pass
