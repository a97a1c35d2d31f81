"""Loading problems: every local source for real, and what is refused."""

import json
from pathlib import Path

import pytest

from threefold.envs.problems import KNOWN_SETS, Problem, load_problems

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "math"
ROWS = [
    {"id": "a", "question": "1 + 1 = ?", "answer": "2"},
    {"id": "b", "question": "1 + 2 = ?", "answer": "3"},
]
LOADED = (Problem("a", "1 + 1 = ?", "2"), Problem("b", "1 + 2 = ?", "3"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_with_blank_lines(tmp_path):
    path = write(tmp_path / "p.jsonl", ROWS)
    path.write_text(path.read_text() + "\n\n")
    assert load_problems(path) == LOADED
    assert load_problems(str(path), limit=1) == LOADED[:1]


def test_json_list(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(ROWS))
    assert load_problems(tmp_path / "p.json") == LOADED


def test_csv_with_byte_order_mark_and_quotes(tmp_path):
    (tmp_path / "p.csv").write_text('\ufeffid,question,answer\na,"1 + 1, or = ?",2\n', encoding="utf-8")
    assert load_problems(tmp_path / "p.csv") == (Problem("a", "1 + 1, or = ?", "2"),)


def test_parquet_and_saved_data_sets(tmp_path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(str(tmp_path / "p.parquet"))
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(tmp_path / "splits"))
    assert load_problems(tmp_path / "p.parquet") == LOADED
    assert load_problems(tmp_path / "one") == LOADED
    assert load_problems(tmp_path / "splits") == LOADED
    assert load_problems(tmp_path / "splits", split="test") == LOADED[1:]
    with pytest.raises(ValueError, match=r"no split 'dev': use 'train' or 'test'"):
        load_problems(tmp_path / "splits", split="dev")


def test_a_folder_that_datasets_can_load(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", ROWS)
    assert load_problems(tmp_path / "set") == LOADED


def test_other_columns_numbers_and_difficulty(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        [{"problem": " why? ", "value": 7, "key": 3, "level": 5}, {"problem": "?", "value": 0.5, "key": 4}],
    )
    assert load_problems(path, question_column="problem", answer_column="value", id_column="key") == (
        Problem("3", "why?", "7", "5"),
        Problem("4", "?", "0.5"),
    )


@pytest.mark.parametrize(
    ("written", "final"),
    [
        ("He sells 48/2 = <<48/2=24>>24.\n48 + 24 = 72.\n#### 72", "72"),
        ("#### 1\nno, wait\n#### 1,000 \n", "1,000"),
        ("72", "72"),
        ("the sign #### alone is no answer ####", "the sign #### alone is no answer ####"),
        ("#### 5\nwith more text after it", "#### 5\nwith more text after it"),
    ],
)
def test_the_final_answer_of_a_worked_solution(tmp_path, written, final):
    path = write(tmp_path / "p.jsonl", [{"question": "?", "answer": written}])
    assert load_problems(path)[0].answer == final


def test_rows_are_numbered_where_ids_are_missing_or_repeated(tmp_path):
    without = write(tmp_path / "q.jsonl", [{"question": "?", "answer": "1"}] * 2)
    repeated = write(tmp_path / "r.jsonl", [{"id": "x", "question": "?", "answer": "1"}] * 2)
    assert [problem.id for problem in load_problems(without)] == ["q-1", "q-2"]
    assert [problem.id for problem in load_problems(repeated)] == ["r-1", "r-2"]
    with pytest.raises(ValueError, match=r"row 2: the id 'x' in column 'id' is that of row 1"):
        load_problems(repeated, id_column="id")


def refused(tmp_path, rows, match, **arguments):
    with pytest.raises(ValueError, match=match):
        load_problems(write(tmp_path / "bad.jsonl", rows), **arguments)


def test_bad_rows_are_named(tmp_path):
    good = ROWS[0]
    refused(tmp_path, [good, {"question": "?"}], r"bad\.jsonl, row 2: the column 'answer' is empty")
    refused(tmp_path, [good, {"question": "?", "answer": None}], "row 2: the column 'answer'")
    refused(tmp_path, [good, {"question": "?", "answer": float("nan")}], "row 2: the column 'answer'")
    refused(
        tmp_path, [good, good, {"question": "  ", "answer": "1"}], "row 3: the column 'question' is empty"
    )
    refused(
        tmp_path, [{"question": "?", "answer": ["1", "2"]}], r"row 1.*text or a number, found \['1', '2'\]"
    )


def test_bad_sources_are_explained(tmp_path):
    refused(tmp_path, [], "the data set is empty")
    refused(
        tmp_path,
        [{"question": "?", "answers": "1"}],
        r"no column 'answer'; the columns are question, answers\. Did you mean 'answers'",
    )
    refused(tmp_path, ROWS, "no column 'uid'", id_column="uid")
    refused(tmp_path, ROWS, "limit is 0", limit=0)
    (tmp_path / "broken.jsonl").write_text('{"question": "?", "answer": "1"}\n{"question": \n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2: not valid JSON"):
        load_problems(tmp_path / "broken.jsonl")
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"call it \.jsonl"):
        load_problems(tmp_path / "lines.json")
    (tmp_path / "notes.txt").write_text("?")
    with pytest.raises(ValueError, match=r"\.jsonl, \.json, \.csv, \.parquet files, not from '\.txt'"):
        load_problems(tmp_path / "notes.txt")


def test_a_missing_file_names_its_nearest(tmp_path):
    write(tmp_path / "gsm8k_train.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*gsm8k_train\.jsonl"):
        load_problems(tmp_path / "gsm8k_trian.jsonl")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_problems(tmp_path / "nowhere")


def test_unknown_names_and_splits():
    with pytest.raises(ValueError, match=r"unknown problem set 'gsm8'.*Did you mean 'gsm8k'"):
        load_problems("gsm8")
    with pytest.raises(ValueError, match=r"math500 has no split 'train': use 'test'"):
        load_problems("math500")


def test_the_hub_is_asked_for_the_right_set_and_columns(monkeypatch):
    """The hub's answer is stood in for; what is asked of it and what becomes of the rows is real."""
    import datasets

    asked = []

    def hub(path, config, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list(
            [{"problem": "?", "question": "?", "answer": "so #### 4", "solution": "5"}]
        )

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load_problems("gsm8k")[0].answer == "4"
    assert load_problems("aime24", split="test")[0].answer == "5"
    assert load_problems("someone/set", config="hard", split="dev")[0].id == "set-1"
    assert asked == [
        ("openai/gsm8k", "main", "train"),
        ("math-ai/aime24", None, "test"),
        ("someone/set", "hard", "dev"),
    ]
    assert set(KNOWN_SETS) == {"gsm8k", "math500", "aime24", "aime25", "amc23"}


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    import datasets

    def hub(path, config, split):
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(ConnectionError, match=r"'openai/gsm8k'.*offline mode.*give a local file"):
        load_problems("gsm8k")


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data of ../shared/data/math are absent")
@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("gsm8k_test", 1319, "18"),
        ("gsm8k_train", 7473, "72"),
        ("math500", 500, r"\left( 3, \frac{\pi}{2} \right)"),
        ("asdiv", 2215, "9"),
        ("mawps", 2065, "43"),
        ("aime24", 30, "204"),
        ("amc23", 40, "27"),
        ("olympiadbench", 675, None),
    ],
)
def test_development_data(name, count, first):
    problems = load_problems(DATA / f"{name}.jsonl")
    assert len(problems) == len({problem.id for problem in problems}) == count
    assert first is None or problems[0].answer == first
