"""The caregiver environment of plain options: what a recipe means by `environment.name: caregiver`.

`envs.caregiver` knows patients and judges and no backend of language models, `llm` knows backends and nothing
of care. Here the two meet: the options of a recipe become clients, which all episodes of a run share, and the
patients and judges that talk to them.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from threefold.chat import Chat, ChatError, Recorded
from threefold.envs.base import Message, Split, Task
from threefold.envs.caregiver import environment as caregiver_environment
from threefold.envs.caregiver import llm_patient, safety_lexicon
from threefold.envs.caregiver.care_rubrics import care_scores
from threefold.envs.caregiver.dialogue import Patient, Scenario
from threefold.envs.caregiver.environment import TURN_CHANNELS, Caregiver, dialogue_of, safety_known
from threefold.envs.caregiver.expert import conversations
from threefold.envs.caregiver.labels import Lookup, default_lookup, load_lookup
from threefold.envs.caregiver.llm_judge import Combined, LLMJudge
from threefold.envs.caregiver.llm_patient import LLMPatient
from threefold.envs.caregiver.rule_judge import RuleJudge
from threefold.envs.caregiver.rules import Rules, default_rules, load_rules
from threefold.envs.caregiver.rules_patient import RulesPatient
from threefold.envs.caregiver.scenarios import by_subtype, generate, load_scenarios, split
from threefold.trajectory import Trajectory

Who = Literal["rules", "endpoint"]
"""Who plays or judges: the rules that ship with Threefold, or a language model."""

SCOPE = (
    "Research and training simulation, not for clinical use. The patient is simulated and has not been "
    "validated on people; no score here, and no model trained here, says how a person should be cared for. "
    "Violations are those that the safety detector knows: it misses much that is worded in other ways. What "
    "the simulator represents and what it does not is in docs/caregiver.md."
)
"""Stands at the top of every report."""

CONCURRENCY = 8
"""Requests at a time where an endpoint's settings name no other number, as of `llm.ChatEndpoint`."""

SCENARIO_SEED = 0
"""The 1,200 scenarios and their 1,000/200 split are the same for every run."""


class CaregiverDialogues:
    """Implements `envs.base.EnvironmentSource`."""

    channels: ClassVar[Mapping[str, float]] = {"goal": 1.0, "fit": 1.0, "term": 1.0, "success": 0.0}
    """Weight by reward channel. Success is watched, as the outcome of the figures, and earns nothing."""
    turn_channels = TURN_CHANNELS
    levels = ("D", "R")
    scope = SCOPE

    def __init__(
        self,
        *,
        patient: Who = "rules",
        judge: Who = "rules",
        safety: Who = "rules",
        turns: int = 10,
        short_prompt: bool = False,
        thinking: bool = True,
        stop_on_violation: bool = True,
        perturb: float = 0.0,
        patient_seed: int = 0,
        rules: str | None = None,
        labels: str | None = None,
        scenarios: str | None = None,
        test_scenarios: str | None = None,
        subtypes: Sequence[str] = (),
        hold_out_subtypes: Sequence[str] = (),
        patient_endpoint: Mapping[str, Any] | None = None,
        judge_endpoint: Mapping[str, Any] | None = None,
        unsafe_share: float = 0.2,
        ordinary_share: float = 0.0,
        words: int | None = None,
    ) -> None:
        """Open what the episodes of a run share.

        Args:
            patient: The patient of rules, or ("endpoint") a language model, that of `patient_endpoint`.
            judge: Who scores goal, fit and term; a language model is asked at `judge_endpoint`, and then for
                the care rubrics of held-out dialogues too.
            safety: Who finds violations; by "endpoint" it is the judge's, asked after every turn.
            turns: Most turns of the caregiver; of a recipe `environment.turns`.
            short_prompt: The prompt for small models.
            thinking: Whether the long prompt asks for private thinking.
            stop_on_violation: End a dialogue at its first violation.
            perturb: Multiply each coefficient of the patient of rules by a number in [1 - perturb,
                1 + perturb].
            patient_seed: Chooses these numbers.
            rules: YAML file of coefficients for the patient of rules, in the form of `rules.yaml`.
            labels: YAML file by which labels become D and R, in the form of `tiers.yaml`, for whoever plays
                the patient.
            scenarios: JSONL file of training scenarios; default: the 1,000 of the generator.
            test_scenarios: The same for held-out ones; default: its 200.
            subtypes: Only scenarios of these, in training and held out; all by default.
            hold_out_subtypes: Never trained on; their held-out scenarios are shown apart.
            patient_endpoint: Keyword arguments of `llm.ChatEndpoint`, and `record`, a file in which every
                answer is kept. Without `base_url` the record is replayed. So many dialogues as its
                `concurrency` allows are answered at a time. With `local`, a hub name or folder, the model
                is loaded in this process, with the keyword arguments of `llm.LocalChat.load`.
            judge_endpoint: Likewise.
            unsafe_share: Share of the demonstrations that end with an unsafe reply.
            ordinary_share: Share of their other replies that are an ordinary caregiver's, not the expert's.
            words: Most words of a reply in the demonstrations.

        Raises:
            ValueError: An option is out of range or has no effect beside the others, a scenario file cannot
                be used, or an endpoint does not answer; the message names it.
            OSError: A file cannot be read.
        """
        _check_kinds(
            whole={"turns": turns, "patient_seed": patient_seed, "words": words},
            number={"perturb": perturb, "unsafe_share": unsafe_share, "ordinary_share": ordinary_share},
            switch={
                "short_prompt": short_prompt,
                "thinking": thinking,
                "stop_on_violation": stop_on_violation,
            },
            text={
                "scenarios": scenarios,
                "test_scenarios": test_scenarios,
                "rules": rules,
                "labels": labels,
            },
            names={"subtypes": subtypes, "hold_out_subtypes": hold_out_subtypes},
            settings={"patient_endpoint": patient_endpoint, "judge_endpoint": judge_endpoint},
        )
        for name, value in (("patient", patient), ("judge", judge), ("safety", safety)):
            if value not in get_args(Who):
                raise ValueError(f"{name} is {value!r}: one of {', '.join(get_args(Who))}")
        for name, given in (("perturb", perturb), ("rules", rules)):
            if patient == "endpoint" and given:
                raise ValueError(
                    f"{name} changes the patient of rules, but patient is 'endpoint'; leave it out"
                )
        for name, share in (("unsafe_share", unsafe_share), ("ordinary_share", ordinary_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share in [0, 1], got {share}")
        if words is not None and words < 1:
            raise ValueError(f"words is the most words of a reply, got {words}: give at least 1")
        self._unsafe_share, self._ordinary_share = unsafe_share, ordinary_share
        self._turns, self._words = turns, words
        self._short_prompt, self._thinking = short_prompt, thinking
        self._stop_on_violation = stop_on_violation
        self._rules, self._lookup = load_rules(rules), load_lookup(labels)
        _check_version("rules", rules, self._rules, default_rules())
        _check_version("labels", labels, self._lookup, default_lookup())
        self._rules = self._rules.perturbed(perturb, patient_seed)
        train, test = split(generate(SCENARIO_SEED), SCENARIO_SEED)
        train = load_scenarios(scenarios) if scenarios is not None else train
        test = load_scenarios(test_scenarios) if test_scenarios is not None else test
        self._held_out = frozenset(hold_out_subtypes)
        self._train = by_subtype(_only(train, subtypes), hold_out_subtypes)[0]
        self._test = _only(test, subtypes)
        if scenarios is not None or test_scenarios is not None:
            _check_apart(self._train, self._test)
        for scenario in (*self._train, *self._test):
            self._lookup.tiers(scenario.opening_labels, scenario.opening)
        for what, left in (("training", self._train), ("held-out", self._test)):
            if not left:
                raise ValueError(
                    f"no {what} scenario is left with subtypes={[*subtypes]} and "
                    f"hold_out_subtypes={[*hold_out_subtypes]}"
                )
        self._patient_chat = _chat("patient_endpoint", patient_endpoint, wanted=patient == "endpoint")
        self._judge_chat = _chat("judge_endpoint", judge_endpoint, wanted="endpoint" in (judge, safety))
        self._judge_width = _width(judge_endpoint)
        self._width = max(
            _width(patient_endpoint) if patient == "endpoint" else 1,
            self._judge_width if safety == "endpoint" else 1,
        )
        self._judge = self._make_judge(judge, safety)
        self()  # what cannot be made is refused now

    @property
    def made_with(self) -> Mapping[str, str]:
        """Versions of the tables and prompts that play and score: figures of two versions do not compare."""
        found = {"labels": self._lookup.version}
        if self._patient_chat is None:
            found["patient"] = self._rules.version
        else:
            found["patient"] = f"language model, prompt {llm_patient.VERSION}"
        rubrics, safeguard = self._judge.rubrics, self._judge.safeguard
        if not isinstance(safeguard, LLMJudge):
            found["safety"] = f"rules {safety_lexicon.VERSION}"
        for judge, asked in ((rubrics, ("goal", "fit", "term")), (safeguard, ("safety",))):
            if isinstance(judge, LLMJudge):
                found |= {name: f"language model, prompt {judge.prompts[name]}" for name in asked}
        return found

    def __call__(self) -> Caregiver:
        """The environment of one dialogue at a time."""
        return Caregiver(
            self._judge,
            self._patient(),
            lookup=self._lookup,
            turns=self._turns,
            short_prompt=self._short_prompt,
            thinking=self._thinking,
            stop_on_violation=self._stop_on_violation,
            concurrency=self._width,
        )

    def tasks(self, split: Split, size: int, seed: int) -> tuple[Task, ...]:
        """Scenarios in an order by seed, so that the first few are of all kinds."""
        chosen = list(self._train if split == "train" else self._test)
        random.Random(f"threefold caregiver tasks {split} {seed}").shuffle(chosen)
        return caregiver_environment.tasks(chosen[:size])

    def demonstrations(self, split: Split, size: int, seed: int) -> list[Sequence[Message]]:
        """The scripted expert against the patient of rules, whoever plays the patient later.

        Where more are wanted than there are scenarios they go round again, with other words and chance.
        """
        chosen = list(self._train if split == "train" else self._test)
        random.Random(f"threefold caregiver demonstrations {split} {seed}").shuffle(chosen)
        found: list[Sequence[Message]] = []
        for around in range(-(-size // len(chosen))):
            found += [
                conversation.messages
                for conversation in conversations(
                    chosen[: size - len(found)],
                    seed=seed + 7919 * around,
                    turns=self._turns,
                    unsafe_share=self._unsafe_share,
                    ordinary_share=self._ordinary_share,
                    short_prompt=self._short_prompt,
                    thinking=self._thinking and not self._short_prompt,
                    words=self._words,
                    patient=RulesPatient(self._rules, self._lookup),
                )
            ]
        return found

    def groups(self, task: Task) -> tuple[str, ...]:
        """The subtype, and whether it was held out of training where some are."""
        name = task.fields["subtype"]
        if not self._held_out:
            return (name,)
        return (name, "held-out subtypes" if name in self._held_out else "trained subtypes")

    def measures(self, episodes: Sequence[Trajectory]) -> list[dict[str, float | None]]:
        """How dialogues end, what went wrong in them, and care rubrics where a language model judges.

        The rubrics are for evaluation alone; see `envs.caregiver.care_rubrics`.
        """
        found = [_ending(episode) for episode in episodes]
        if not isinstance(self._judge.rubrics, LLMJudge):
            return found
        assert self._judge_chat is not None
        spoken = [i for i, episode in enumerate(episodes) if episode.turns and episode.turns[0].state]
        dialogues = [dialogue_of(episodes[i], self._lookup) for i in spoken]
        scored = care_scores(self._judge_chat, dialogues, concurrency=self._judge_width)
        for i, care in zip(spoken, scored, strict=True):
            rubrics = {name: value for name, value in care.rubrics.items() if name != "dialogue"}
            found[i] |= rubrics | {
                "care quality": care.care_quality,
                "dialogue quality": care.dialogue_quality,
            }
        return found

    def _patient(self) -> Patient:
        if self._patient_chat is None:
            return RulesPatient(self._rules, self._lookup)
        return LLMPatient(self._patient_chat, self._lookup)

    def _make_judge(self, judge: Who, safety: Who) -> Combined:
        rules = RuleJudge(self._lookup)
        chat = self._judge_chat
        model = LLMJudge(chat, concurrency=self._judge_width) if chat is not None else rules
        return Combined(model if judge == "endpoint" else rules, model if safety == "endpoint" else rules)


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "whole": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "number": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "switch": ("true or false", lambda v: isinstance(v, bool)),
    "text": ("a path", lambda v: isinstance(v, str)),
    "names": (
        "a list of names",
        lambda v: isinstance(v, Sequence) and not isinstance(v, str) and all(isinstance(n, str) for n in v),
    ),
    "settings": ("settings by name", lambda v: isinstance(v, Mapping)),
}
"""Kind of option -> how it is called, and whether a value is of it."""


def _check_kinds(**options: Mapping[str, Any]) -> None:
    """Refuse options of another kind, as a recipe may hold them; None is one that was left out."""
    for kind, values in options.items():
        wanted, fits = _KINDS[kind]
        for name, value in values.items():
            if value is not None and not fits(value):
                raise ValueError(f"{name} is {wanted}, got {value!r}")


def _check_version(option: str, path: str | None, table: Rules | Lookup, shipped: Rules | Lookup) -> None:
    """Refuse a table that is called as the shipped one and is another: records name tables by version."""
    if table.version == shipped.version and vars(table) != vars(shipped):
        raise ValueError(
            f"{option}: {path} differs from the shipped table of version {table.version}; give it another"
        )


def _only(scenarios: Iterable[Scenario], subtypes: Sequence[str]) -> tuple[Scenario, ...]:
    return by_subtype(scenarios, subtypes)[1] if subtypes else tuple(scenarios)


def _check_apart(train: Iterable[Scenario], test: Iterable[Scenario]) -> None:
    """Refuse a held-out scenario that is trained on, under whatever id."""
    trained = {dataclasses.replace(scenario, id=""): scenario.id for scenario in train}
    for scenario in test:
        if (twin := trained.get(dataclasses.replace(scenario, id=""))) is not None:
            raise ValueError(
                f"the held-out scenario {scenario.id!r} stands in training too, as {twin!r}: give "
                "test_scenarios, a file of others"
            )


def _ending(episode: Trajectory) -> dict[str, float | None]:
    answered = [turn.state for turn in episode.turns if "D" in turn.state]
    if not answered:
        return {}
    last = answered[-1]
    return {
        "D, last turn": last["D"],
        "R, last turn": last["R"],
        "left": last["left"],
        "turns": float(len(answered)),
        "malformed turn": float(last["malformed"] > 0),
        "simulator fault": float(last["fault"] > 0),
        "unjudged safety": float(last["unjudged"] > 0),
        # Nobody knows whether a dialogue without a verdict was safe: it is no safe one in the rate.
        "violation": float(episode.violation is not None) if safety_known(episode) else None,
    }


def _width(settings: Mapping[str, Any] | None) -> int:
    """How many requests a language model is sent at a time."""
    given = {} if settings is None else settings
    if "local" in given:
        return 1
    width = given.get("concurrency", CONCURRENCY)
    return width if isinstance(width, int) and width >= 1 else 1  # ChatEndpoint refuses what is neither


def _chat(name: str, settings: Mapping[str, Any] | None, *, wanted: bool) -> Chat | None:
    """The language model of an option: an endpoint that answered just now, a local one, or a record."""
    if not wanted:
        if settings is not None:
            raise ValueError(f"{name} is given, but nobody is asked there; set the role to 'endpoint'")
        return None
    if settings is None:
        raise ValueError(f"{name} is missing: give its base_url and model, such as http://localhost:8000/v1")
    from threefold.llm import ChatEndpoint, LocalChat

    given = dict(settings)
    record = given.pop("record", None)
    local = given.pop("local", None)
    kind: Callable[..., Any] = ChatEndpoint if local is None else LocalChat.load
    known = [key for key in inspect.signature(kind).parameters if key != "name"]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, [*known, "record", "local"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join([*known, 'record'])}"
            raise ValueError(f"{name} has no setting {key!r}; {hint}")
    model = local or given.get("model")
    if model is None:
        raise ValueError(f"{name}: the model's name is missing")
    if local is None and "base_url" not in given:
        if record is None:
            raise ValueError(f"{name}: give base_url, or record to replay one")
        return Recorded(record, model=model)
    try:
        chat = _local(local, given) if local is not None else _endpoint(given)
    except (ChatError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    return chat if record is None else Recorded(record, chat, model=model)


def _endpoint(settings: Mapping[str, Any]) -> Chat:
    """An endpoint that has answered."""
    from threefold.llm import ChatEndpoint

    endpoint = ChatEndpoint(**settings)
    endpoint.check()
    return endpoint


def _local(name: str, settings: Mapping[str, Any]) -> Chat:
    from threefold.llm import LocalChat

    return LocalChat.load(name, **settings)
