"""Where an agent's own words name a skill of its prompt, and that these tokens get their own credit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skill_parts import QUIET, recipe_writer
from threefold import GRPO
from threefold.cli import main
from threefold.credit.named_skills import NamedSkills
from threefold.envs.base import EpisodeScore, Observation
from threefold.rollout.driver import Limits
from threefold.skills.bank import Add
from threefold.skills.creator import Creation
from threefold.skills.evolution import Evolution
from threefold.skills.settings import Settings
from threefold.skills.skill import Skill
from threefold.training.naming import skill_tensors
from threefold.trajectory import Credited, Opening, Segment, Trajectory, Turn, read_jsonl
from tiny_parts import tiny_model, tiny_tokenizer


def played(*turns: tuple[str, str, tuple[str, ...]]) -> tuple[Trajectory, torch.Tensor, list[str]]:
    """An episode of (what is said, what is answered, skills of the prompt), its turn_BT and tokens."""
    tokenizer = tiny_tokenizer()
    ids: list[int] = tokenizer("go")["input_ids"]
    turn_ids = [-1] * len(ids)
    start = len(ids)
    for number, (said, answered, _) in enumerate(turns):
        for text, turn in ((said, number), (answered, -1)):
            new = tokenizer(text)["input_ids"]
            ids, turn_ids = ids + new, turn_ids + [turn] * len(new)
    trajectory = Trajectory(
        task_id="t",
        group_id=0,
        member=0,
        seed=0,
        environment="",
        opening=Opening("go"),
        segments=(Segment(tuple(ids), tuple(turn_ids), (None,) * len(ids)),),
        turns=tuple(Turn(text=said, skills=skills) for said, _, skills in turns),
        rewards={},
        success=None,
        ended="terminated",
    )
    assert trajectory.segments[0].prompt_length == start
    return trajectory, torch.tensor([turn_ids[start:]]), [tokenizer.decode([i]) for i in ids[start:]]


def named(*turns: tuple[str, str, tuple[str, ...]]) -> tuple[str, torch.Tensor]:
    """The text of the naming tokens, and which skills were shown."""
    trajectory, turn_BT, texts = played(*turns)
    found = skill_tensors([trajectory], turn_BT, tiny_tokenizer())
    assert ((found["named_skill_BT"] >= 0) <= (turn_BT >= 0)).all()  # the agent's own tokens alone
    pairs = zip(texts, found["named_skill_BT"][0].tolist(), strict=True)
    return "".join(text for text, skill in pairs if skill >= 0), found["shown_skill_BS"]


def test_the_tokens_of_a_name_are_found_and_no_others() -> None:
    text, shown = named(("i use ask-first now", "ok", ("ask-first",)))
    assert text == "ask-first"
    assert shown.tolist() == [[True]]


def test_a_name_inside_another_word_or_from_the_environment_is_none() -> None:
    assert named(("task-first ask-first-of ask", "ask-first", ("ask-first",)))[0] == ""


def test_a_skill_counts_from_the_turn_in_which_it_was_shown() -> None:
    text, _ = named(("ask-first", "+", ()), ("do ask-first", "+", ("ask-first",)), ("ask-first", "", ()))
    assert text == "ask-first" * 2


def test_the_longer_of_two_names_is_meant() -> None:
    trajectory, turn_BT, _ = played(("ask-first", "", ("ask", "ask-first")))
    found = skill_tensors([trajectory], turn_BT, tiny_tokenizer())["named_skill_BT"]
    assert set(found[0][found[0] >= 0].tolist()) == {1}


def test_without_skills_nothing_is_named() -> None:
    text, shown = named(("ask-first", "", ()))
    assert text == ""
    assert shown.shape == (1, 0)


class Letters:
    """One turn that succeeds where an "a" stands alone: a skill is called so, and random text names it."""

    channels = ("letter",)

    def reset(self, task, seed, member):
        return Observation(messages=({"role": "user", "content": "say"},))

    def step(self, action_text):
        self.said = action_text
        return Observation(action=action_text[:20], terminated=True, success="a" in action_text)

    def score(self, episodes):
        return [EpisodeScore({"letter": float(bool(e.success))}, success=e.success) for e in episodes]

    def close(self):
        pass


def test_training_gives_naming_tokens_their_own_advantage(build, tmp_path: Path) -> None:
    skill = Skill("a", "You say something.", "Say a.", created_step=0)
    settings = Settings(period=1, min_episodes=8, min_reservoir=4, capacity=1, auto_accept=True)
    trainer = build(
        args={"max_steps": 6, "temperature": 1.5, "output_dir": str(tmp_path / "checkpoints")},
        model=tiny_model(max_position_embeddings=1024),
        environment=Letters,
        reward_funcs=None,
        limits=Limits(turns=1, turn_tokens=24, completion_tokens=40),
        credit=NamedSkills(GRPO(), weight=2.0),
        run_dir=tmp_path / "run",
        sampler="threefold",
        skills=Evolution(
            lambda evidence: Creation((Add(skill),)),
            settings=settings,
            seed=3,
            root=tmp_path / "run" / "bank",
        ),
    )
    trainer.train()
    episodes = [e for e in read_jsonl(tmp_path / "run" / "rollouts.jsonl") if isinstance(e, Credited)]
    own = [e for e in episodes if len({a for a in e.advantages[0] if a != 0}) > 1]
    assert own, "no episode of this seed named the skill and had one to be compared with"
    for episode in own:
        texts = [
            text
            for text, advantage in zip(episode.token_texts[0], episode.advantages[0], strict=True)
            if advantage not in (0, episode.outcome_advantage)
        ]
        assert set(texts) == {"a"}


def test_a_recipe_may_leave_the_method_without_a_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = recipe_writer(tmp_path, monkeypatch)
    settings = {"credit.scale": "none", "skills.naming_credit": 1.0, "training.steps": 1}
    assert main(["train", str(write(**QUIET, **settings)), "--quiet"]) == 0
