"""A version under test: its bank, what made it, and where its test stands.

The old version is the one in use (`Evolution.bank`); it stays whole until the test is decided, so restoring
it is nothing to be done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from threefold.skills.bank import (
    Bank,
    Operation,
    bank_from_dict,
    bank_to_dict,
    operation_from_dict,
    operation_to_dict,
)
from threefold.skills.creator import Creation, Evidence
from threefold.skills.store import VersionRecord
from threefold.skills.version_test import VersionTest


@dataclass
class RunningTest:
    """A test under way."""

    new: Bank
    test: VersionTest
    operations: tuple[Operation, ...]
    record: VersionRecord
    """What stands in the new version's version.json."""

    def count(self, step: int, new: tuple[int, int], old: tuple[int, int]) -> None:
        """Take in a step's (successes, episodes) of both arms, and note it in the record."""
        test = self.test
        test.record(new=new, old=old)
        entry = {
            "step": step,
            "new": list(new),
            "old": list(old),
            "posterior_new": [test.new.alpha, test.new.beta],
            "posterior_old": [test.old.alpha, test.old.beta],
            "probability_new": test.probability_new(),
        }
        self.record = replace(self.record, test=(*self.record.test, entry))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "new": bank_to_dict(self.new),
            "test": self.test.to_dict(),
            "operations": [operation_to_dict(o) for o in self.operations],
            "record": dataclasses.asdict(self.record),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunningTest:
        """Read what `to_dict` wrote: the test goes on bit for bit."""
        record = data["record"]
        lists = {name: tuple(record[name]) for name in ("operations", "test")}
        return cls(
            bank_from_dict(data["new"]),
            VersionTest.from_dict(data["test"]),
            tuple(operation_from_dict(o) for o in data["operations"]),
            VersionRecord(**{**record, **lists}),
        )


def proposed(
    new: Bank, evidence: Evidence, creation: Creation, operations: Sequence[Operation]
) -> VersionRecord:
    """The record of a version that nobody has tried yet."""
    return VersionRecord(
        new.version,
        new.parent,
        evidence.step,
        "testing",
        operations=tuple(operation_to_dict(o) for o in operations),
        evidence={
            "diagnosis": creation.diagnosis,
            "episodes": len(evidence.experiences),
            "pass rates": {name: dataclasses.asdict(rate) for name, rate in evidence.rates.items()},
            "messages": list(creation.messages),
        },
    )
