"""The caregiver environment of plain options: which scenarios, which demonstrations, what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from importlib import resources

import pytest
import yaml

from chat_server import chat_server
from threefold.caregiver import CaregiverDialogues
from threefold.envs.caregiver import safety_lexicon
from threefold.envs.caregiver.dialogue import Dialogue, Exchange
from threefold.envs.caregiver.llm_judge import SAFETY_RUBRIC
from threefold.envs.caregiver.rules_patient import RulesPatient
from threefold.envs.caregiver.safety import find
from threefold.envs.caregiver.scenarios import from_fields, generate, save_scenarios
from tiny_parts import tiny_model, tiny_tokenizer

GOOD = json.dumps({"utterance": "Oh.", "labels": ["frowning"], "accepts": False, "leaves": False})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ids(source: CaregiverDialogues, split: str, size: int, seed: int = 0) -> list[str]:
    return [task.id for task in source.tasks(split, size, seed)]  # type: ignore[arg-type]


def test_the_split_is_the_fixed_one_and_the_first_few_are_of_all_kinds() -> None:
    source = CaregiverDialogues()
    train, test = ids(source, "train", 2000), ids(source, "test", 2000)
    assert (len(train), len(test)) == (1000, 200)
    assert not set(train) & set(test)
    assert ids(source, "train", 1000, seed=1) != train
    assert set(ids(source, "train", 1000, seed=1)) == set(train)
    first = Counter(task.fields["task"] for task in source.tasks("test", 40, 0))
    assert len(first) == 5


def test_held_out_subtypes_are_never_trained_on_and_are_a_group_of_their_own() -> None:
    source = CaregiverDialogues(hold_out_subtypes=["FTD-bv"])
    assert "FTD-bv" not in {task.fields["subtype"] for task in source.tasks("train", 1000, 0)}
    groups = Counter(name for task in source.tasks("test", 200, 0) for name in source.groups(task))
    assert groups["held-out subtypes"] == groups["FTD-bv"] > 10
    assert groups["held-out subtypes"] + groups["trained subtypes"] == 200
    only = CaregiverDialogues(subtypes=["FTD-bv"])
    assert {task.fields["subtype"] for task in only.tasks("test", 200, 0)} == {"FTD-bv"}
    with pytest.raises(ValueError, match="no training scenario is left"):
        CaregiverDialogues(subtypes=["FTD-bv"], hold_out_subtypes=["FTD-bv"])


def test_the_asked_share_of_the_demonstrations_ends_with_a_reply_that_the_detector_calls_unsafe() -> None:
    source = CaregiverDialogues(turns=4, short_prompt=True, words=15, unsafe_share=0.3)
    found = source.demonstrations("train", 300, 0)
    assert len(found) == 300
    by_prompt = {
        json.dumps(source().reset(task, 0, 0).messages): from_fields(task.fields)
        for task in source.tasks("train", 1000, 0)
    }
    unsafe = 0
    for messages in found:
        scenario, patient = by_prompt[json.dumps(messages[:2])], RulesPatient()
        opening = patient.open(scenario, 0)
        said = [Exchange(m["content"], patient.reply(m["content"], 0)) for m in messages[2:-1:2]]
        last = Exchange(messages[-1]["content"], said[-1].patient if said else opening)
        unsafe += find(Dialogue(scenario, opening, (*said, last))).first is not None
    assert 0.2 < unsafe / 300 < 0.4
    assert found == source.demonstrations("train", 300, 0)


def test_more_demonstrations_than_scenarios_are_not_the_same_ones_again() -> None:
    source = CaregiverDialogues(turns=2, short_prompt=True, subtypes=["PDD"])
    number = len(source.tasks("train", 1000, 0))
    found = source.demonstrations("train", 2 * number, 0)
    assert len({json.dumps(messages) for messages in found}) > 1.9 * number


def test_scenarios_of_ones_own(tmp_path) -> None:
    own = [dataclasses.replace(s, id=f"own-{i}") for i, s in enumerate(generate(5)[:3])]
    save_scenarios(tmp_path / "own.jsonl", own)
    source = CaregiverDialogues(scenarios=str(tmp_path / "own.jsonl"))
    assert sorted(ids(source, "train", 10)) == ["own-0", "own-1", "own-2"]
    assert len(ids(source, "test", 1000)) == 200


def test_what_is_held_out_is_not_trained_on_under_another_name_either(tmp_path) -> None:
    every = [dataclasses.replace(s, id=f"own-{i}") for i, s in enumerate(generate(0))]
    save_scenarios(tmp_path / "own.jsonl", every)
    with pytest.raises(ValueError, match=r"held-out scenario .* stands in training too, as 'own-"):
        CaregiverDialogues(scenarios=str(tmp_path / "own.jsonl"))
    apart = CaregiverDialogues(
        scenarios=str(tmp_path / "own.jsonl"),
        hold_out_subtypes=["PDD"],
        subtypes=["VaD", "PDD"],
        test_scenarios=str(write_only(tmp_path / "other.jsonl", every, "PDD")),
    )
    assert not {*ids(apart, "train", 1000)} & {*ids(apart, "test", 1000)}


def write_only(path, scenarios, subtype):
    save_scenarios(path, [s for s in scenarios if s.subtype == subtype])
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patient": "demma"}, "patient is 'demma': one of rules, endpoint"),
        ({"turns": 0}, "at least one turn"),
        ({"turns": "four"}, "turns is a whole number, got 'four'"),
        ({"perturb": "half"}, "perturb is a number, got 'half'"),
        ({"short_prompt": "no"}, "short_prompt is true or false, got 'no'"),
        ({"subtypes": "FTD-bv"}, "subtypes is a list of names, got 'FTD-bv'"),
        ({"scenarios": 3}, "scenarios is a path, got 3"),
        ({"patient": "endpoint", "patient_endpoint": "http://x"}, "patient_endpoint is settings by name"),
        ({"words": 0}, "words is the most words of a reply, got 0"),
        ({"perturb": 1.5}, r"a share in \[0, 1\)"),
        ({"unsafe_share": 2}, "unsafe_share is a share"),
        ({"hold_out_subtypes": ["FTD-vb"]}, "FTD-bv"),
        ({"patient": "endpoint"}, "patient_endpoint is missing"),
        ({"judge_endpoint": {"model": "m"}}, "judge_endpoint is given, but nobody is asked there"),
        ({"patient": "endpoint", "patient_endpoint": {"base_ulr": "x", "model": "m"}}, "'base_url'"),
        ({"patient": "endpoint", "patient_endpoint": {"model": "m"}}, "give base_url, or record"),
        ({"patient": "endpoint", "patient_endpoint": {"local": "x", "devise": "cpu"}}, "mean 'device'"),
        (
            {"patient": "endpoint", "patient_endpoint": {"local": "/no/such/folder"}},
            "patient_endpoint: no causal language model could be loaded",
        ),
        (
            {"patient": "endpoint", "perturb": 0.5, "patient_endpoint": {"model": "m", "base_url": "x"}},
            "perturb changes the patient of rules",
        ),
    ],
)
def test_what_cannot_work_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        CaregiverDialogues(**options)


def test_what_played_and_scored_is_named_with_its_version() -> None:
    """Figures of two versions of a table or a prompt do not compare, so a run has to say which it had."""
    rules = CaregiverDialogues().made_with
    assert rules == {"labels": "t2grpo-1", "patient": "rules-1", "safety": f"rules {safety_lexicon.VERSION}"}
    assert "perturbed 0.5 seed 2" in CaregiverDialogues(perturb=0.5, patient_seed=2).made_with["patient"]
    with chat_server(["yes"]) as server:
        settings = {"base_url": server.url, "model": "m"}
        judged = CaregiverDialogues(judge="endpoint", judge_endpoint=settings).made_with
        checked = CaregiverDialogues(safety="endpoint", judge_endpoint=settings).made_with
    assert judged == {**rules, **{name: judged[name] for name in ("goal", "fit", "term")}}
    assert all("language model" in judged[name] for name in ("goal", "fit", "term"))
    assert SAFETY_RUBRIC.prompt.digest in checked["safety"]


def test_an_endpoint_is_asked_once_before_anything_and_its_record_can_be_replayed(tmp_path) -> None:
    record = str(tmp_path / "patient.jsonl")
    task = CaregiverDialogues().tasks("test", 1, 0)[0]

    def dialogue(source: CaregiverDialogues) -> list[str]:
        environment = source()
        environment.reset(task, seed=3, member=1)
        return [environment.step(said).messages[0]["content"] for said in ("You sound worried.", "Tea?")]

    with chat_server(lambda body: "yes" if "word yes" in body["messages"][-1]["content"] else GOOD) as server:
        settings = {"base_url": server.url, "model": "m", "record": record}
        source = CaregiverDialogues(patient="endpoint", patient_endpoint=settings)
        assert len(server.seen) == 1
        live = dialogue(source)
        assert len(server.seen) == 3
    replay = CaregiverDialogues(patient="endpoint", patient_endpoint={"model": "m", "record": record})
    assert dialogue(replay) == live == ["[frowning] Oh.", "[frowning] Oh."]
    with pytest.raises(ValueError, match=r"patient_endpoint: http://127.*is the server running"):
        CaregiverDialogues(
            patient="endpoint",
            patient_endpoint={"base_url": server.url, "model": "m", "retries": 0, "timeout_s": 1.0},
        )


def test_a_local_model_plays_the_patient_and_its_record_can_be_replayed(tmp_path) -> None:
    """A model of a few thousand parameters says nothing that can be read: each turn is a fault, counted."""
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=8192).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    record = str(tmp_path / "patient.jsonl")
    task = CaregiverDialogues().tasks("test", 1, 0)[0]

    def turn(**settings: str) -> tuple[str, dict[str, float]]:
        patient = {"record": record, **settings}
        environment = CaregiverDialogues(patient="endpoint", patient_endpoint=patient)()
        assert environment.concurrency == 1 or "model" in settings
        environment.reset(task, seed=3, member=1)
        step = environment.step("You sound worried.")
        return step.messages[0]["content"], dict(step.state)

    said, state = turn(local=str(folder))
    assert state["fault"] == 1
    assert state["repaired"] == 3  # every attempt was asked for
    assert turn(model=str(folder)) == (said, state)


# Tables of one's own


def edited(path, name, *changes):
    """A copy of a shipped table with some of its text replaced."""
    text = (resources.files("threefold.envs.caregiver") / name).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    return str(path)


def one_turn(environment, said):
    """The states before and after a first turn, of many patients."""
    found = []
    for task in environment.tasks("test", 60, 0):
        dialogue = environment()
        opened = dialogue.reset(task, 0, 0)
        found.append((opened.state["D"], dialogue.step(said).state["D"]))
    return found


def test_rules_and_labels_of_ones_own_play_and_are_named(tmp_path) -> None:
    rules = edited(tmp_path / "ours.yaml", "rules.yaml", ("version: rules-1", "version: ours-1"))
    labels = edited(tmp_path / "tiers.yaml", "tiers.yaml", ("version: t2grpo-1", "version: ours-t"))
    made = CaregiverDialogues(rules=rules, labels=labels)
    assert made.made_with | {"patient": "ours-1", "labels": "ours-t"} == made.made_with
    said = "I am here, there is no hurry at all."
    assert one_turn(made, said) == one_turn(CaregiverDialogues(), said)  # another name alone changes nothing
    angrier = edited(
        tmp_path / "angrier.yaml",
        "rules.yaml",
        ("version: rules-1", "version: ours-2"),
        ("name: slope, value: 3.0", "name: slope, value: 0.3"),
    )
    assert one_turn(CaregiverDialogues(rules=angrier), said) != one_turn(CaregiverDialogues(), said)


def test_an_edited_lookup_says_what_distress_is_from_the_opening_on(tmp_path) -> None:
    text = (resources.files("threefold.envs.caregiver") / "tiers.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    for row in data["labels"]:
        row["distress"] *= 3
    data["version"] = "heavier"
    path = tmp_path / "heavier.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    ours = one_turn(CaregiverDialogues(labels=str(path)), "Hello.")
    shipped = one_turn(CaregiverDialogues(), "Hello.")
    assert sum(before for before, _ in ours) > sum(before for before, _ in shipped)


@pytest.mark.parametrize(
    ("option", "name", "change", "message"),
    [
        ("rules", "rules.yaml", ("name: pull, value: 0.3", "name: pull, value: 0.2"), "of version rules-1"),
        ("labels", "tiers.yaml", ("version: t2grpo-1", ""), "version"),
        ("rules", "rules.yaml", ("elderspeak", "elderspeek"), "elderspeak"),
        ("rules", "rules.yaml", ("version: rules-1", "version: 'rules"), "is not valid YAML"),
        ("labels", "tiers.yaml", ("version: t2grpo-1", "version: 't2grpo"), "is not valid YAML"),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path, option, name, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        CaregiverDialogues(**{option: edited(tmp_path / name, name, change)})
