"""SKILL.md: what we write is read back and is a valid Agent Skill; what is broken is reported by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.skills.skill import Skill, SkillError, name_problem, one_line
from threefold.skills.skill_file import FIELDS, from_text, read_skill, to_text
from threefold.skills.triggers import Trigger

EXAMPLE = Skill(
    "open-after-navigation",
    'You have just arrived: "at" something #closed.',
    "Open it before you search elsewhere.\n- DO: open drawer 1",
    Trigger("action_pattern", r"go to (drawer|box) \d+"),
    revision=3,
    created_step=45,
    license="Apache-2.0",
    metadata={"author": "someone", "version": "1.0"},
)

names = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,3}", fullmatch=True)
lines = (
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=80)
    .map(str.strip)
    .filter(lambda text: text and text.isprintable() and "---" not in text)
)
bodies = st.lists(lines, max_size=5).map(lambda parts: "\n".join(parts).strip())
triggers = st.sampled_from(
    [
        Trigger(),
        Trigger("beginning"),
        Trigger("action_pattern", "go to .*"),
        Trigger("action_pattern", "a: #b"),
    ]
)
skills = st.builds(
    Skill,
    name=names,
    description=lines,
    body=bodies,
    trigger=triggers,
    revision=st.integers(1, 99),
    created_step=st.none() | st.integers(0, 10**6),
    license=st.none() | lines,
    metadata=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9.-]{0,8}[a-z]", fullmatch=True), lines, max_size=3
    ).filter(lambda d: not any("---" in key or key.startswith("threefold-") for key in d)),
)


def test_the_file_says_what_the_skill_says() -> None:
    text = to_text(EXAMPLE)
    assert text.startswith("---\nname: open-after-navigation\n")
    assert "  threefold-trigger: action_pattern\n" in text
    assert "  threefold-revision: '3'\n" in text  # a text, as the specification wants
    assert from_text(text, folder="open-after-navigation") == (EXAMPLE, [])


@settings(deadline=None)
@given(skills)
def test_every_skill_is_read_back_as_it_was(skill: Skill) -> None:
    assert from_text(to_text(skill), folder=skill.name) == (skill, [])


def test_the_reference_validator_accepts_what_we_write(tmp_path: Path) -> None:
    reference = pytest.importorskip(
        "skills_ref", reason="skills-ref, the reference validator, is not installed"
    )

    @settings(max_examples=60, deadline=None)
    @given(skills)
    def accepted(skill: Skill) -> None:
        folder = tmp_path / skill.name
        folder.mkdir(exist_ok=True)
        (folder / "SKILL.md").write_text(to_text(skill), encoding="utf-8")
        assert reference.validate(folder) == []
        properties = reference.read_properties(folder)
        assert (properties.name, properties.description) == (skill.name, skill.description)
        assert properties.metadata["threefold-trigger"] == skill.trigger.kind
        assert properties.metadata.get("threefold-pattern", "") == skill.trigger.pattern

    accepted()


def test_the_reference_validator_and_ours_refuse_the_same_fields() -> None:
    validator = pytest.importorskip("skills_ref.validator", reason="skills-ref is not installed")
    assert set(FIELDS) == validator.ALLOWED_FIELDS


@pytest.mark.parametrize(
    "name", ["../etc", "a/b", "Open", "a--b", "-a", "a-", "", "a b", "ä", "a" * 65, "a\n", ".", "con\x00"]
)
def test_names_that_are_no_folder_of_ours_are_refused(name: str) -> None:
    assert name_problem(name)
    with pytest.raises(SkillError, match="name"):
        Skill(name, "When.", "Do.")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("name: a\n", 1, "must begin with"),
        ("---\nname: a\n", 1, "not closed"),
        ("---\nname: a\ndescription: [x\n---\n", 4, "not YAML"),
        ("---\nname: a\n  b: [\n---\n", 3, "not YAML"),
        ("---\nname: a\ndescription: x\ntrigger: general\n---\n", 4, "unknown field 'trigger'"),
        ("---\nname: a\ndescription: x\nname: a\n---\n", 4, "stands twice"),
        ("---\nname: a\n---\n", 1, "'description' is missing"),
        ("---\nname: b\ndescription: x\n---\n", 2, "differs from its folder's"),
        ("---\nname: a\ndescription: x\nmetadata:\n  k: [1]\n---\n", 5, "must be a text"),
        ("---\nname: a\ndescription: x\nmetadata:\n  threefold-revision: many\n---\n", 5, "whole number"),
        ("---\nname: a\ndescription: x\nmetadata:\n  threefold-trigger: never\n---\n", 5, "unknown trigger"),
        (
            "---\nname: a\ndescription: x\nmetadata:\n  threefold-trigger: action_pattern\n"
            "  threefold-pattern: (?=a)\n---\n",
            6,
            "not accepted by RE2",
        ),
        ("---\nname: &x a\ndescription: *x\n---\n", 2, "anchors"),
        ("---\n- name\n---\n", 2, "mapping"),
        ("---\n" + "[" * 3000 + "\n---\n", 2, "nested too deeply"),
        ("---\nname: !!python/object:os.system a\ndescription: x\n---\n", 2, "tags are not allowed"),
        ("---\nname: a\ndescription: ''\n---\n", 2, "description is empty"),
        (f"---\nname: a\ndescription: {'x' * 1025}\n---\n", 2, "1025 characters"),
    ],
)
def test_a_broken_file_is_reported_with_its_line(text: str, line: int, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "SKILL.md").write_text(text)
    skill, problems = from_text(text, folder="a")
    assert skill is None
    assert any(problem.line == line and says in problem.message for problem in problems), problems
    with pytest.raises(SkillError, match=f"SKILL.md, line {line}: "):
        read_skill(folder)


def test_a_description_may_be_folded() -> None:
    skill, problems = from_text("---\nname: a\ndescription: >\n  When it\n  rains.\n---\nStay.\n", folder="a")
    assert not problems
    assert skill == Skill("a", "When it rains.", "Stay.")


def test_skills_of_others_are_read() -> None:
    theirs = (
        "\ufeff---\r\nname: pdf\r\nversion: 1.0\r\ndescription: >\r\n  Read --- and\r\n  fill PDF files.\r\n"
        "allowed-tools: Bash(git:*) Read\r\nmetadata:\r\n  version: 1.0\r\n---\r\n"
        "\r\n# PDF\r\n\r\n---\r\nText\r\n"
    )
    assert from_text(theirs, folder="pdf")[0] is None
    skill, problems = from_text(theirs, folder="pdf", foreign=True)
    assert skill is not None
    assert skill.description == "Read - and fill PDF files."
    assert skill.body == "# PDF\n\n---\nText"
    assert skill.trigger == Trigger()
    assert skill.metadata == {"version": "1.0"}
    assert skill.allowed_tools == "Bash(git:*) Read"
    assert [problem.line for problem in problems] == [3]  # the unknown field is said, and left out


def test_what_our_form_has_no_place_for_is_left_out_of_skills_of_others() -> None:
    theirs = (
        "---\nname: pdf\ndescription: Read\u00a0PDF\u200b files.\ntags: [a, b]\nallowed-tools:\n  - Read\n"
        "metadata:\n  my key: x\n  author: me\n  needs: {os: linux}\nhooks:\n  start: [run]\n---\n"
        "Read\u202fit\u200d.\n"
    )
    skill, problems = from_text(theirs, folder="pdf")
    assert skill is None
    skill, problems = from_text(theirs, folder="pdf", foreign=True)
    assert skill == Skill("pdf", "Read PDF files.", "Read it.", metadata={"author": "me"})
    assert [problem.line for problem in problems] == [4, 5, 8, 10, 11]
    bare, problems = from_text("---\nname: pdf\ndescription: d\nmetadata:\n---\nb\n", foreign=True)
    assert bare == Skill("pdf", "d", "b")
    assert [problem.line for problem in problems] == [4]


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_bytes(b"---\nname: \xff\n---\n")
    with pytest.raises(SkillError, match="not UTF-8"):
        read_skill(tmp_path)
    (tmp_path / "SKILL.md").write_bytes(b"-" * 300_000)
    with pytest.raises(SkillError, match="300000 bytes"):
        read_skill(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds a SKILL\.md"):
        read_skill(tmp_path / "none")


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("a -\n\x07\u2028\t<"), max_size=12).map(lambda text: f"x{text}y"))
def test_any_text_of_others_becomes_a_line_that_a_skill_may_hold(text: str) -> None:
    Skill("a-name", one_line(text), "")
    assert one_line("a ----- b") == "a - b"
