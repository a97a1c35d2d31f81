"""Steps per second of the household games and the search questions, one process, one thread.

    python benchmarks/text_environments.py
    python benchmarks/text_environments.py --only household --games 12

Household: for games in rooms of eight places and in whole rooms, seconds to translate a game (once a group)
and to begin a play of it (once a member), and steps a second of random admissible commands, beside the
unmodified engine on the same commands. Search: seconds to build the index, and steps a second of searches.
CPU seconds of this process are counted beside wall-clock ones: on a shared machine the latter say little.
Writes results/environments/text.json and text.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 30
"""Commands a play."""
EPISODES = (64, 10)
"""Episodes and turns of the training step that the summary speaks of, eight a game."""


class Clock:
    """CPU and wall-clock seconds of what runs inside."""

    def __enter__(self) -> Clock:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps per second of text environments.")
    parser.add_argument("--only", choices=["household", "search"])
    parser.add_argument("--games", type=int, default=12, help="household games of each size")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--without-engine", action="store_true", help="skip the unmodified engine")
    options = parser.parse_args()
    target = ROOT / "results" / "environments" / "text.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    found["machine"] = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    if options.only != "search":
        found["household"] = {
            "8 places": household(options.games, 8, not options.without_engine),
            "whole rooms": household(options.games, None, not options.without_engine),
        }
    if options.only != "household":
        found["search"] = search(options.questions)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    target.with_suffix(".md").write_text(page(found))
    print(page(found))


def household(games: int, receptacles: int | None, beside: bool) -> dict[str, Any]:
    """Medians over games of one size."""
    from threefold.envs.household import engine
    from threefold.envs.household.environment import GENERATED, HouseholdGames
    from threefold.envs.household.games import Goal, data, make

    source = HouseholdGames(receptacles=receptacles, data=GENERATED)
    rows: list[dict[str, float]] = []
    tasks = source.tasks("train", games + 1, 0)
    engine.load(data(make(Goal(**tasks[-1].fields))))  # the grammar is parsed once a process
    for task in tasks[:games]:
        content = data(make(Goal(**task.fields)))
        with Clock() as translated:
            loaded = engine.load(content)
        with Clock() as begun:
            first = engine.Play(loaded)
        chance = random.Random(task.id)
        said: list[str] = []
        with Clock() as played:
            for _ in range(STEPS):
                said.append(chance.choice(first.admissible))
                first.step(said[-1])
        with Clock() as again:
            engine.Play(loaded)
        row = {
            "translate": translated.cpu,
            "begin first": begun.cpu,
            "begin": again.cpu,
            "steps a second": STEPS / played.cpu,
            "wall steps a second": STEPS / played.wall,
        }
        if beside:
            row |= unmodified(content, said)
        rows.append(row)
    return {"games": games} | {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def unmodified(content: dict[str, Any], said: Sequence[str]) -> dict[str, float]:
    """TextWorld's own engine with ALFWorld's names."""
    import textworld
    from alfworld.agents.utils.misc import Demangler
    from textworld.envs import PddlEnv

    env = PddlEnv(textworld.EnvInfos())
    with Clock() as begun:
        env.load(content)
        demangler = Demangler(game_infos=env._entity_infos)
        for info in env._entity_infos.values():
            info.name = demangler.demangle_alfred_name(info.id)
        env.reset()
    with Clock() as played:
        for command in said:
            env.step(command)
    return {"engine begin": begun.cpu, "engine steps a second": len(said) / played.cpu}


def search(questions: int) -> dict[str, Any]:
    """Building, and searching with the words of questions."""
    from threefold.envs.search.environment import SearchQuestions

    with Clock() as built:
        source = SearchQuestions(turns=2)
    asked = source.tasks("unseen", questions, 0)
    game = source()

    def steps(action: Callable[[str], str]) -> Clock:
        with Clock() as clock:
            for task in asked:
                game.reset(task, 0, 0)
                game.step(action(str(task.fields["question"])))
        return clock

    searched = steps(lambda text: f"search[{text}]")
    return {
        "passages": len(source.index.passages),
        "questions": {split: len(source.questions(split)) for split in ("train", "seen", "unseen")},
        "build": built.cpu,
        "steps a second": questions / searched.cpu,
        "wall steps a second": questions / searched.wall,
    }


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Household games and search questions: how fast they are",
        "",
        f"`python benchmarks/text_environments.py` on {found['machine']}, one process, one thread. CPU "
        "seconds; a shared machine's wall-clock rates are in text.json.",
        "",
    ]
    if "household" in found:
        episodes, turns = EPISODES
        lines += [
            "| household games, medians | translate a game (once a group) | begin a play | steps a second | "
            "the unmodified engine: load and reset | its steps a second |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in found["household"].items():
            engine = (
                f"{row['engine begin']:.2f} s | {row['engine steps a second']:.0f}"
                if "engine begin" in row
                else "- | -"
            )
            lines.append(
                f"| {name}, {row['games']} games | {row['translate']:.2f} s | {1000 * row['begin']:.0f} ms | "
                f"{row['steps a second']:.0f} | {engine} |"
            )
        lines.append("")
        for name, row in found["household"].items():
            ours = (
                episodes / 8 * row["translate"]
                + episodes * row["begin"]
                + episodes * turns / row["steps a second"]
            )
            text = f"A training step of {episodes} episodes of {turns} turns, {name}: {ours:.1f} s"
            if "engine begin" in row:
                theirs = episodes * (row["engine begin"] + turns / row["engine steps a second"])
                text += f", with the unmodified engine {theirs:.0f} s"
            lines.append(f"{text}.")
        lines.append("")
    if "search" in found:
        row = found["search"]
        counts = ", ".join(f"{count:,} {split}" for split, count in row["questions"].items())
        lines += [
            f"Search: {row['passages']:,} passages, questions {counts}. Reading, verifying and indexing "
            f"takes {row['build']:.1f} s once; {row['steps a second']:.0f} searches a second, three passages "
            "each.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
