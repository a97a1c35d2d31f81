"""A simulated patient by rules: no language model, the same dialogue for the same (scenario, seed, member).

State: distress d and resistance r in [0, 3] (continuous), trust, attachment to the conflict, fatigue and
progress of the care step in [0, 1]. A turn goes

    acts      = acts.tag(what the caregiver said)
    Δη_D      = soothe(Σ β_D(act) · gain(act, subtype))           logits; kind acts saturate
    d'        = d + Δη_D / slope + pull · (rest_D - d) + chance
    r'        likewise, pushed up only in a turn that presses for care
    P(D >= k) = sigmoid(slope · (d' - (k - 1/2))),  k = 1, 2, 3   an ordered logit; R likewise
    labels    ~ P(label | D, R, words, subtype), at most one a channel
    D, R      = lookup(labels, words)                             derived, always

    rest_D    = rest of the subtype + attachment to the conflict + fatigue
    rest_R    = distrust · attachment

so an unresolved conflict draws distress back, and only what loosens it lowers the level for good. The
coefficients and their evidence are `rules.yaml`. Even at rest the ordered logit leaves a chance of 0.18 for a
tier of 1 or more: behaviour labels are noisy signs of a state.

This is a model for research and training. It has not been validated on people.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Set
from dataclasses import dataclass

from threefold.envs.caregiver.acts import Act, tag
from threefold.envs.caregiver.dialogue import PatientReply, Scenario
from threefold.envs.caregiver.emission import draw_labels
from threefold.envs.caregiver.labels import TOP_TIER, Lookup, default_lookup
from threefold.envs.caregiver.rules import Effect, Rules, default_rules
from threefold.envs.caregiver.speech import in_manner, line
from threefold.envs.caregiver.subtypes import subtype

PRESSING = frozenset({Act.CARE_BID, Act.COMMAND, Act.THREAT, Act.TAKEOVER})
"""Acts that press for care; only in such a turn can resistance rise."""
HARSH = frozenset({Act.COMMAND, Act.THREAT, Act.TAKEOVER, Act.BELITTLE})
"""Acts under which no care step makes progress, and which undo an agreement."""


@dataclass
class _State:
    d: float
    r: float
    trust: float
    attachment: float
    fatigue: float = 0.0
    progress: float = 0.0
    clouded: bool = False
    accepted: bool = False
    refusals: int = 0
    """Turns in a row with physical refusal in distress."""


class RulesPatient:
    """Implements `dialogue.Patient`. One object plays one dialogue at a time."""

    def __init__(
        self,
        rules: Rules | None = None,
        lookup: Lookup | None = None,
        *,
        perturb: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Make a patient.

        Args:
            rules: Coefficients; default: those that ship with Threefold.
            lookup: Table of labels; default: likewise.
            perturb: Every coefficient is multiplied by a number in [1 - perturb, 1 + perturb], for the audit
                by another simulator. 0 leaves them as they are.
            seed: Chooses these numbers.
        """
        self.rules = (rules or default_rules()).perturbed(perturb, seed)
        self.lookup = lookup or default_lookup()

    def open(self, scenario: Scenario, seed: int) -> PatientReply:
        """The annotated opening of the scenario, and the state behind it, by scenario and seed alone."""
        self._scenario, self._seed = scenario, seed
        self._subtype = subtype(scenario.subtype)
        distress, resistance = self.lookup.tiers(scenario.opening_labels, scenario.opening)
        stream = random.Random(f"threefold patient {scenario.id} {seed}")
        constant = self.rules.constant
        attachment = constant("attachment_start") - constant("attachment_spread") * stream.random()
        self._state = _State(float(distress), float(resistance), constant("trust_start"), attachment)
        self._history = [scenario.opening]
        return PatientReply(
            scenario.opening, scenario.opening_labels, distress, resistance, latent=self._latent()
        )

    def reply(self, caregiver: str, member: int) -> PatientReply:
        """Answer what was said aloud. Chance depends on scenario, seed, member and turn alone."""
        turn = len(self._history) // 2
        stream = random.Random(f"threefold patient {self._scenario.id} {self._seed} {member} {turn}")
        acts = tag(caregiver, history=self._history, name=self._scenario.name)
        self._feel(acts, stream)
        slope = self.rules.constant("slope")
        wanted_d, wanted_r = _tier(stream, self._state.d, slope), _tier(stream, self._state.r, slope)
        self._consider(acts, wanted_d, wanted_r)
        if self._state.accepted:
            wanted_r = min(wanted_r, 1)  # who has agreed does not refuse in the same breath
        utterance = self._speak(stream, acts, wanted_d, wanted_r)
        labels = draw_labels(self.lookup, stream, self._subtype, wanted_d, wanted_r, utterance)
        distress, resistance = self.lookup.tiers(labels, utterance)
        left = self._leaves(stream, distress, resistance)
        if left:
            utterance = line(stream, self._scenario, "leaves")
            distress, resistance = self.lookup.tiers(labels, utterance)
        self._history += [caregiver, utterance]
        accepted = self._state.accepted and not left
        return PatientReply(
            utterance, labels, distress, resistance, accepted=accepted, left=left, latent=self._latent()
        )

    def _feel(self, acts: Set[Act], stream: random.Random) -> None:
        """Move the state by what was done to it."""
        state, kind, constant = self._state, self._subtype, self.rules.constant
        pressed = bool(acts & PRESSING)
        if stream.random() < kind.fluctuation:
            state.clouded = not state.clouded
        change = self._change(acts)
        state.trust = _clip(state.trust + change.trust, 0, 1)
        state.attachment = _clip(state.attachment + change.attachment, 0, 1)
        state.fatigue = _clip(state.fatigue + constant("fatigue_step"), 0, 1)
        struck = stream.random() < kind.lability
        jump = constant("lability_jump") * (2 * stream.random() - 1) if struck else 0.0
        noise, pull = constant("noise"), constant("pull")
        state.d = _clip(
            state.d
            + change.distress / constant("slope")
            + pull * (self._rest_distress() - state.d)
            + jump
            + noise * _bell(stream),
            0,
            TOP_TIER,
        )
        drawn = pull * (self._rest_resistance() - state.r)
        state.r = _clip(
            state.r
            + change.resistance / constant("slope")
            + (drawn if pressed else min(drawn, 0.0))
            + noise * _bell(stream),
            0,
            TOP_TIER,
        )

    def _change(self, acts: Set[Act]) -> Effect:
        """What all acts of a turn do together, after gains; what soothes saturates."""
        pushed = {"distress": 0.0, "resistance": 0.0}
        soothed = {"distress": 0.0, "resistance": 0.0}
        trust = attachment = 0.0
        for act in sorted(acts & self.rules.effects.keys()):
            effect, gain = self.rules.effects[act], self._gain(act, acts)
            for axis in pushed:
                amount = getattr(effect, axis) * gain
                pushed[axis] += max(amount, 0.0)
                soothed[axis] += max(-amount, 0.0)
            trust += effect.trust * gain
            attachment += effect.attachment * gain
        if acts & PRESSING:
            pushed["resistance"] += self.rules.constant("disinhibition") * self._subtype.disinhibition
        else:
            pushed["resistance"] = 0.0
        limit = self.rules.constant("soothing_limit")
        return Effect(
            distress=pushed["distress"] - _saturate(soothed["distress"], limit),
            resistance=pushed["resistance"] - _saturate(soothed["resistance"], limit),
            trust=trust,
            attachment=attachment,
        )

    def _gain(self, act: Act, acts: Set[Act]) -> float:
        """How much an act counts for this person, in this state."""
        state, kind, constant = self._state, self._subtype, self.rules.constant
        effect = self.rules.effects[act]
        gain = 1.0
        if act in (Act.CONTRADICTION, Act.REPEATED_CONTRADICTION):
            attached = constant("contradiction_attachment") * state.attachment
            unstable = constant("lability_gain") * max(-kind.stability, 0.0)
            gain = (constant("contradiction_base") + attached) * (1 + unstable)
            if Act.CUE in acts and state.d < 2:  # one calm fact with something to see is the card's use of it
                gain *= 1 - kind.retention * kind.cue_gain
        elif act is Act.CARE_BID and state.accepted:
            gain = 0.0  # it is agreed already
        elif act in (Act.QUESTION_OVERLOAD, Act.LONG, Act.MEMORY_TEST):
            gain = constant("language_base") + constant("language_load") * kind.language_load
        elif act is Act.CUE:
            gain = 0.0 if state.clouded else kind.cue_gain
        elif act is Act.REMINISCENCE:
            acute = state.d >= constant("acute_distress")
            gain = kind.remote_gate * (constant("acute_reminiscence") if acute else 1.0)
        elif act in (Act.NAMES_FEELING, Act.VALIDATES):
            gain = 1 - constant("empathy_loss") * kind.rates.get("empathy loss", 0.0)
        if effect.distress < 0:
            gain *= 1 - constant("clouding") * state.clouded
            gain *= constant("repeat_share") if Act.REPEATS_ITSELF in acts else 1.0
            gain *= constant("long_share") if Act.LONG in acts else 1.0
        return gain

    def _rest_distress(self) -> float:
        constant, rates = self.rules.constant, self._subtype.rates
        temper = 1 - constant("temperament") * (self._subtype.stability + 2)
        symptoms = [rates.get(name, 0.0) for name in ("anxiety", "depression", "agitation", "irritability")]
        return (
            constant("rest_distress")
            + constant("rest_symptoms") * sum(symptoms) / len(symptoms)
            + constant("rest_concern") * self._state.attachment * temper
            + constant("fatigue_weight") * self._state.fatigue
        )

    def _rest_resistance(self) -> float:
        constant = self.rules.constant
        temper = 1 - constant("temperament") * (self._subtype.agreeableness + 2)
        distrust = (1 - self._state.trust) * self._state.attachment
        return constant("rest_resistance") + constant("rest_distrust") * distrust * temper

    def _consider(self, acts: Set[Act], distress: int, resistance: int) -> None:
        """Whether the care step makes progress, is agreed to, or an agreement is taken back."""
        state, constant = self._state, self.rules.constant
        if acts & HARSH or resistance == TOP_TIER:
            state.accepted = False
            return
        calm = distress <= 1 and resistance <= 1
        if Act.CARE_BID in acts and calm and Act.LONG not in acts:
            helped = float(Act.SMALL_STEP in acts) + (Act.CHOICE_OFFER in acts)
            helped += self._subtype.cue_gain * (Act.CUE in acts)
            state.progress = _clip(
                state.progress + constant("progress_bid") + constant("progress_help") * helped, 0, 1
            )
        if resistance == 0 and state.progress >= 1:
            state.accepted = True
        if Act.DEFERRAL in acts and calm and state.trust >= constant("deferral_trust"):
            state.accepted = True

    def _speak(self, stream: random.Random, acts: Set[Act], distress: int, resistance: int) -> str:
        scenario, state = self._scenario, self._state
        if Act.SAYS_NOTHING in acts:
            parts = [line(stream, scenario, "hears_nothing")]
        else:
            parts = [line(stream, scenario, "distress", scenario.conflict, distress)]
        if state.accepted and resistance == 0:
            if Act.DEFERRAL in acts:
                parts.append(line(stream, scenario, "agrees_later"))
            elif acts & PRESSING:
                parts = [line(stream, scenario, "accepts", scenario.task)]
        elif resistance >= 2 or acts & PRESSING:
            parts.append(line(stream, scenario, "resistance", scenario.task, resistance))
        if self._subtype.disinhibition > 0.5 and distress >= 1 and stream.random() < 0.3:
            parts = parts[::-1]
        return in_manner(stream, " ".join(parts), self._subtype.style, 0.9 if state.clouded else 0.4)

    def _leaves(self, stream: random.Random, distress: int, resistance: int) -> bool:
        state = self._state
        state.refusals = state.refusals + 1 if resistance == TOP_TIER and distress >= 2 else 0
        return state.refusals >= 2 and stream.random() < self.rules.constant("leave_chance")

    def _latent(self) -> dict[str, float]:
        return {name: float(value) for name, value in dataclasses.asdict(self._state).items()}


def rest(patient: RulesPatient, scenario: Scenario, seed: int) -> PatientReply:
    """Open with a patient at rest: calm, trusting, holding on to nothing. For measurements of single acts."""
    calm = dataclasses.replace(scenario, opening="Hello.", opening_labels=())
    patient.open(calm, seed)
    patient._state.attachment, patient._state.trust = 0.0, 1.0
    patient._state.d = max(patient._rest_distress(), 0.0)
    patient._state.r = max(patient._rest_resistance(), 0.0)
    return PatientReply("Hello.", (), 0, 0, latent=patient._latent())


def _tier(stream: random.Random, level: float, slope: float) -> int:
    """A tier 0 .. 3 from an ordered logit at `level`."""
    chance = stream.random()
    return sum(chance < 1 / (1 + math.exp(-slope * (level - (k - 0.5)))) for k in range(1, TOP_TIER + 1))


def _saturate(amount: float, limit: float) -> float:
    return limit * (1 - math.exp(-amount / limit)) if limit > 0 else 0.0


def _bell(stream: random.Random) -> float:
    """About normal, variance 1, from `random()` alone: a sum of four uniforms."""
    return (sum(stream.random() for _ in range(4)) - 2) * math.sqrt(3)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
