"""The life of a bank over a run: propose, test inside the groups, keep or restore exactly.

ReSkill (arXiv 2606.01619, Algorithm 1), one training step of which is

    banks_B = evolution.assign(step, size, group_B)    # joins the creation of step - 1 and starts its test
    ... play each episode under its bank ...
    evolution.observe(step, trajectories, banks_B)     # reservoir, posteriors, decision; begins a creation
    ... update the policy ...

A creation begun at the end of step s runs beside the policy update where an executor is given, and is joined
before the rollouts of s + 1: the same bundle is tested from the same step on either way.

State is plain JSON (`to_dict`): bank, running test with both banks, posteriors, memory estimate, reservoir,
assertions, history, random state, and whether a creation is under way. A creation that was under way is begun
again from the same evidence, so with a deterministic creator (or recorded answers) a run that was killed at
any step goes on bit for bit.

Deviations from the reference release: an old bank is kept whole instead of undone by operations, so restoring
is exact after a resume too; evaluation asks for `bank`, never for a mixture; failures from outside (an
endpoint that is down, a bad answer, a full disk) are counted and said in `events`, and training goes on; a
bug raises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.skills.assertions import Assertion, grade
from threefold.skills.bank import (
    Bank,
    Delete,
    Operation,
    apply,
    bank_from_dict,
    bank_to_dict,
    operation_to_dict,
)
from threefold.skills.creator import Creation, Creator, Evidence, Gate, PastTest
from threefold.skills.reservoir import ArmName, Experience, Reservoir, experience
from threefold.skills.running import RunningTest, proposed
from threefold.skills.settings import Settings
from threefold.skills.store import VersionFiles, VersionRecord
from threefold.skills.triggers import Trigger
from threefold.skills.version_test import Decision, MemoryEstimate, VersionTest
from threefold.trajectory import Trajectory

HISTORY = 5
"""Finished tests that a creator sees."""
PATIENCE = 10
"""With this many times `min_reservoir` episodes played, a creation waits no longer for so many to be held:
few tasks fill few places, and would wait for ever."""


@dataclass(frozen=True)
class Event:
    """Something that happened to the bank, for the log and the report."""

    step: int
    kind: str
    """"nothing to test", "refused", "failed", "testing", "accept", "reject", "auto-accept", "not written",
    "restored"."""
    text: str
    version: str | None = None


class Evolution:
    """A bank that evolves. Feed it every step; see the module's docstring.

    Args:
        creator: Makes bundles from evidence.
        bank: Where to begin; empty by default, as in the paper.
        settings: See `Settings`.
        seed: Of all chance in here.
        root: Folder where every version is written, None for none. One process of a run should have it.
        executor: Runs the creator beside the policy update; None runs it where it is joined.
    """

    def __init__(
        self,
        creator: Creator,
        bank: Bank | None = None,
        settings: Settings | None = None,
        *,
        seed: int = 0,
        root: str | Path | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.creator = creator
        self.settings = settings or Settings()
        self.bank = bank or Bank()
        self.reservoir = Reservoir(self.settings.reservoir)
        self.assertions: tuple[Assertion, ...] = ()
        self.history: tuple[PastTest, ...] = ()
        self.events: list[Event] = []
        self.counts: dict[str, int] = {}
        """Decisions, and what creators refused, repaired or failed at, since the beginning."""
        self.memory = MemoryEstimate()
        self._executor = executor
        self._rng = np.random.default_rng(seed)
        self._number = int(self.bank.version[1:])
        self._seen = 0  # episodes so far
        self._running: RunningTest | None = None
        self._pending: tuple[Evidence, Future[Creation] | None] | None = None
        self._files = VersionFiles(root) if root is not None else None
        if self._files is not None and not (self._files.root / self.bank.version).exists():
            self._save(0, self.bank, VersionRecord(self.bank.version))

    @property
    def test(self) -> VersionTest | None:
        """The test under way."""
        return self._running.test if self._running else None

    @property
    def candidate(self) -> Bank | None:
        """The version under test."""
        return self._running.new if self._running else None

    def assign(
        self, step: int, size: int, group_B: Sequence[int] | NDArray[np.int64] | None = None
    ) -> list[Bank]:
        """The bank of each of the step's episodes.

        Args:
            step: Number of the step that begins.
            size: Episodes of the whole batch, all processes together.
            group_B: Group of each, needed for balanced draws.
        """
        self._join(step)
        if self._running is None:
            return [self.bank] * size
        if self.settings.balanced and group_B is None:
            raise ValueError("balanced draws need group_B, the group of each episode")
        groups = group_B if self.settings.balanced else None
        new_B = self._running.test.assign(self._rng, size, groups)
        return [self._running.new if new else self.bank for new in new_B]

    def observe(self, step: int, trajectories: Sequence[Trajectory], banks_B: Sequence[Bank]) -> list[Event]:
        """Take the step's episodes in, decide where it is time, and begin the next creation.

        Args:
            step: Number of the step that ends.
            trajectories: Its episodes, of all processes.
            banks_B: What `assign` gave each. Episodes that ended in an error of the environment count
            nowhere.

        Returns:
            What happened.
        """
        before = len(self.events)
        counts: dict[ArmName, list[int]] = {"new": [0, 0], "old": [0, 0]}
        for trajectory, bank in zip(trajectories, banks_B, strict=True):
            if trajectory.ended.startswith("error"):
                continue
            new = self._running is not None and bank.version == self._running.new.version
            arm: ArmName = "new" if new else "old"
            self.reservoir.add(experience(trajectory, step=step, arm=arm, version=bank.version))
            counts[arm][0] += bool(trajectory.success)
            counts[arm][1] += 1
            self._seen += 1
        if self._running is not None:
            self._record(step, (counts["new"][0], counts["new"][1]), (counts["old"][0], counts["old"][1]))
        if self._running is None and self._pending is None and self._may_create(step):
            groups = tuple(self.reservoir.sample_groups(self._rng, self.settings.groups))
            self._begin(self._evidence(step, groups))
        return self.events[before:]

    def _record(self, step: int, new: tuple[int, int], old: tuple[int, int]) -> None:
        """Count a step of the running test, and decide it where it is time."""
        running = self._running
        assert running is not None
        running.count(step, new, old)
        decision = running.test.decide()
        if decision is not None:
            running.record = replace(running.record, decision=decision, decided_step=step)
            self._decide(step, running, decision)
        self._save(step, running.new, running.record)

    def _decide(self, step: int, running: RunningTest, decision: Decision) -> None:
        test = running.test
        self.memory.add({arm: [pair[arm] for pair in test.steps] for arm in ("new", "old")})
        operations = tuple(operation_to_dict(o) for o in running.operations)
        past = PastTest(running.new.version, decision == "accept", test.new.mean, test.old.mean, operations)
        self.history = (*self.history, past)[-HISTORY:]
        text = (
            f"{decision} {running.new.version}: posterior mean {test.new.mean:.3f} against "
            f"{test.old.mean:.3f} of {self.bank.version}"
        )
        self._event(step, decision, text, running.new.version)
        if decision == "accept":
            self.bank = running.new
        self._running = None

    def _save(self, step: int, bank: Bank, record: VersionRecord) -> None:
        """Bring a version to the disk. What a full disk refused is tried again the next time."""
        if self._files is not None:
            for version, problem in self._files.write(bank, record):
                self._event(step, "not written", problem, version)

    def _may_create(self, step: int) -> bool:
        settings = self.settings
        late = settings.last_step is not None and step > settings.last_step
        filled = len(self.reservoir) >= settings.min_reservoir
        filled = filled or self._seen >= PATIENCE * settings.min_reservoir
        accepted = [event.step for event in self.events if event.kind == "auto-accept"]
        early = bool(accepted) and step < accepted[-1] + settings.period - 1  # no test spaces them out
        return filled and step >= settings.first_step and not late and not early

    def _evidence(self, step: int, groups: tuple[tuple[Experience, ...], ...]) -> Evidence:
        experiences = self.reservoir.experiences
        use = self.settings.assertions
        rates = grade(self.assertions, [(e.turns, e.success) for e in experiences]) if use else {}
        return Evidence(
            step,
            self.bank,
            experiences,
            groups,
            self.assertions if use else (),
            rates,
            self.history,
            self.settings.capacity,
        )

    def _begin(self, evidence: Evidence) -> None:
        future = self._executor.submit(self.creator, evidence) if self._executor else None
        self._pending = (evidence, future)

    def _join(self, step: int) -> None:
        """Wait for the creation under way and start the test of what it made."""
        if self._pending is None:
            return
        evidence, future = self._pending
        self._pending = None
        try:
            creation = future.result() if future else self.creator(evidence)
        except (RuntimeError, OSError, ValueError) as error:  # the outside failed; a bug of ours still raises
            self._event(step, "failed", f"creation failed: {type(error).__name__}: {error}")
            return
        for name, count in creation.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for message in creation.messages:
            self._event(step, "refused", message)
        if creation.assertions is not None and self.settings.assertions:
            self.assertions = creation.assertions
        if not creation.operations:
            self._event(step, "nothing to test", creation.diagnosis or "the creator proposed nothing")
            return
        self._start(step, evidence, creation)

    def _start(self, step: int, evidence: Evidence, creation: Creation) -> None:
        operations = creation.operations if self.settings.triggers else _all_general(creation.operations)
        # A creator may be anybody's: what it answers is checked once more before it touches the bank.
        gate = Gate(length=10**6, trigger_rate=0, operations=10**6)
        if problems := gate.problems(evidence, operations):
            self._event(step, "refused", "the bundle is refused whole: " + "; ".join(problems))
            return
        self._number += 1
        new = apply(self.bank, operations, f"v{self._number}", self.settings.capacity)
        said = ", ".join(f"{type(o).__name__.lower()} {o.name}" for o in operations)
        record = proposed(new, evidence, creation, operations)
        if self.settings.auto_accept:
            record = replace(record, decision="auto-accept", decided_step=step)
            self._event(step, "auto-accept", f"{new.version}: {said}", new.version)
            self.bank = new
        else:
            memory = self.memory.memory
            self._running = RunningTest(new, self.settings.new_test(memory), operations, record)
            self._event(step, "testing", f"{new.version} against {self.bank.version}: {said}", new.version)
        self._save(step, new, record)

    def _event(self, step: int, kind: str, text: str, version: str | None = None) -> None:
        self.events.append(Event(step, kind, text, version))
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def metrics(self) -> dict[str, float]:
        """Figures for the step's log."""
        figures = {
            "skills/bank_size": float(len(self.bank.skills)),
            "skills/reservoir": float(len(self.reservoir)),
            "skills/accepted": float(self.counts.get("accept", 0)),
            "skills/rejected": float(self.counts.get("reject", 0)),
        }
        if self.test is not None:
            figures |= {
                "skills/probability_new": self.test.probability_new(),
                "skills/mean_new": self.test.new.mean,
                "skills/mean_old": self.test.old.mean,
            }
        return figures

    def versions(self) -> set[str]:
        """Every version made so far: what to keep on disk when a run is resumed (`store.drop_versions`)."""
        return {f"v{number}" for number in range(self._number + 1)}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON. A creation under way is kept by its evidence."""
        return {
            "bank": bank_to_dict(self.bank),
            "number": self._number,
            "seen": self._seen,
            "reservoir": self.reservoir.to_dict(),
            "assertions": [dataclasses.asdict(a) for a in self.assertions],
            "history": [dataclasses.asdict(past) for past in self.history],
            "events": [dataclasses.asdict(event) for event in self.events],
            "counts": dict(self.counts),
            "memory": {"tests": self.memory.tests, "log_likelihood": self.memory.log_likelihood.tolist()},
            "rng": self._rng.bit_generator.state,
            "running": self._running and self._running.to_dict(),
            "pending": self._pending
            and {
                "step": self._pending[0].step,
                "tasks": [group[0].task_id for group in self._pending[0].groups],
            },
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Go on from what `to_dict` wrote, bit for bit. Versions on disk that were made later are deleted,
        and a creation that was under way begins again."""
        self.bank = bank_from_dict(data["bank"])
        self._number = data["number"]
        self._seen = data["seen"]
        self.reservoir = Reservoir.from_dict(data["reservoir"])
        self.assertions = tuple(Assertion(**entry) for entry in data["assertions"])
        self.history = tuple(
            PastTest(**{**past, "operations": tuple(past["operations"])}) for past in data["history"]
        )
        self.events = [Event(**event) for event in data["events"]]
        self.counts = dict(data["counts"])
        self.memory = MemoryEstimate()
        self.memory.tests = data["memory"]["tests"]
        self.memory.log_likelihood = np.array(data["memory"]["log_likelihood"])
        self._rng.bit_generator.state = data["rng"]
        self._running, self._pending = None, None
        if self._files is not None:
            self._files.drop(keep=self.versions())
            if edited := self._files.restore(self.bank):
                last = max((entry.step for entry in self.reservoir.experiences), default=0)
                self._event(last, "restored", edited, self.bank.version)
        if data["running"] is not None:
            self._running = RunningTest.from_dict(data["running"])
            self._save(self._running.record.step, self._running.new, self._running.record)
        if (pending := data["pending"]) is not None:
            entries = self.reservoir.experiences
            groups = tuple(tuple(e for e in entries if e.task_id == task) for task in pending["tasks"])
            self._begin(self._evidence(pending["step"], groups))


def _all_general(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The same bundle without triggers."""
    return tuple(
        o if isinstance(o, Delete) else replace(o, skill=replace(o.skill, trigger=Trigger()))
        for o in operations
    )


def stamp(trajectories: Sequence[Trajectory], banks_B: Sequence[Bank]) -> list[Trajectory]:
    """The trajectories with the bank version that each was played under."""
    pairs = zip(trajectories, banks_B, strict=True)
    return [replace(trajectory, skill_version=bank.version) for trajectory, bank in pairs]
