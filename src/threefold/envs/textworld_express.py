"""TextWorldExpress: eight text games, thousands of steps a second (Jansen and Cote, arXiv 2208.01174).

    cookingworld    follow a recipe                      coin           find the coin
    twc             put things where they belong         mapreader      fetch the coin from a room on a map
    arithmetic      solve a sum, act on the result       sorting        put things into a box by quantity
    simonsays       do as Simon says                     peckingorder   do as the book says, step by step

Splits. The engine has 1,000 seeds each for training, development and test, with words of their own in some
games. Here

    train     `games`, training seeds
    dev       `games`, development seeds
    seen      `games`, test seeds: new rooms and things, the same kinds of task
    unseen    `unseen_games`, test seeds: kinds of task that training does not have ("test" is another name)

A game may be in both lists where `unseen_parameters` make it another one (more rooms, say).

A task is a game and a seed, so all members of a group play the same one, whatever the run's seed. The engine
has no chance in it once a game is made.

Sorting games of one seed share their things inside the engine (1.1.0): what one takes is gone from the
other, and a group plays one seed. So where another member has acted since, a sorting game is made again and
its actions are repeated. A test plays all eight side by side.

Actions are those that the engine names as admissible, and no others: anything else costs a turn, changes
nothing and is answered with a sentence. The score is the engine's, in [0, 1] and 1 at success; it calls a
game that was lost -1, which is 0 here.

Installed with `threefold[textworld]` and a Java runtime (Apache-2.0, version 1.1.0).
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from threefold.envs.base import EpisodeScore, Message, Observation, Task
from threefold.envs.java import EngineDied, JavaEngine
from threefold.envs.text_game import answered, in_turn, parse, scored, told
from threefold.trajectory import Trajectory

GAMES = (
    "cookingworld",
    "twc",
    "coin",
    "mapreader",
    "arithmetic",
    "sorting",
    "simonsays",
    "peckingorder",
)
UNSEEN_GAMES = ("cookingworld", "peckingorder")
"""Held out by default: both gather what a text asks for, as `mapreader`, `arithmetic` and `simonsays` do."""
TRAINED_GAMES = tuple(name for name in GAMES if name not in UNSEEN_GAMES)
SEEDS = {"train": range(1_000), "dev": range(10_000, 11_000), "test": range(20_000, 21_000)}
"""The engine's, by fold."""
SPLITS = {"train": "train", "dev": "dev", "seen": "test", "unseen": "test", "test": "test"}
"""The fold that a split's seeds are of."""
NOTHING = "That is not one of the actions."

Parameters = Mapping[str, Mapping[str, int]]
Made = tuple[str, str, int, str]
"""What makes a game: its kind, parameters, seed and fold."""


class TextWorldExpress:
    """Implements `envs.base.EnvironmentSource`."""

    channels = {"score": 1.0, "success": 0.0, "valid": 0.0}  # noqa: RUF012
    """Weight by reward channel of an episode: the score at its end, success, the share of valid actions."""
    turn_channels = ("gain",)
    splits = ("dev", "seen", "unseen")
    workers = 2

    def __init__(
        self,
        *,
        games: Sequence[str] = TRAINED_GAMES,
        unseen_games: Sequence[str] = UNSEEN_GAMES,
        parameters: Parameters | None = None,
        unseen_parameters: Parameters | None = None,
        turns: int = 50,
        show_actions: bool = True,
        wanderings: int = 8,
    ) -> None:
        """Nothing is started yet.

        Args:
            games: What training, `dev` and `seen` are of.
            unseen_games: What `unseen` is of.
            parameters: The engine's parameters by game, such as {"coin": {"numLocations": 3}}; its own
                defaults are full-sized games.
            unseen_parameters: Those of the unseen split; `parameters` where a game is not in it.
            turns: Actions before a game is cut off; of a recipe `environment.turns`.
            show_actions: Whether every message ends with the admissible actions.
            wanderings: Random games of a task that `demonstrations` takes the best of.

        Raises:
            ModuleNotFoundError: The package or Java is missing.
            ValueError: A game does not exist, or one is in both lists and the same in both.
        """
        self._parameters = dict(parameters or {})
        self._unseen_parameters = {**self._parameters, **(unseen_parameters or {})}
        for key, names in (
            ("games", games),
            ("unseen_games", unseen_games),
            ("parameters", self._parameters),
            ("unseen_parameters", unseen_parameters or ()),
        ):
            for name in names:
                if name not in GAMES:
                    near = difflib.get_close_matches(str(name), GAMES, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise ValueError(f"{key}: there is no game {name!r}{hint} (games: {', '.join(GAMES)})")
        for name in {*games} & {*unseen_games}:
            if self._parameters.get(name) == self._unseen_parameters.get(name):
                raise ValueError(
                    f"{name} is in games and in unseen_games, so it would not be unseen; take it out of one, "
                    "or give it other unseen_parameters"
                )
        if not games or wanderings < 1 or turns < 1:
            raise ValueError(
                f"games must name one at least, turns and wanderings be 1 at least; got {[*games]}, {turns} "
                f"and {wanderings}"
            )
        self._games, self._unseen_games = tuple(games), tuple(unseen_games)
        self._turns, self._show_actions, self._wanderings = turns, show_actions, wanderings
        self._engine = TextWorldEngine()

    def __call__(self) -> TextWorldGame:
        """The environment of one game at a time; all of this source share a Java process."""
        return TextWorldGame(self._engine, turns=self._turns, show_actions=self._show_actions)

    def close(self) -> None:
        """End the Java process."""
        self._engine.close()

    def tasks(self, split: str, size: int, seed: int) -> list[Task]:
        """Up to `size` games of a split, the kinds in turn; `seed` is of the order."""
        unseen = split in ("unseen", "test")
        games = self._unseen_games if unseen else self._games
        parameters = self._unseen_parameters if unseen else self._parameters
        return in_turn([_tasks(split, g, parameters.get(g, {}), seed) for g in games])[:size]

    @staticmethod
    def groups(task: Task) -> tuple[str, ...]:
        """Scores are shown apart by game."""
        return (str(task.fields["game"]),)

    def demonstrations(self, split: str, size: int, seed: int) -> list[list[Message]]:
        """Games of a player who chooses among the admissible actions at random, of several tries the best.

        They show the words and a little luck, and no strategy. (The engine's own solutions differ from one
        call to the next.)
        """
        chance = random.Random(f"demonstrations/{seed}")
        pool, engine_ran = self.tasks(split, size, seed), self._engine.process is not None
        game = self()
        try:
            return [
                max(
                    (game.wander(pool[number % len(pool)], chance) for _ in range(self._wanderings)),
                    key=lambda played: (played[0], -len(played[1])),
                )[1]
                for number in range(size)
            ]
        finally:
            game.close()
            if not engine_ran:
                self.close()


def _tasks(split: str, game: str, parameters: Mapping[str, int], seed: int) -> list[Task]:
    fold = SPLITS[split]
    name = "unseen" if split == "test" else split
    seeds = list(SEEDS[fold])
    random.Random(f"{name}/{game}/{seed}").shuffle(seeds)
    fields = {"game": game, "fold": fold, "parameters": dict(parameters)}
    return [Task(f"{name}-{game}-{number}", {**fields, "seed": number}) for number in seeds]


class TextWorldEngine(JavaEngine):
    """The games of one Java process. Loading a kind takes longer than making a game of it, so those that are
    loaded and not in use are kept."""

    def __init__(self) -> None:
        super().__init__(
            "TextWorldExpress", "textworld_express", "textworld", "textworldexpress.runtime.PythonInterface"
        )
        self.last_to_act: dict[Made, Any] = {}
        """Of the games that are being played and made alike."""
        self._idle: dict[tuple[int, str, str], list[Any]] = {}

    def loaded(self, kind: str, parameters: str) -> Any:
        """A Java object that makes games of a kind.

        Raises:
            ValueError: The engine does not accept the parameters.
        """
        if self.process is not None and (idle := self._idle.get((self.lives, kind, parameters))):
            return idle.pop()
        game = self.game()
        if problem := self.call(game, "load", kind, parameters):
            raise ValueError(f"{kind} with parameters {parameters!r}: {problem.strip()}")
        return game

    def release(self, life: int, kind: str, parameters: str, game: Any) -> None:
        """Let another episode have a Java object, which the process of that life has made."""
        self._idle.setdefault((life, kind, parameters), []).append(game)

    def close(self) -> None:
        super().close()
        self._idle.clear()


class TextWorldGame:
    """One game. Reward channels of a turn: "gain" (what the action added to the score) and "valid"."""

    def __init__(self, engine: TextWorldEngine, *, turns: int, show_actions: bool) -> None:
        self._engine, self._limit, self._show_actions = engine, turns, show_actions
        self._game: Any = None
        self._life = 0
        self._made: Made = ("", "", 0, "")
        self._actions_taken: list[str] = []
        self._turn, self._score = 0, 0.0
        self._actions: dict[str, str] = {}

    @property
    def admissible(self) -> tuple[str, ...]:
        """The actions that are understood now."""
        return tuple(self._actions.values())

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self.close()
        fields = task.fields
        parameters = ",".join(f"{name}={value}" for name, value in fields.get("parameters", {}).items())
        self._made = (str(fields["game"]), parameters, int(fields["seed"]), str(fields["fold"]))
        try:
            made = self._make()
        except EngineDied:  # while nobody played in it
            made = self._make()
        self._turn, self._score, self._actions_taken = 0, 0.0, []
        self._look(made)
        wanted = " ".join(str(self._ask("getTaskDescription")).split())
        text = f"{wanted}\n\n{made['observation'].strip()}"
        return Observation(messages=told(text, self._listed), state=self._state())

    def _make(self) -> Mapping[str, Any]:
        self._game = self._engine.loaded(*self._made[:2])
        self._life = self._engine.lives
        return self._begin()

    def _begin(self) -> Mapping[str, Any]:
        self._engine.last_to_act[self._made] = self._game
        return json.loads(self._ask("generateNewGameJSON", *self._made[2:], False))

    def _act(self, action: str) -> Mapping[str, Any]:
        if self._made[0] == "sorting" and self._engine.last_to_act.get(self._made) is not self._game:
            self._begin()
            for earlier in self._actions_taken:
                self._ask("stepJSON", earlier)
        self._actions_taken.append(action)
        return json.loads(self._ask("stepJSON", action))

    def step(self, action_text: str) -> Observation:
        said = parse(action_text)
        action = self._actions.get(said)
        self._turn += 1
        text, success, before = NOTHING, None, self._score
        if action is not None:
            answer = self._act(action)
            self._look(answer)
            text = answer["observation"].strip()
            self._score = max(0.0, float(answer["score"]))
            if answer["tasksuccess"] or answer["taskfailure"]:
                success = bool(answer["tasksuccess"])
        return answered(
            text,
            said,
            rewards={"gain": self._score - before, "valid": float(action is not None)},
            state=self._state(),
            success=success,
            out_of_turns=self._turn >= self._limit,
            actions=self._listed,
        )

    def wander(self, task: Task, chance: random.Random) -> tuple[float, list[Message]]:
        """Score and dialogue of a game in which every action is drawn from the admissible ones."""
        seen = self.reset(task, 0, 0)
        messages = list(seen.messages)
        while not seen.done:
            action = chance.choice(self.admissible)
            seen = self.step(action)
            messages += [{"role": "assistant", "content": action}, *(() if seen.done else seen.messages)]
        return self._score, messages

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._game is None:
            raise EngineDied("the game is gone with its Java process; begin another one")
        return self._engine.call(self._game, method, *arguments)

    def _look(self, answer: Mapping[str, Any]) -> None:
        # the engine names its actions in an order that says nothing
        self._actions = {parse(action): action for action in sorted(answer["validActions"])}

    def _state(self) -> dict[str, float]:
        return {"turn": float(self._turn), "score": self._score}

    @property
    def _listed(self) -> tuple[str, ...]:
        """The actions that an observation names."""
        return self.admissible if self._show_actions else ()

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        return [scored(episode, "score") for episode in episodes]

    def close(self) -> None:
        if self._game is not None:
            if self._engine.last_to_act.get(self._made) is self._game:
                del self._engine.last_to_act[self._made]
            self._engine.release(self._life, *self._made[:2], self._game)
            self._game = None
