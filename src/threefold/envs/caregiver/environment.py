"""The dialogue as an environment: the agent is the caregiver, the patient and the judge are handed in.

Turn channels are the improvements of the patient's tiers (arXiv 2606.08875, Eq. 2),

    distress_t = D_{t-1} - D_t,     resistance_t = R_{t-1} - R_t,

with D_0, R_0 those of the annotated opening. Trajectory channels are the judge's goal, fit and term, and the
violation is what its safety check finds.

An episode ends (the paper leaves this open) when the care step is agreed to and D = R = 0 for two turns, when
the patient leaves, at a violation of safety if `stop_on_violation`, or after `turns` turns.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from threefold.envs.base import EpisodeScore, Observation, Task
from threefold.envs.caregiver.dialogue import (
    Dialogue,
    Exchange,
    Judge,
    Judgement,
    Patient,
    PatientReply,
    SafetyFinding,
    Scenario,
)
from threefold.envs.caregiver.hearing import Heard, hear
from threefold.envs.caregiver.labels import Lookup, default_lookup
from threefold.envs.caregiver.prompts import system_prompt
from threefold.envs.caregiver.rules_patient import RulesPatient
from threefold.envs.caregiver.scenarios import from_fields, seen
from threefold.trajectory import Trajectory, Violation

CHANNELS = ("goal", "fit", "term")
"""Trajectory channels, scored by the judge."""
TURN_CHANNELS = ("distress", "resistance")
CALM_TURNS = 2
"""Turns in a row with D = R = 0 that end a dialogue in which the care step was agreed to."""


def tasks(scenarios: Iterable[Scenario]) -> tuple[Task, ...]:
    """Scenarios as tasks; the fields hold the whole scenario, of which the caregiver sees its view alone."""
    return tuple(Task(scenario.id, dataclasses.asdict(scenario)) for scenario in scenarios)


class Caregiver:
    """Implements `threefold.envs.base.Environment`."""

    def __init__(
        self,
        judge: Judge,
        patient: Patient | None = None,
        *,
        turns: int = 10,
        short_prompt: bool = False,
        thinking: bool = True,
        stop_on_violation: bool = True,
        lookup: Lookup | None = None,
        concurrency: int = 1,
    ) -> None:
        """Make an environment for one dialogue at a time.

        Args:
            judge: Scores whole dialogues and checks safety.
            patient: Default: the patient of rules. Each environment needs its own.
            turns: Most turns of the caregiver, at least 1.
            short_prompt: The prompt for small models.
            thinking: Whether the long prompt asks for private thinking.
            stop_on_violation: Check safety after every turn, and end the dialogue at once at a violation. If
                False, safety is judged once at the end.
            lookup: The table of labels, the same as the patient's; default: the shipped one.
            concurrency: How many dialogues of a batch may be answered at a time, in threads: for a patient or
                a safety check that waits for an endpoint. Patients, judge and their chats must allow it.

        Raises:
            ValueError: `turns` or `concurrency` is below 1.
        """
        if turns < 1:
            raise ValueError(f"a dialogue needs at least one turn, got turns={turns}")
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}: give at least 1")
        self.judge = judge
        self.patient = patient if patient is not None else RulesPatient(lookup=lookup)
        self.turns = turns
        self.short_prompt, self.thinking = short_prompt, thinking
        self.stop_on_violation = stop_on_violation
        self.lookup = lookup or default_lookup()
        self.concurrency = concurrency

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        """Open a dialogue: the prompt with what may be known, and the patient's opening.

        Raises:
            ValueError: The task's fields are no scenario; see `scenarios.from_fields`.
        """
        scenario = from_fields(task.fields, f"task {task.id!r}")
        opening = self.patient.open(scenario, seed)
        self._member = member
        self._dialogue = Dialogue(scenario, opening)
        self._malformed = self._unjudged = self._faults = 0
        prompt = system_prompt(scenario, short=self.short_prompt, thinking=self.thinking)
        return Observation(
            messages=(
                {"role": "system", "content": prompt},
                {"role": "user", "content": seen(opening.labels, opening.utterance)},
            ),
            state={"D": float(opening.distress), "R": float(opening.resistance)},
        )

    def step(self, action_text: str) -> Observation:
        """Let the patient hear what was said aloud, and answer."""
        heard = hear(action_text, self._dialogue.scenario.name)
        before = self._last()
        reply = self.patient.reply(heard.said, self._member)
        self._dialogue = dataclasses.replace(
            self._dialogue, exchanges=(*self._dialogue.exchanges, Exchange(heard.said, reply))
        )
        self._malformed += heard.malformed
        self._faults += reply.latent.get("fault", 0.0) > 0
        violation = self._violation() if self.stop_on_violation else None
        terminated = reply.left or self._settled()
        truncated = not terminated and len(self._dialogue.exchanges) >= self.turns
        ended = terminated or truncated or violation is not None
        return Observation(
            messages=({"role": "user", "content": seen(reply.labels, reply.utterance)},),
            action=heard.said,
            rewards={
                "distress": float(before.distress - reply.distress),
                "resistance": float(before.resistance - reply.resistance),
            },
            state=self._state(reply, heard),
            terminated=terminated,
            truncated=truncated,
            success=self._succeeded(reply, violation) if ended else None,
            violation=violation,
        )

    def score(self, episodes: Sequence[Trajectory]) -> list[EpisodeScore]:
        """Goal, fit and term of each dialogue, and its violation where that was not known yet.

        A channel that the judge cannot score is None. So are all channels of a dialogue without a turn. One
        whose safety could not be judged is void: neither channels nor turns may reinforce what it said.
        """
        dialogues = [dialogue_of(episode, self.lookup) for episode in episodes]
        spoken = [i for i, dialogue in enumerate(dialogues) if dialogue.exchanges]
        scores = [EpisodeScore(dict.fromkeys(CHANNELS), violation=e.violation) for e in episodes]
        judgements = self.judge.judge([dialogues[i] for i in spoken])
        for i, judgement in zip(spoken, judgements, strict=True):
            scores[i] = dataclasses.replace(
                scores[i], rewards=_channels(judgement), success=_success(episodes[i])
            )
        unchecked = [i for i in spoken if self._needs_safety(episodes[i])]
        findings = self.judge.safety([dialogues[i] for i in unchecked]) if unchecked else ()
        for i, finding in zip(unchecked, findings, strict=True):
            if finding is None:
                scores[i] = EpisodeScore(dict.fromkeys(CHANNELS), void=True)
            elif (violation := _first(finding)) is not None:
                scores[i] = EpisodeScore(scores[i].rewards, success=False, violation=violation)
        return scores

    def close(self) -> None:
        """Nothing is held."""

    def _last(self) -> PatientReply:
        exchanges = self._dialogue.exchanges
        return exchanges[-1].patient if exchanges else self._dialogue.opening

    def _settled(self) -> bool:
        last = [exchange.patient for exchange in self._dialogue.exchanges[-CALM_TURNS:]]
        calm = all(reply.distress == reply.resistance == 0 for reply in last)
        return len(last) == CALM_TURNS and calm and last[-1].accepted

    def _violation(self) -> Violation | None:
        (finding,) = self.judge.safety([self._dialogue])
        self._unjudged += finding is None
        return _first(finding)

    def _succeeded(self, reply: PatientReply, violation: Violation | None) -> bool | None:
        """None where nobody knows yet: safety that could not be judged is asked for again in `score`."""
        known = self.stop_on_violation and not self._unjudged
        return reply.accepted and violation is None if known else None

    def _needs_safety(self, episode: Trajectory) -> bool:
        """Whether no check stands behind the absence of a violation."""
        if episode.violation is not None:
            return False
        return not self.stop_on_violation or episode.turns[-1].state.get("unjudged", 0.0) > 0

    def _state(self, reply: PatientReply, heard: Heard) -> dict[str, float]:
        flags = {
            "accepted": reply.accepted,
            "left": reply.left,
            "silent": heard.silent,
            "only_thinking": heard.only_thinking,
            "other_role": heard.other_role,
            "imitates_patient": heard.imitates_patient,
            "overlong": heard.overlong,
            "malformed": self._malformed,
            "unjudged": self._unjudged,
            "repaired": reply.repaired,
            "fault": self._faults,
        }
        tiers = {"D": float(reply.distress), "R": float(reply.resistance)}
        return tiers | {name: float(value) for name, value in flags.items()}


def dialogue_of(episode: Trajectory, lookup: Lookup | None = None) -> Dialogue:
    """The dialogue that a trajectory of this environment records, for judges and reports.

    Raises:
        ValueError: The trajectory's task is no scenario.
    """
    lookup = lookup or default_lookup()
    scenario = from_fields(episode.task, f"task {episode.task_id!r}")
    distress, resistance = lookup.tiers(scenario.opening_labels, scenario.opening)
    opening = PatientReply(scenario.opening, scenario.opening_labels, distress, resistance)
    exchanges = []
    for turn in episode.turns:
        if "D" not in turn.state:
            break  # the environment failed in this turn: it has no answer
        labels, utterance = _unseen(turn.observation, lookup)
        reply = PatientReply(
            utterance,
            labels,
            int(turn.state["D"]),
            int(turn.state["R"]),
            accepted=bool(turn.state["accepted"]),
            left=bool(turn.state["left"]),
            repaired=int(turn.state.get("repaired", 0)),
        )
        exchanges.append(Exchange(turn.action, reply))
    return Dialogue(scenario, opening, tuple(exchanges))


def safety_known(episode: Trajectory) -> bool:
    """Whether it is settled if a safety rule was broken; False for a void dialogue, see `score`."""
    answered = [turn for turn in episode.turns if "D" in turn.state]
    return episode.violation is not None or not answered or any(turn.rewards for turn in answered)


def _unseen(text: str, lookup: Lookup) -> tuple[tuple[str, ...], str]:
    """Labels and utterance from what `seen` made of them."""
    match = re.match(r"\[([^\]]*)\] ?(.*)\Z", text, re.DOTALL)
    if match is None:
        return (), text
    labels = tuple(part for part in match.group(1).split("; ") if part)
    return (labels, match.group(2)) if all(name in lookup.labels for name in labels) else ((), text)


def _success(episode: Trajectory) -> bool:
    """Of a dialogue whose safety is known, or is judged next; one that a limit cut off has an outcome too."""
    answered = [turn.state for turn in episode.turns if "D" in turn.state]
    return bool(answered and answered[-1]["accepted"]) and episode.violation is None


def _channels(judgement: Judgement) -> dict[str, float | None]:
    return {name: getattr(judgement, name) for name in CHANNELS}


def _first(finding: SafetyFinding | None) -> Violation | None:
    first: Any = finding.first if finding is not None else None
    return Violation(*first) if first else None
