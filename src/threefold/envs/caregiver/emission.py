"""From wanted tiers to behaviour labels: at most one label a channel, and the lookup has the last word.

Every combination of at most one label per channel is weighed by how usual its labels are for the subtype.
Of those that the lookup maps to the wanted (D, R), given the words that are said, one is drawn. So the tiers
of a reply are always derived from its labels and words, and a change of the lookup changes what is shown,
never what the tiers mean.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import random
from collections.abc import Mapping

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


def draw_labels(
    lookup: Lookup, stream: random.Random, subtype: Subtype, distress: int, resistance: int, utterance: str
) -> Combination:
    """Labels with which `lookup.tiers(labels, utterance)` is (distress, resistance).

    Where the words do not allow that, the nearest tiers are taken: who says "no" cannot show less than R = 2.
    """
    said = lookup.says_distress(utterance), lookup.says_refusal(utterance)
    table = _table(lookup, subtype.habits, *said)
    wanted = min(table, key=lambda tiers: (abs(tiers[0] - distress) + abs(tiers[1] - resistance), *tiers))
    combinations, bounds = table[wanted]
    return combinations[min(bisect.bisect_right(bounds, stream.random() * bounds[-1]), len(bounds) - 1)]


@functools.lru_cache(maxsize=256)
def _table(
    lookup: Lookup, habits: tuple[str, ...], says_distress: bool, says_refusal: bool
) -> Mapping[tuple[int, int], tuple[list[Combination], list[float]]]:
    """(D, R) -> the combinations with these tiers and their cumulated weights.

    Made once a process for each subtype: environments are many and short-lived.
    """
    rows = [[None, *lookup.of_channel(channel)] for channel in CHANNELS]
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
        resistance = max([2 if says_refusal else 0, *(row.resistance for row in shown)])
        combination = tuple(row.name for row in shown)
        found.setdefault((min(max(raw, 0), TOP_TIER), resistance), []).append((combination, weight))
    return {
        tiers: ([c for c, _ in pairs], list(itertools.accumulate(weight for _, weight in pairs)))
        for tiers, pairs in found.items()
    }
