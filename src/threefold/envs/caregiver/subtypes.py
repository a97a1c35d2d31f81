"""The nine dementia subtypes of DemMA (arXiv 2601.06373), as far as its public code states them.

`icf`, `memory`, `cues`, `rates` and `speech` restate the parameters of the public generator of DemMA
(github.com/hulameow/DemMA). The numbers below them (`remote_gate` to `lability`) are our reading of those
words on a scale from 0 to 1: design choices, listed in the review sheet, and varied in the sensitivity
analysis.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ICF_B126 = (
    "extraversion",
    "agreeableness",
    "conscientiousness",
    "emotional stability",
    "openness",
    "optimism",
    "confidence",
    "integrity",
)
"""Order of the temperament values, each -3 .. +3 against the person before the illness."""


@dataclass(frozen=True)
class Subtype:
    name: str
    title: str
    icf: tuple[int, ...]
    """Change of temperament in the order of `ICF_B126`."""
    memory: str
    cues: str
    """Whether cues help, in words."""
    rates: Mapping[str, float]
    """Share of people with this symptom, 0 .. 1; the middle of the range that the source gives."""
    speech: str
    """How the person talks, in words; `style` names the grammar that imitates it."""
    style: str
    """"fragments", "echo", "stalls", "alternating", "quiet", "blunt", "effortful", "vague" or "pauses"."""
    remote_gate: float
    """How reachable old memories are, 0 .. 1."""
    cue_gain: float
    """How much a cue (clock, photograph, label) helps, 0 .. 1."""
    retention: float
    """How much of what was just explained is kept, 0 .. 1; a correction only works through this."""
    language_load: float
    """How much a long or double question frustrates beyond the ordinary, 0 .. 1."""
    fluctuation: float = 0.0
    """Chance to change between clear and clouded from one turn to the next."""
    lability: float = 0.0
    """Chance of a sudden change of affect in a turn."""
    habits: tuple[str, ...] = ()
    """Behaviour labels that this subtype shows more often than others."""

    @property
    def stability(self) -> float:
        """Emotional stability, -3 .. +3."""
        return float(self.icf[ICF_B126.index("emotional stability")])

    @property
    def agreeableness(self) -> float:
        return float(self.icf[ICF_B126.index("agreeableness")])

    @property
    def disinhibition(self) -> float:
        """Share with disinhibited or impulsive behaviour, 0 .. 1."""
        return self.rates.get("disinhibition", self.rates.get("impulse control", 0.0))


def _rates(**rates: float) -> Mapping[str, float]:
    return MappingProxyType({name.replace("_", " "): rate for name, rate in rates.items()})


_ALL = (
    Subtype(
        "AD-early",
        "Alzheimer's disease, early",
        (-1, -1, -2, -2, -2, -2, -2, 0),
        "recent episodes severely lost, old ones kept; an encoding deficit; insight kept",
        "little",
        _rates(apathy=0.40, depression=0.45, irritability=0.35, anxiety=0.30),
        "short, fragmented, restarts, repeats simple questions (5 to 12 words)",
        "fragments",
        remote_gate=0.9,
        cue_gain=0.3,
        retention=0.35,
        language_load=0.3,
        habits=("repetitive words", "touching forehead", "fiddling with clothing"),
    ),
    Subtype(
        "AD-mid-late",
        "Alzheimer's disease, middle or late",
        (-3,) * 8,
        "global loss; disoriented in person, place and time; resists care",
        "no",
        _rates(apathy=0.80, agitation=0.50, delusions=0.35, hallucinations=0.25, sleep_disturbance=0.40),
        "single words, fragments, echoes the last phrase",
        "echo",
        remote_gate=0.4,
        cue_gain=0.0,
        retention=0.05,
        language_load=0.6,
        habits=("vacant expression", "staring blankly", "murmuring / self-talk", "pacing back and forth"),
    ),
    Subtype(
        "VaD",
        "vascular dementia",
        (-2, -2, -2, -3, -2, -2, -2, -1),
        "patchy; a retrieval deficit",
        "yes, strongly",
        _rates(depression=0.50, emotional_incontinence=0.50, apathy=0.40, irritability=0.30),
        "slow, simple, stalls on words, sudden shifts of affect",
        "stalls",
        remote_gate=0.7,
        cue_gain=1.0,
        retention=0.5,
        language_load=0.4,
        lability=0.15,
        habits=("silence for several seconds", "sighing", "crying"),
    ),
    Subtype(
        "DLB",
        "dementia with Lewy bodies",
        (-2, -2, -2, -3, -1, -2, -2, 0),
        "early memory relatively kept; retrieval; fluctuates",
        "recognition much better than recall",
        _rates(visual_hallucinations=0.75, apathy=0.50, depression=0.40, anxiety=0.40, delusions=0.30),
        "alternates between clear and confused",
        "alternating",
        remote_gate=0.7,
        cue_gain=0.8,
        retention=0.5,
        language_load=0.4,
        fluctuation=0.25,
        habits=("staring blankly", "looking around", "shaking hands"),
    ),
    Subtype(
        "PDD",
        "Parkinson's disease dementia",
        (-2, -1, -2, -2, -1, -2, -2, -1),
        "moderate; retrieval and working memory",
        "recognition better",
        _rates(apathy=0.50, depression=0.35, anxiety=0.30, impulse_control=0.175, visual_hallucinations=0.35),
        "quiet, brief, flat",
        "quiet",
        remote_gate=0.8,
        cue_gain=0.7,
        retention=0.5,
        language_load=0.4,
        fluctuation=0.08,
        habits=("shaking hands", "freezing mid-step", "vacant expression"),
    ),
    Subtype(
        "FTD-bv",
        "behavioural variant frontotemporal dementia",
        (3, -3, -3, -3, -3, -2, 1, -3),
        "relatively kept; insight lost",
        "normal recognition",
        _rates(
            disinhibition=0.80,
            empathy_loss=0.80,
            apathy=0.70,
            compulsive=0.60,
            hyperphagia=0.50,
            antisocial=0.40,
            insight_lost=0.90,
        ),
        "blunt, intrusive",
        "blunt",
        remote_gate=0.7,
        cue_gain=0.5,
        retention=0.5,
        language_load=0.2,
        habits=("standing up", "slapping table", "laughing", "shaking head"),
    ),
    Subtype(
        "nfvPPA",
        "non-fluent variant primary progressive aphasia",
        (-2, -1, -1, -2, -1, -2, -2, 0),
        "non-verbal memory intact",
        "not applicable",
        _rates(frustration=0.45, anxiety=0.45, depression=0.30),
        "effortful, broken grammar",
        "effortful",
        remote_gate=0.9,
        cue_gain=0.5,
        retention=0.8,
        language_load=1.0,
        habits=("verbal hesitation (um / uh)", "clenching fist", "frowning"),
    ),
    Subtype(
        "svPPA",
        "semantic variant primary progressive aphasia",
        (-1, -2, -1, -1, -2, -1, -1, -1),
        "loss of meaning, episodes kept",
        "not applicable",
        _rates(stereotyped=0.40, empathy_loss=0.35),
        'fluent but vague ("that thing")',
        "vague",
        remote_gate=0.8,
        cue_gain=0.5,
        retention=0.7,
        language_load=0.6,
        habits=("repetitive words", "looking around", "frowning"),
    ),
    Subtype(
        "lvPPA",
        "logopenic variant primary progressive aphasia",
        (-2, -1, -2, -2, -1, -2, -2, 0),
        "phonological working memory; later like Alzheimer's disease",
        "partly",
        _rates(anxiety=0.35, depression=0.30),
        "pauses, backtracks",
        "pauses",
        remote_gate=0.8,
        cue_gain=0.5,
        retention=0.5,
        language_load=0.9,
        habits=("silence for several seconds", "verbal hesitation (um / uh)", "rubbing fingers"),
    ),
)

SUBTYPES: Mapping[str, Subtype] = MappingProxyType({subtype.name: subtype for subtype in _ALL})


def subtype(name: str) -> Subtype:
    """The subtype of this name.

    Raises:
        ValueError: There is none; the message gives the nearest.
    """
    try:
        return SUBTYPES[name]
    except KeyError:
        near = difflib.get_close_matches(name, SUBTYPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(SUBTYPES)}"
        raise ValueError(f"unknown dementia subtype {name!r}: {hint}") from None
