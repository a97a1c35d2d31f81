"""The nine subtypes are those of the public DemMA generator."""

from __future__ import annotations

import pytest

from threefold.envs.caregiver.labels import default_lookup
from threefold.envs.caregiver.subtypes import ICF_B126, SUBTYPES, subtype


def test_there_are_nine_with_eight_temperament_values_each() -> None:
    assert len(SUBTYPES) == 9
    assert all(len(s.icf) == len(ICF_B126) == 8 for s in SUBTYPES.values())
    assert all(-3 <= value <= 3 for s in SUBTYPES.values() for value in s.icf)


def test_what_sets_them_apart() -> None:
    assert subtype("AD-mid-late").icf == (-3,) * 8
    assert subtype("FTD-bv").icf == (3, -3, -3, -3, -3, -2, 1, -3)
    assert subtype("VaD").stability == -3
    assert max(SUBTYPES.values(), key=lambda s: s.cue_gain).name == "VaD"
    assert max(SUBTYPES.values(), key=lambda s: s.fluctuation).name == "DLB"
    assert max(SUBTYPES.values(), key=lambda s: s.disinhibition).name == "FTD-bv"
    assert max(SUBTYPES.values(), key=lambda s: s.language_load).name == "nfvPPA"
    assert subtype("AD-mid-late").cue_gain == 0


def test_habits_are_labels_of_the_lookup_and_shares_are_shares() -> None:
    for s in SUBTYPES.values():
        assert set(s.habits) <= set(default_lookup().labels)
        shares = [
            *s.rates.values(),
            s.remote_gate,
            s.cue_gain,
            s.retention,
            s.language_load,
            s.fluctuation,
            s.lability,
        ]
        assert all(0 <= share <= 1 for share in shares)


def test_an_unknown_subtype_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"unknown dementia subtype 'AD-erly': did you mean 'AD-early'\?"):
        subtype("AD-erly")
