"""ScienceWorld: thirty kinds of school-science task in a simulated house (Wang et al., arXiv 2203.07540).

Splits. Every kind has variations (other substances, animals, places), 7,207 in all, which the engine parts
into training, development and test. Here

    train     `kinds`, training variations
    dev       `kinds`, development variations
    seen      `kinds`, test variations
    unseen    `unseen_kinds`, test variations: kinds of task that training does not have (or "test")

By default a kind or two of each topic are held out, those that build on what the others of the topic teach
(boil, melt and freeze are trained on, "change the state of" is not). `ELECTRICITY` are the kinds of ReSkill
(arXiv 2606.01619): circuits and conductivity are trained on, renewable energy and unknown substances are not.

A task is a kind and a variation, so all members of a group play the same one, whatever the run's seed. The
engine (1.2.3) keeps things in sets by their identity, so what it lists first, which wire conducts first and
what a thermometer says would change from one play to the next; Java is therefore told to give all objects
one identity hash (`EQUAL_HASHES`). Actions then have the same answers in every play, process and machine.

Actions are the engine's templates with names of things in them ("focus on OBJ"), which the opening lists;
what it does not understand costs a turn and changes nothing. `admissible` asks for all that make sense, often
a thousand, and is slow. The score is the engine's as a share, in [0, 1]; focusing on the wrong thing ends the
task at 0 (the engine says -100). Success is a score of `success_score`.

Installed with `threefold[scienceworld]` and a Java runtime (Apache-2.0, version 1.2.3).
"""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from threefold.envs.base import EpisodeScore, Message, Observation, Task
from threefold.envs.java import EQUAL_HASHES, EngineDied, JavaEngine
from threefold.envs.text_game import answered, in_turn, parse, scored, told
from threefold.trajectory import Trajectory

VARIATIONS = {
    "boil": (14, 7, 9),
    "change-the-state-of-matter-of": (14, 7, 9),
    "chemistry-mix": (16, 8, 8),
    "chemistry-mix-paint-secondary-color": (18, 9, 9),
    "chemistry-mix-paint-tertiary-color": (18, 9, 9),
    "find-animal": (150, 75, 75),
    "find-living-thing": (150, 75, 75),
    "find-non-living-thing": (150, 75, 75),
    "find-plant": (150, 75, 75),
    "freeze": (14, 7, 9),
    "grow-fruit": (62, 31, 33),
    "grow-plant": (62, 31, 33),
    "identify-life-stages-1": (6, 3, 5),
    "identify-life-stages-2": (4, 2, 4),
    "inclined-plane-determine-angle": (84, 42, 42),
    "inclined-plane-friction-named-surfaces": (692, 346, 348),
    "inclined-plane-friction-unnamed-surfaces": (80, 40, 42),
    "lifespan-longest-lived": (62, 31, 32),
    "lifespan-longest-lived-then-shortest-lived": (62, 31, 32),
    "lifespan-shortest-lived": (62, 31, 32),
    "measure-melting-point-known-substance": (218, 109, 109),
    "measure-melting-point-unknown-substance": (150, 75, 75),
    "melt": (14, 7, 9),
    "mendelian-genetics-known-plant": (60, 30, 30),
    "mendelian-genetics-unknown-plant": (240, 120, 120),
    "power-component": (10, 5, 5),
    "power-component-renewable-vs-nonrenewable-energy": (10, 5, 5),
    "test-conductivity": (450, 225, 225),
    "test-conductivity-of-unknown-substances": (300, 150, 150),
    "use-thermometer": (270, 135, 135),
}
"""Training, development and test variations of each kind, numbered through in this order."""
UNSEEN_KINDS = (
    "change-the-state-of-matter-of",
    "chemistry-mix-paint-tertiary-color",
    "find-animal",
    "grow-fruit",
    "identify-life-stages-2",
    "inclined-plane-friction-unnamed-surfaces",
    "lifespan-longest-lived-then-shortest-lived",
    "measure-melting-point-unknown-substance",
    "mendelian-genetics-unknown-plant",
    "power-component-renewable-vs-nonrenewable-energy",
    "test-conductivity-of-unknown-substances",
)
KINDS = tuple(kind for kind in VARIATIONS if kind not in UNSEEN_KINDS)
ELECTRICITY = {
    "kinds": ("power-component", "test-conductivity"),
    "unseen_kinds": (
        "power-component-renewable-vs-nonrenewable-energy",
        "test-conductivity-of-unknown-substances",
    ),
}
"""Options that play the kinds of ReSkill's study."""
SPLITS = {"train": 0, "dev": 1, "seen": 2, "unseen": 2, "test": 2}
TRIED = 3
"""Solutions of a kind that may be too long before the kind is left out of the demonstrations."""
NOT_UNDERSTOOD = "No known action matches that input."
"""What the engine says to what it does not understand."""


class ScienceWorld:
    """Implements `envs.base.EnvironmentSource`."""

    channels = {"score": 1.0, "success": 0.0, "valid": 0.0}  # noqa: RUF012
    """Weight by reward channel of an episode: the score at its end, success, the share of valid actions."""
    turn_channels = ("gain",)
    splits = ("dev", "seen", "unseen")
    workers = 2

    def __init__(
        self,
        *,
        kinds: Sequence[str] = KINDS,
        unseen_kinds: Sequence[str] = UNSEEN_KINDS,
        simplifications: str = "easy",
        success_score: float = 1.0,
        turns: int = 50,
    ) -> None:
        """Nothing is started yet.

        Args:
            kinds: What training, `dev` and `seen` are of.
            unseen_kinds: What `unseen` is of.
            simplifications: The engine's, separated by commas; "easy" is all of them (open doors and
                containers, teleporting, plants that water themselves), "" none. ReSkill plays "easy".
            success_score: Least score of a success, in (0, 1]; ReSkill trains on more than 0.7, reports 1.
            turns: Actions before a task is cut off; of a recipe `environment.turns`.

        Raises:
            ModuleNotFoundError: The package or Java is missing.
            ValueError: A kind does not exist or is in both lists, or a number is out of range.
        """
        for key, names in (("kinds", kinds), ("unseen_kinds", unseen_kinds)):
            for name in names:
                if name not in VARIATIONS:
                    near = difflib.get_close_matches(str(name), VARIATIONS, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise ValueError(f"{key}: there is no kind of task {name!r}{hint}")
        if both := sorted({*kinds} & {*unseen_kinds}):
            raise ValueError(f"{both[0]} is in kinds and in unseen_kinds, so it would not be unseen")
        if not kinds or turns < 1 or not 0 < success_score <= 1:
            raise ValueError(
                f"kinds must name one at least, turns be 1 at least and success_score in (0, 1]; got "
                f"{[*kinds]}, {turns} and {success_score}"
            )
        self._kinds, self._unseen_kinds = tuple(kinds), tuple(unseen_kinds)
        self._simplifications, self._success, self._turns = simplifications, success_score, turns
        self._engine = JavaEngine(
            "ScienceWorld",
            "scienceworld",
            "scienceworld",
            "scienceworld.runtime.pythonapi.PythonInterface",
            options=EQUAL_HASHES,
        )
        self._solutions: dict[str, tuple[bool, list[Message]]] = {}

    def __call__(self) -> ScienceTask:
        """The environment of one task at a time; all of this source share a Java process."""
        return ScienceTask(self._engine, self._simplifications, self._success, self._turns)

    def close(self) -> None:
        """End the Java process."""
        self._engine.close()

    def tasks(self, split: str, size: int, seed: int) -> list[Task]:
        """Up to `size` tasks of a split, the kinds in turn; `seed` is of the order."""
        kinds = self._unseen_kinds if split in ("unseen", "test") else self._kinds
        return in_turn([_tasks(split, kind, seed) for kind in kinds])[:size]

    def demonstrations(self, split: str, size: int, seed: int) -> list[list[Message]]:
        """The engine's own solutions of up to `size` tasks, the kinds in turn; those that do not succeed
        within the turns are left out, and so is a kind whose first few do not.

        Raises:
            ValueError: There is none.
        """
        engine_ran, found = self._engine.process is not None, []
        short: Counter[object] = Counter()
        too_long: Counter[object] = Counter()
        game = self()
        try:
            for task in self.tasks(split, sum(map(sum, VARIATIONS.values())), seed):
                kind = task.fields["kind"]
                if not short[kind] and too_long[kind] == TRIED:
                    continue
                if task.id not in self._solutions:
                    self._solutions[task.id] = game.solution(task)
                success, messages = self._solutions[task.id]
                (short if success else too_long)[kind] += 1
                found += [messages] if success else []
                if len(found) == size:
                    break
        finally:
            game.close()
            if not engine_ran:
                self.close()
        if not found:
            raise ValueError(
                f"no solution of a {split} task of {', '.join(self._kinds)} ends within {self._turns} turns; "
                "raise environment.turns, or set warm_start.dialogues to 0"
            )
        return found

    @staticmethod
    def groups(task: Task) -> tuple[str, ...]:
        """Scores are shown apart by kind."""
        return (str(task.fields["kind"]),)


def _tasks(split: str, kind: str, seed: int) -> list[Task]:
    part, name = SPLITS[split], "unseen" if split == "test" else split
    first = sum(VARIATIONS[kind][:part])
    numbers = list(range(first, first + VARIATIONS[kind][part]))
    random.Random(f"{name}/{kind}/{seed}").shuffle(numbers)
    return [Task(f"{kind}-{number}", {"kind": kind, "variation": number}) for number in numbers]


class ScienceTask:
    """One task. Reward channels of a turn: "gain" (what the action added to the score) and "valid"."""

    def __init__(self, engine: JavaEngine, simplifications: str, success: float, turns: int) -> None:
        self._engine, self._simplifications = engine, simplifications
        self._success, self._limit = success, turns
        self._world: Any = None
        self._turn, self._score = 0, 0.0

    @property
    def admissible(self) -> tuple[str, ...]:
        """All actions that make sense now; the engine tries every template with everything in sight."""
        return tuple(sorted(self._ask("getValidActionObjectCombinations")))

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        kind, variation = str(task.fields["kind"]), int(task.fields["variation"])
        try:
            self._load(kind, variation)
        except EngineDied:  # while nobody played in it
            self._world = None
            self._load(kind, variation)
        return self._opening()

    def _opening(self) -> Observation:
        wanted, seen = self._ask("getTaskDescription"), self._ask("step", "look around")
        self._turn, self._score = 0, max(0.0, self._now())  # some goals are met from the start
        actions = ", ".join(self._ask("getPossibleActions"))
        text = f"{wanted.strip()}\n\n{seen.strip()}\n\nActions (OBJ is the name of a thing): {actions}"
        return Observation(messages=told(text), state=self._state())

    def _load(self, kind: str, variation: int, solve: bool = False) -> None:
        if self._world is None:
            self._world = self._engine.game()
        self._ask("load", kind, variation, self._simplifications, solve)

    def solution(self, task: Task) -> tuple[bool, list[Message]]:
        """Whether the engine's own solution succeeds within the turns, and its dialogue."""
        kind, variation = str(task.fields["kind"]), int(task.fields["variation"])
        for _ in range(2):  # the first solution of a kind in a Java process may differ from all later ones
            self._load(kind, variation, solve=True)
        actions = [str(action) for action in self._ask("getGoldActionSequence")]
        seen = self.reset(task, 0, 0)
        messages = list(seen.messages)
        for action in actions:
            seen = self.step(action)
            messages.append({"role": "assistant", "content": action})
            if seen.done:
                break
            messages += seen.messages
        return bool(seen.success), messages

    def step(self, action_text: str) -> Observation:
        action, before = parse(action_text), self._score
        text = str(self._ask("step", action)).strip()
        self._turn += 1
        score = self._now()
        self._score = max(0.0, score)
        success = (
            True if score >= self._success else False if score < 0 or self._ask("getCompleted") else None
        )
        return answered(
            text,
            action,
            rewards={"gain": self._score - before, "valid": float(text != NOT_UNDERSTOOD)},
            state=self._state(),
            success=success,
            out_of_turns=self._turn >= self._limit,
        )

    def _now(self) -> float:
        """The engine's score now: to the hundredth, as it is reported; negative where the task is lost."""
        return round(float(self._ask("getScore")), 2)

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._world is None:
            raise EngineDied("no task is open here; begin one")
        return self._engine.call(self._world, method, *arguments)

    def _state(self) -> dict[str, float]:
        return {"turn": float(self._turn), "score": self._score}

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return [scored(episode, "score") for episode in episodes]

    def close(self) -> None:
        self._world = None
