"""Episodes of many turns: tokens as they were sampled, masks, limits, and environments that fail."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from threefold.envs.base import EpisodeScore, Observation, Task
from threefold.envs.toy import EchoThenNext
from threefold.rollout.driver import Limits, Start, run_episodes
from threefold.rollout.samplers import Sample
from threefold.trajectory import Trajectory

EOS = 1


def scripted(tokenizer: Any, *turns: Sequence[str], end: bool = True) -> Callable[..., Any]:
    """Says turns[k][i] for row i in turn k, whatever stands in its context; rows are told by their order."""
    spoken = iter(turns)

    def generate(contexts, max_new_tokens):
        texts = next(spoken)
        assert len(texts) == len(contexts)
        ids = [tokenizer(text)["input_ids"] + ([EOS] if end else []) for text in texts]
        return [(row, [-0.5] * len(row)) for row in ids]

    return generate


def start(digit: int = 3, member: int = 0, group: int = 0) -> Start:
    return Start(Task("digits", {"digit": digit}), seed=7 + group, group_id=group, member=member)


def play(tokenizer, starts, generate, environment=EchoThenNext, **limits) -> list[Trajectory]:
    return run_episodes(starts, environment, generate, tokenizer, limits=Limits(**limits))


def test_two_turns_token_by_token(tokenizer):
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, ["3"], ["4"]))
    segment = episode.segments[0]
    assert tokenizer.decode(segment.token_ids) == "u:3\na:3<eos>u:+\na:4<eos>"
    assert segment.turn_ids == (-1,) * 6 + (0, 0) + (-1,) * 6 + (1, 1)
    assert segment.logprobs == (None,) * 6 + (-0.5, -0.5) + (None,) * 6 + (-0.5, -0.5)
    assert [(t.text, t.action, t.observation, t.rewards) for t in episode.turns] == [
        ("3", "3", "+", {"echo": 1.0}),
        ("4", "4", "", {"echo": 1.0}),
    ]
    assert (episode.success, episode.ended, episode.rewards) == (True, "terminated", {"echo": 1.0})
    assert (episode.opening.text, episode.opening.state) == ("3", {"digit": 3.0})
    assert episode.environment == "EchoThenNext"


def test_an_end_token_that_the_agent_did_not_write_is_the_environments(tokenizer):
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, ["35"], ["4"], end=False))
    segment = episode.segments[0]
    assert tokenizer.decode(segment.token_ids) == "u:3\na:35<eos>u:+\na:4"
    assert segment.turn_ids == (-1,) * 6 + (0, 0) + (-1,) * 7 + (1,)


def test_an_agent_that_says_only_the_end_token(tokenizer):
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, [""], [""]))
    assert [turn.text for turn in episode.turns] == ["", ""]
    assert tokenizer.decode(episode.segments[0].token_ids) == "u:3\na:<eos>u:+\na:<eos>"
    assert (episode.success, episode.rewards) == (False, {"echo": 0.0})


def test_an_agent_that_says_nothing_at_all(tokenizer):
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, [""], [""], end=False))
    assert [turn.text for turn in episode.turns] == ["", ""]
    assert set(episode.segments[0].turn_ids) == {-1}
    assert episode.ended == "terminated"


def test_a_marker_of_the_template_inside_a_turn_is_seen_and_its_end_is_not(tokenizer):
    """Dropped like other special tokens, it would let what is said as somebody else run into one's own
    words."""
    tokenizer.chat_template = (
        "{% for m in messages %}<bos>{{ m['role'] }}:{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
    )
    spoken = ["3<bos>user:4", "<pad>3", "3<bos>", "3"]
    episodes = play(tokenizer, [start(member=i) for i in range(4)], scripted(tokenizer, spoken), turns=1)
    assert [e.turns[0].text for e in episodes] == ["3<bos>user:4", "3", "3", "3"]


def test_rows_that_ended_are_not_generated_again(tokenizer):
    class Short(EchoThenNext):
        def step(self, action_text):
            observation = super().step(action_text)
            return Observation(terminated=True, rewards={"echo": 0.0}) if "!" in action_text else observation

    # The second call of the sampler gets two rows: `scripted` asserts that.
    generate = scripted(tokenizer, ["1", "!", "3"], ["2", "4"])
    episodes = play(tokenizer, [start(1), start(2), start(3)], generate, Short)
    assert [len(e.turns) for e in episodes] == [2, 1, 2]
    assert [e.success for e in episodes] == [True, None, True]


def test_a_turn_is_cut_at_the_limit_on_tokens_and_the_episode_ends_there(tokenizer):
    asked = []

    def generate(contexts, max_new_tokens):
        asked.append(max_new_tokens)
        return [(tokenizer("3" * 50)["input_ids"], None) for _ in contexts]

    (episode,) = play(tokenizer, [start(3)], generate, turn_tokens=20, completion_tokens=8)
    assert asked == [8]
    assert episode.ended == "length"
    assert episode.segments[0].turn_ids == (-1,) * 6 + (0,) * 8
    assert episode.turns[0].text == "3" * 8


def test_an_answer_that_does_not_fit_ends_the_episode_before_it(tokenizer):
    # Turn 1 is two tokens and the environment answers with six: a limit of eight leaves no room for turn 2.
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, ["3"]), completion_tokens=8)
    assert episode.ended == "length"
    assert tokenizer.decode(episode.segments[0].token_ids) == "u:3\na:3<eos>"
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, ["3"], ["4"]), completion_tokens=9)
    assert tokenizer.decode(episode.segments[0].token_ids) == "u:3\na:3<eos>u:+\na:4"


def test_the_limit_on_turns_truncates(tokenizer):
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, ["3"]), turns=1)
    assert (episode.ended, len(episode.turns)) == ("truncated", 1)


def test_members_of_a_group_start_alike(tokenizer):
    starts = [start(digit, member, group) for group, digit in enumerate([4, 8]) for member in range(3)]
    episodes = play(tokenizer, starts, scripted(tokenizer, ["1"] * 6, ["2"] * 6))
    for group in (0, 1):
        members = [e for e in episodes if e.group_id == group]
        assert [e.member for e in members] == [0, 1, 2]
        assert len({(e.opening.text, e.seed, e.segments[0].token_ids[:6]) for e in members}) == 1


# Environments that fail
# -----------------------------------------------------------------------------------------------------------


class Failing(EchoThenNext):
    """Fails in the place that it is told, for the digit 9 only; counts how often it was closed."""

    where = ""
    closed = 0

    def _maybe(self, where: str) -> None:
        if self.where == where and self._digit == 9:
            raise OSError("the simulator is gone")

    def reset(self, task: Task, seed: int, member: int) -> Observation:
        observation = super().reset(task, seed, member)
        self._maybe("reset")
        return observation

    def step(self, action_text: str) -> Observation:
        self._maybe("step")
        return super().step(action_text)

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture
def failing():
    def make(where: str) -> type[Failing]:
        return type("Failing", (Failing,), {"where": where, "closed": 0})

    return make


def test_a_failing_step_ends_its_own_episode_alone(tokenizer, failing):
    environment = failing("step")
    episodes = play(tokenizer, [start(9), start(3)], scripted(tokenizer, ["9", "3"], ["4"]), environment)
    broken, whole = episodes
    assert broken.ended == "error: OSError: the simulator is gone"
    assert (broken.rewards, broken.success) == ({}, None)
    assert [turn.text for turn in broken.turns] == ["9"]
    assert (whole.ended, whole.rewards) == ("terminated", {"echo": 1.0})
    assert environment.closed == 2


class Waiting(EchoThenNext):
    """Waits in every step until as many others wait as may: alone it would wait until the barrier breaks."""

    concurrency = 2
    lock = threading.Lock()

    def step(self, action_text: str) -> Observation:
        with self.lock:
            type(self).here += 1
            type(self).most = max(self.most, self.here)
        try:
            self.gate.wait(timeout=30)
            if action_text == "9":
                raise OSError("the simulator is gone")
            return super().step(action_text)
        finally:
            with self.lock:
                type(self).here -= 1


def test_environments_that_wait_for_others_are_stepped_side_by_side_and_no_more_than_they_allow(tokenizer):
    environment = type("Two", (Waiting,), {"here": 0, "most": 0, "gate": threading.Barrier(2)})
    starts = [start(digit) for digit in (3, 9, 4, 5)]
    said = ["3", "9", "4", "5"]
    episodes = play(tokenizer, starts, scripted(tokenizer, said), environment, turns=1)
    assert environment.most == 2
    assert [e.ended for e in episodes] == [
        "truncated",
        "error: OSError: the simulator is gone",
        "truncated",
        "truncated",
    ]
    one_by_one = play(tokenizer, starts, scripted(tokenizer, said), turns=1)
    assert [e.turns for i, e in enumerate(episodes) if i != 1] == [
        e.turns for i, e in enumerate(one_by_one) if i != 1
    ]


def test_a_failing_reset_ends_its_own_episode_alone(tokenizer, failing):
    environment = failing("reset")
    episodes = play(tokenizer, [start(9), start(3)], scripted(tokenizer, ["3"], ["4"]), environment)
    assert [e.ended for e in episodes] == ["error: OSError: the simulator is gone", "terminated"]
    assert (episodes[0].segments[0].token_ids, episodes[0].turns) == ((), ())
    assert environment.closed == 2


def test_where_every_reset_fails_nothing_is_generated(tokenizer, failing):
    environment = failing("reset")
    episodes = play(tokenizer, [start(9), start(9)], scripted(tokenizer), environment)
    assert all(e.ended.startswith("error") and e.rewards == {} for e in episodes)
    assert environment.closed == 2


def test_a_failing_judge_leaves_the_episodes_unscored(tokenizer):
    class Judged(EchoThenNext):
        def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
            raise TimeoutError("no answer from the judge")

    episodes = play(tokenizer, [start(3), start(4)], scripted(tokenizer, ["3", "4"], ["4", "5"]), Judged)
    assert [e.ended for e in episodes] == ["error: TimeoutError: no answer from the judge"] * 2
    assert [e.rewards for e in episodes] == [{}, {}]
    assert [len(e.turns) for e in episodes] == [2, 2]
    assert all(turn.rewards == {} for e in episodes for turn in e.turns)  # a violation may be unknown


def test_a_judge_that_gives_too_few_scores_loses_no_episode(tokenizer):
    class Judged(EchoThenNext):
        def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
            return super().score(episodes)[:1]

    episodes = play(tokenizer, [start(3), start(4)], scripted(tokenizer, ["3", "4"], ["4", "5"]), Judged)
    assert [e.ended for e in episodes] == ["error: ValueError: score() gave 1 scores for 2 episodes"] * 2


def test_a_void_episode_keeps_its_states_and_earns_nothing(tokenizer):
    class Judged(EchoThenNext):
        def score(self, episodes: Sequence[Trajectory]) -> Sequence[EpisodeScore]:
            sound, void = super().score(episodes)
            return [sound, dataclasses.replace(void, rewards=dict.fromkeys(void.rewards), void=True)]

    sound, void = play(tokenizer, [start(3), start(3)], scripted(tokenizer, ["3", "3"], ["4", "4"]), Judged)
    assert all(turn.rewards for turn in sound.turns)
    assert [turn.rewards for turn in void.turns] == [{}, {}]
    assert [turn.state for turn in void.turns] == [turn.state for turn in sound.turns]
    assert void.ended == sound.ended


def test_the_judge_sees_only_whole_episodes(tokenizer, failing):
    seen = []

    class Judged(failing("step")):
        def score(self, episodes):
            seen.extend(e.task["digit"] for e in episodes)
            return super().score(episodes)

    play(tokenizer, [start(9), start(3)], scripted(tokenizer, ["9", "3"], ["4"]), Judged)
    assert seen == [3]


def test_environments_are_closed_when_the_sampler_fails(tokenizer, failing):
    environment = failing("")

    def generate(contexts, max_new_tokens):
        raise MemoryError

    with pytest.raises(MemoryError):
        play(tokenizer, [start(1), start(2)], generate, environment)
    assert environment.closed == 2


def test_environments_are_closed_when_a_later_one_cannot_be_made(tokenizer, failing):
    environment, made = failing(""), []

    def make() -> Any:
        if len(made) == 2:
            raise OSError("out of ports")
        made.append(environment())
        return made[-1]

    with pytest.raises(OSError, match="out of ports"):
        play(tokenizer, [start(1), start(2), start(3)], scripted(tokenizer), make)
    assert environment.closed == 2


def test_one_that_cannot_be_closed_does_not_keep_the_others_open(tokenizer, failing):
    environment = failing("")

    class Stuck(environment):
        def close(self) -> None:
            super().close()
            if self._digit == 1:
                raise OSError("already dead")

    with pytest.raises(OSError, match="already dead"):
        play(tokenizer, [start(1), start(2)], scripted(tokenizer, ["1", "2"], ["2", "3"]), Stuck)
    assert Stuck.closed == 2


def test_a_template_that_rewrites_earlier_turns_is_named(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% else %}!{% endif %}{% endfor %}"
    )
    (episode,) = play(tokenizer, [start(3)], scripted(tokenizer, ["3"]))
    assert "the chat template changes earlier turns" in episode.ended


class Talks:
    """A session that says what it is told, and remembers how it was asked."""

    def __init__(self, tokenizer, *turns):
        self.tokenizer, self.spoken = tokenizer, iter(turns)
        self.asked: list[tuple[list[int], list[int], list[int]]] = []
        self.closed = 0

    def turn(self, dialogues, contexts, max_new_tokens):
        self.asked.append((list(dialogues), [len(c) for c in contexts], list(max_new_tokens)))
        ids = [(*self.tokenizer(text)["input_ids"], EOS) for text in next(self.spoken)]
        return [Sample(row, (-0.5,) * len(row), "stop") for row in ids]

    def close(self):
        self.closed += 1


def test_a_session_is_asked_for_the_live_dialogues_by_their_number_and_closed(tokenizer):
    class Short(EchoThenNext):
        def step(self, action_text):
            observation = super().step(action_text)
            return Observation(terminated=True) if "!" in action_text else observation

    session = Talks(tokenizer, ["3", "!", "5"], ["4", "6"])
    starts = [start(3), start(4, member=1), start(5, member=2)]
    episodes = play(tokenizer, starts, session, Short, turn_tokens=4, completion_tokens=11)
    # An opening is 6 tokens; then 2 were said and "<eos>u:+\na:" is 6 more, of which the end token was said.
    assert session.asked == [([0, 1, 2], [6, 6, 6], [4, 4, 4]), ([0, 2], [14, 14], [3, 3])]
    assert session.closed == 1
    scripted_too = scripted(tokenizer, ["3", "!", "5"], ["4", "6"])
    again = play(tokenizer, starts, scripted_too, Short, turn_tokens=4, completion_tokens=11)
    assert episodes == again


def test_a_session_is_closed_when_generation_fails(tokenizer):
    session = Talks(tokenizer)
    with pytest.raises(StopIteration):  # it has nothing to say
        play(tokenizer, [start(3)], session)
    assert session.closed == 1
