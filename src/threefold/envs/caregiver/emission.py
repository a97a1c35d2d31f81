"""From wanted tiers to behaviour labels: at most one label a channel, and the lookup has the last word.

Every combination of at most one label per channel is weighed by how usual its labels are for the subtype.
Of those that the lookup maps to the wanted (D, R), given the words that are said, one is drawn. So the tiers
of a reply are always derived from its labels and words, and a change of the lookup changes what is shown,
never what the tiers mean.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping, Sequence

from threefold.envs.caregiver.labels import CHANNELS, TOP_TIER, Lookup
from threefold.envs.caregiver.subtypes import Subtype

Combination = tuple[str, ...]

SILENT = 0.6
"""Weight of showing nothing in a channel, against 1 for an ordinary label. Design choice."""
HABIT = 3.0
"""Weight of a label that is a habit of the subtype. Design choice."""
RARE = 0.25
"""Weight of the physical ways to resist beside the verbal ones, within a tier. Design choice."""
MIXED = 0.02
"""Weight of a smile together with a sign of distress. Design choice."""


class Emission:
    """Draws labels for wanted tiers by a lookup; the tables are made once for each subtype."""

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self._tables = functools.cache(self._table)

    def labels(
        self, stream: random.Random, subtype: Subtype, distress: int, resistance: int, utterance: str
    ) -> Combination:
        """Labels with which `lookup.tiers(labels, utterance)` is (distress, resistance), or the nearest that
        the words allow: who says "no" cannot show less than R = 2."""
        said = self.lookup.says_distress(utterance), self.lookup.says_refusal(utterance)
        table = self._tables(subtype.name, subtype.habits, *said)
        wanted = min(table, key=lambda tiers: (abs(tiers[0] - distress) + abs(tiers[1] - resistance), *tiers))
        combinations, bounds = table[wanted]
        chance = stream.random() * bounds[-1]
        return next(
            (c for c, bound in zip(combinations, bounds, strict=True) if chance < bound), combinations[-1]
        )

    def _table(
        self, name: str, habits: Sequence[str], says_distress: bool, says_refusal: bool
    ) -> Mapping[tuple[int, int], tuple[list[Combination], list[float]]]:
        """(D, R) -> the combinations with these tiers and their cumulated weights."""
        rows = [[None, *self.lookup.of_channel(channel)] for channel in CHANNELS]
        found: dict[tuple[int, int], list[tuple[Combination, float]]] = {}
        for chosen in itertools.product(*rows):
            shown = [row for row in chosen if row is not None]
            weight = SILENT ** (len(chosen) - len(shown))
            for row in shown:
                weight *= HABIT if row.name in habits else 1.0
                weight *= RARE if row.resistance == TOP_TIER else 1.0
            if {-1, 1} <= {(row.distress > 0) - (row.distress < 0) for row in shown}:
                weight *= MIXED
            raw = sum(row.distress for row in shown) + says_distress
            tiers = (
                min(max(raw, 0), TOP_TIER),
                max([2 if says_refusal else 0, *(row.resistance for row in shown)]),
            )
            found.setdefault(tiers, []).append((tuple(row.name for row in shown), weight))
        return {
            tiers: ([c for c, _ in pairs], list(itertools.accumulate(w for _, w in pairs)))
            for tiers, pairs in found.items()
        }
